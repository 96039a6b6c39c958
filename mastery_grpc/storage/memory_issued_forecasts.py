"""The issued forecasts in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.verification import DayScore, IssuedForecast


class MemoryIssuedForecasts:
    """Implements `IssuedForecasts`; nothing expires, so a claim lasts until its day is finished."""

    def __init__(self) -> None:
        self._due: defaultdict[date, dict[StudentKey, IssuedForecast]] = defaultdict(dict)
        self._claimed: set[date] = set()
        self._scores: dict[date, DayScore] = {}

    async def store(self, due: Mapping[date, Mapping[StudentKey, IssuedForecast]]) -> None:
        for day, forecasts in due.items():
            self._due[day].update(forecasts)

    async def due_days(self, days: Sequence[date]) -> list[date]:
        return [day for day in days if self._due.get(day)]

    async def claim(self, day: date) -> bool:
        is_first = day not in self._claimed
        self._claimed.add(day)
        return is_first

    async def load_due(self, day: date) -> dict[StudentKey, IssuedForecast]:
        return dict(self._due.get(day, {}))

    async def finish(self, score: DayScore) -> None:
        self._scores[score.day] = score
        self._due.pop(score.day, None)
        self._claimed.discard(score.day)

    async def load_scores(self, days: Sequence[date]) -> list[DayScore]:
        return [self._scores[day] for day in days if day in self._scores]
