"""The issued forecasts on Redis: a hash for each day to come, a JSON text for each day that has come."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.verification import VERIFIED_HORIZON_DAYS, DayScore, IssuedForecast
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import run_guarded
from mastery_grpc.storage.record_lines import issued_in, line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.storage.connection import Command, RedisClient

SCAN_PORTION = 1000
"""Fields that one step reads: one reply with all of a large day would hold up everybody else."""
CLAIM_SECONDS = 240

_encode = msgspec.json.Encoder().encode
_issued_decoder = msgspec.json.Decoder(IssuedForecast)
_score_decoder = msgspec.json.Decoder(DayScore)


class RedisIssuedForecasts:
    """Implements `IssuedForecasts`, and `HeldData` about them."""

    kind = DataKind.PREDICTION

    def __init__(
        self,
        client: RedisClient,
        *,
        retention: keys.Retention,
        clock: Callable[[], datetime],
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._retention = retention
        self._clock = clock
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)

    async def store(
        self, due: Mapping[date, Mapping[StudentKey, IssuedForecast]], *, issued_time: datetime
    ) -> None:
        commands: list[Command] = []
        for day, forecasts in due.items():
            if forecasts:
                key = keys.forecasts_due(day)
                pairs = [(_field(student), _encode(forecast)) for student, forecast in forecasts.items()]
                commands.append(("HSET", key, *(part for pair in pairs for part in pair)))
                commands.append(("EXPIREAT", key, self._end(day)))
        await self._run(commands)
        # Asked last: an erasure leaves its mark before it looks here.
        students = list({student for forecasts in due.values() for student in forecasts})
        marks = await self._run([("GET", keys.erased(student)) for student in students])
        for student, mark in zip(students, marks, strict=True):
            if mark is not None and issued_time <= records.decode_mark(mark).erase_time:
                await self.erase(student)

    async def held(self, student: StudentKey) -> list[bytes]:
        days = self._days()
        replies = await self._run([("HGET", keys.forecasts_due(day), _field(student)) for day in days])
        return [line(value, date=day) for day, value in zip(days, replies, strict=True) if value is not None]

    async def erase(self, student: StudentKey) -> int:
        return sum(await self._run([("HDEL", keys.forecasts_due(day), _field(student)) for day in self._days()]))

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        commands: list[Command] = []
        for day, forecast in issued_in(records).items():
            commands.append(("HSET", keys.forecasts_due(day), _field(student), _encode(forecast)))
            commands.append(("EXPIREAT", keys.forecasts_due(day), self._end(day)))
        await self._run(commands)

    async def due_days(self, days: Sequence[date]) -> list[date]:
        replies = await self._run([("EXISTS", keys.forecasts_due(day)) for day in days])
        return [day for day, reply in zip(days, replies, strict=True) if reply]

    async def claim(self, day: date) -> bool:
        [reply] = await self._run([("SET", keys.forecast_claim(day), 1, "NX", "EX", CLAIM_SECONDS)])
        return reply is not None

    async def load_due(self, day: date) -> dict[StudentKey, IssuedForecast]:
        key = keys.forecasts_due(day)
        found: dict[StudentKey, IssuedForecast] = {}
        cursor = 0
        while True:
            [(cursor, values)] = await self._run([("HSCAN", key, cursor, "COUNT", SCAN_PORTION)])
            found |= _readable(
                values if isinstance(values, dict) else dict(zip(values[::2], values[1::2], strict=True))
            )
            if int(cursor) == 0:
                break
        # Whoever finishes a day deletes it whole: what was read of it before that may not be all.
        [is_there] = await self._run([("EXISTS", key)])
        return found if is_there else {}

    async def finish(self, score: DayScore) -> None:
        lifetime = math.ceil(self._retention.forecast_scores.total_seconds())
        await self._run([("SET", keys.forecast_score(score.day), _encode(score), "EX", lifetime)])
        # Only now, because in a cluster the two are on different nodes.
        await self._run([("DEL", keys.forecasts_due(score.day))])

    async def load_scores(self, days: Sequence[date]) -> list[DayScore]:
        scores = []
        for reply in await self._run([("GET", keys.forecast_score(day)) for day in days]):
            if reply is not None:
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    scores.append(_score_decoder.decode(reply))
        return scores

    def _days(self) -> list[date]:
        """Returns the days for which forecasts may be kept: a day more at both ends, for clocks that differ."""
        oldest = math.ceil(self._retention.issued_forecasts / timedelta(days=1)) + 1
        today = self._clock().date()
        return [today + timedelta(days=day) for day in range(-oldest, VERIFIED_HORIZON_DAYS + 2)]

    def _end(self, day: date) -> int:
        """Returns when the forecasts for a day are forgotten, in seconds of the epoch."""
        end = datetime.combine(day + timedelta(days=1), time(), UTC) + self._retention.issued_forecasts
        return math.ceil(end.timestamp())


def _field(student: StudentKey) -> str:
    return f"{student.school_id}/{student.student_id}"


def _readable(fields: Mapping[bytes, bytes]) -> list[tuple[StudentKey, IssuedForecast]]:
    """Returns whose forecasts these are, without what is none of ours."""
    found = []
    for field, value in fields.items():
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            school_id, _, student_id = field.decode().partition("/")
            found.append((StudentKey(student_id, school_id), _issued_decoder.decode(value)))
    return found
