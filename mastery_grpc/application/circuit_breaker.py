"""A circuit breaker: calls that are bound to fail are refused at once instead of piling up."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import structlog

from mastery_grpc.domain.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

SLOW_SECONDS = 0.25
"""A call that its caller gave up on counts as a failure if it had been waiting for so long."""

log = structlog.get_logger(__name__)


class BreakerState(StrEnum):
    """What happens to the next call."""

    CLOSED = "closed"
    """It goes through."""
    OPEN = "open"
    """It is refused."""
    HALF_OPEN = "half_open"
    """One call is under way to find out; all others are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTerms:
    """When a breaker opens and for how long."""

    failures: int = 5
    """So many in a row open it."""
    open_seconds: float = 2.0
    """So long it stays open before one call may try again."""


class CircuitBreaker:
    """Guards the calls to one dependency: `async with breaker.guard(): ...`.

    Failures are Unavailable and calls given up on after a wait. Everything else, errors included, is an answer.
    """

    def __init__(self, unavailable: type[Unavailable], *, terms: BreakerTerms, timer: Callable[[], float]) -> None:
        """`unavailable` is what a refused call raises; `timer` is monotonic, in seconds."""
        self._unavailable = unavailable
        self._terms = terms
        self._timer = timer
        self._failures = 0
        self._opened_at = 0.0
        self._answered_at = self._given_up_at = -math.inf
        self.state = BreakerState.CLOSED

    def guard(self) -> _Guard:
        """Returns the guard of one call. Entering it raises the error of an unavailable dependency while open."""
        return _Guard(self)

    def admit(self) -> float:
        """Lets one call through and returns when it began. Raises Unavailable if it is refused."""
        now = self._timer()
        if self.state is not BreakerState.CLOSED:
            remaining = self._opened_at + self._terms.open_seconds - now
            if self.state is BreakerState.HALF_OPEN or remaining > 0:
                refusal = self._unavailable("the circuit breaker is open")
                refusal.retry_after = max(remaining, 0.1)
                raise refusal
            self._become(BreakerState.HALF_OPEN)
        return now

    def succeeded(self) -> None:
        """Takes note of an answer."""
        self._failures = 0
        self._answered_at = self._timer()
        if self.state is not BreakerState.CLOSED:
            self._become(BreakerState.CLOSED)

    def failed(self) -> None:
        """Takes note of a failure."""
        self._failures += 1
        if self.state is BreakerState.HALF_OPEN or self._failures >= self._terms.failures:
            self._opened_at = self._timer()
            if self.state is not BreakerState.OPEN:
                self._become(BreakerState.OPEN)

    def given_up(self, began: float) -> None:
        """Takes note of a call that its caller gave up on.

        It tells of the dependency only if it had been waiting while nobody else was answered; and calls given up
        on at one moment, as after a stall of our own, tell no more than one of them.
        """
        now = self._timer()
        tells_nothing = now - began < SLOW_SECONDS or self._answered_at >= began
        if not tells_nothing and now - self._given_up_at >= SLOW_SECONDS:
            self._given_up_at = now
            self.failed()
        elif self.state is BreakerState.HALF_OPEN:  # nothing was found out: the next call tries
            self.state = BreakerState.OPEN

    def _become(self, state: BreakerState) -> None:
        log.warning("circuit breaker", dependency=self._unavailable.__name__, state=state.value)
        self.state = state


class _Guard:
    """The way of one call through a breaker."""

    __slots__ = ("_began", "_breaker")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = self._breaker.admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Unavailable):
            self._breaker.failed()
        elif isinstance(error, asyncio.CancelledError):
            self._breaker.given_up(self._began)
        else:
            self._breaker.succeeded()
