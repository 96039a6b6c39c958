"""The figures of many students at once, and nothing else of what their current masteries hold."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from redis.asyncio import RedisCluster

from mastery_grpc.application.cohorts.compare import GroupFigures
from mastery_grpc.domain.analytics.samples import columns_in
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import run_guarded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.storage.connection import RedisClient

PORTION = 500
"""Students read at a time: more, and one reply would hold up everybody else's calls."""


class _Components(msgspec.Struct, gc=False):
    completion: float
    quiz: float
    quality: float
    consistency: float


class _Figures(msgspec.Struct, gc=False):
    """What is read of a current mastery; the rest of the JSON is passed over."""

    mastery_score: float
    components: _Components


_decode = msgspec.json.Decoder(_Figures).decode


class RedisFigures:
    """Implements `FigureReader`."""

    def __init__(self, client: RedisClient, *, breaker: CircuitBreaker | None = None) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._in_cluster = isinstance(client, RedisCluster)
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)

    async def read_figures(self, school_id: str, student_ids: Collection[str]) -> GroupFigures:
        wanted, found = list(student_ids), []
        flat: list[float] = []
        for start in range(0, len(wanted), PORTION):
            portion = wanted[start : start + PORTION]
            for student_id, value in zip(portion, await self._values(school_id, portion), strict=True):
                if value is not None:
                    figures = _decode(value)
                    parts = figures.components
                    found.append(student_id)
                    flat += figures.mastery_score, parts.completion, parts.quiz, parts.quality, parts.consistency
        return GroupFigures(found, columns_in(flat))

    async def _values(self, school_id: str, student_ids: Sequence[str]) -> list[bytes | None]:
        wanted = [keys.current_mastery(StudentKey(student_id, school_id)) for student_id in student_ids]
        if self._in_cluster:  # where one command cannot ask for keys of several slots
            return await self._run([("GET", key) for key in wanted])
        [values] = await self._run([("MGET", *wanted)])
        return values  # type: ignore[no-any-return]
