"""The issued forecasts in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.storage.record_lines import encode_issued, issued_in, line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from mastery_grpc.application.compliance.student_records import ErasureMarks
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.verification import DayScore, IssuedForecast


class MemoryIssuedForecasts:
    """Implements `IssuedForecasts` and `HeldData`; nothing expires, so a claim lasts until its day is finished."""

    kind = DataKind.PREDICTION

    def __init__(self, marks: ErasureMarks | None = None) -> None:
        """Without `marks` nobody is ever erased."""
        self._marks = marks
        self._due: defaultdict[date, dict[StudentKey, IssuedForecast]] = defaultdict(dict)
        self._claimed: set[date] = set()
        self._scores: dict[date, DayScore] = {}

    async def store(
        self, due: Mapping[date, Mapping[StudentKey, IssuedForecast]], *, issued_time: datetime
    ) -> None:
        for day, forecasts in due.items():
            self._due[day].update(forecasts)
        if self._marks is None:
            return
        students = list({student for forecasts in due.values() for student in forecasts})
        for student, mark in zip(students, await self._marks.marks_of(students), strict=True):
            if mark is not None and issued_time <= mark.erase_time:
                await self.erase(student)

    async def held(self, student: StudentKey) -> list[bytes]:
        return [
            line(encode_issued(forecasts[student]), date=day)
            for day, forecasts in sorted(self._due.items())
            if student in forecasts
        ]

    async def erase(self, student: StudentKey) -> int:
        return sum(forecasts.pop(student, None) is not None for forecasts in self._due.values())

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        for day, forecast in issued_in(records).items():
            self._due[day][student] = forecast

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
