"""The quotas on Redis: one small hash for each caller and class of calls, which lives for little more than a
period."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from mastery_grpc.application.rate_limits import LARGEST_SHARE, SLOTS, Grant
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import run_guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.rate_limits import Demand
    from mastery_grpc.storage.connection import Command, RedisClient

_SETTLE = files("mastery_grpc.storage").joinpath("lua", "quota.lua").read_text()


class RedisQuotas:
    """Implements `Quotas`, by the clock of Redis.

    Not repeatable: where a reply is lost, and the driver asks again, a grant counts twice. The caller then has so
    many calls less for a period.
    """

    def __init__(self, client: RedisClient, *, period: float, breaker: CircuitBreaker | None = None) -> None:
        """`period` in seconds. With a breaker, calls are refused at once while Redis is away."""
        self._slot_milliseconds = max(1, round(1000 * period / SLOTS))
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)

    async def settle(self, demands: Sequence[Demand]) -> list[Grant]:
        replies = await self._run([self._command(demand) for demand in demands])
        return [
            Grant(calls, remaining, retry_after / 1000, slot) for calls, remaining, retry_after, slot in replies
        ]

    def _command(self, demand: Demand) -> Command:
        (caller, call_class), *amounts = demand
        limit, paid, waiting, wish, returned, slot = amounts
        terms = limit, self._slot_milliseconds, SLOTS
        return (
            "EVAL",
            _SETTLE,
            1,
            keys.quota(caller, call_class),
            *terms,
            paid,
            waiting,
            wish,
            returned,
            slot,
            LARGEST_SHARE,
        )
