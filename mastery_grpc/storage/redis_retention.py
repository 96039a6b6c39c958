"""What the enforcement of retention keeps on Redis, and the hashes whose parts no expiry reaches."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import run_guarded
from mastery_grpc.storage.redis_advice import time_of_field

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import Command, RedisClient

CLAIM_SECONDS = 900
"""Longer than any portion of a walk takes: a claim that nobody keeps up was a process's that is gone."""
DONE_SECONDS = 2 * 24 * 3600

_FORGET = files("mastery_grpc.storage").joinpath("feedback_forget.lua").read_text()


class RedisRetentionStore:
    """Implements `RetentionStore`."""

    def __init__(
        self, client: RedisClient, *, retention: keys.Retention, breaker: CircuitBreaker | None = None
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._retention = retention
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)

    async def claim(self, day: date) -> bool:
        [reply] = await self._run([("SET", keys.retention_claim(day), 1, "NX", "EX", CLAIM_SECONDS)])
        return reply is not None

    async def keep_claim(self, day: date) -> None:
        await self._run([("EXPIRE", keys.retention_claim(day), CLAIM_SECONDS)])

    async def finish(self, day: date) -> None:
        await self._run([("SET", keys.retention_claim(day), 1, "EX", DONE_SECONDS)])

    async def forget_feedback(self, students: Sequence[StudentKey], now: datetime) -> int:
        replies = await self._run([("HGETALL", keys.feedback(student)) for student in students])
        commands: list[Command] = []
        for student, fields in zip(students, replies, strict=True):
            old = [part for field in fields.items() if self._has_had_its_time(*field, now) for part in field]
            if old:
                commands.append(("EVAL", _FORGET, 1, keys.feedback(student), *old))
        return sum(await self._run(commands)) if commands else 0

    def _has_had_its_time(self, field: bytes, value: bytes, now: datetime) -> bool:
        time, is_request = time_of_field(field, value)
        lifetime = self._retention.feedback_requests if is_request else self._retention.feedback
        return time is not None and now - time > lifetime


def _fields(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
