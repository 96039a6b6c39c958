"""How many calls a caller may make in a minute, kept by all processes together, and how many streams he may hold.

What callers used is known to `Quotas`, which all processes share. A process does not ask there for every call: it
takes calls in advance, a lease, serves from it, takes the next one before it is used up, and gives back what is
left of it soon after. A caller of whom nothing is known is let in at once, and his call is paid for afterwards.

So the limit is met exactly but for two things, both of one call in each process: such an unpaid call may turn out
to be one too many, and the last call of a lease may lie in a process that the caller does not come back to.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from mastery_grpc.application.callers import CallClass
from mastery_grpc.domain.errors import RateLimited, StorageUnavailable, TooManyOpen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mastery_grpc.application.callers import Caller

SLOTS = 20
"""So many parts the period has. A call counts until the part that it falls in is a whole period ago."""
PORTION = 500
"""Accounts that are settled in one round trip."""
PATIENCE = 0.5
"""Seconds that a call may wait for `Quotas`; after that the process decides by itself."""
RETRY_SECONDS = 1.0
"""After so long without `Quotas` they are asked again."""
LARGEST_SHARE = 20
"""A lease is no more than one in so many of the calls that are left, but at least one call."""
CREDIT_SHARE = 10
"""A call is let in unpaid only if, as far as is known, one in so many calls of the limit is left."""

STREAM = "stream"

log = structlog.get_logger(__name__)


class QuotaKey(NamedTuple):
    """Whose calls of which class are counted together."""

    caller: Caller
    call_class: CallClass


class Demand(NamedTuple):
    """What a process wants for one caller."""

    key: QuotaKey
    limit: int
    """Calls in a period."""
    paid: int = 0
    """Calls already made; they count, whatever is left."""
    waiting: int = 0
    """Calls that wait for their turn."""
    wish: int = 0
    """Calls to come."""
    returned: int = 0
    """Calls that were granted and not made."""
    slot: int = 0
    """The slot that they were granted in."""


class Grant(NamedTuple):
    """What a process gets."""

    calls: int
    remaining: int
    """Calls that are left beside; negative if more than the limit were made unpaid."""
    retry_after: float
    """Seconds until a call is left; 0 if one is left now, or was granted."""
    slot: int


class Quotas(Protocol):
    """What all callers used of their limits in the last period."""

    async def settle(self, demands: Sequence[Demand]) -> list[Grant]:
        """Takes payments and returns in, and grants what is left. Raises StorageUnavailable; then some demands
        may have been met and others not."""


def share_of(remaining: int, waiting: int, wish: int) -> int:
    """Returns how many of the remaining calls a process gets: all that wait, and a lease."""
    served = min(remaining, waiting)
    left = remaining - served
    return served + min(left, wish, max(1, left // LARGEST_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Calls of each class in a period, and streams at a time in each process; 0: without limit."""

    people: int = 100
    services: int = 600_000
    period: float = 60.0
    """Seconds."""
    streams_people: int = 10
    streams_services: int = 1000

    def calls_of(self, caller: Caller) -> int:
        """Returns the limit of a caller's calls of each class."""
        return self.people if caller.role.is_person else self.services

    def streams_of(self, caller: Caller) -> int:
        """Returns the limit of a caller's open streams."""
        return self.streams_people if caller.role.is_person else self.streams_services


class _Account:
    """What this process knows of one caller's calls of one class, and what it holds for him."""

    __slots__ = (
        "asked_at",
        "called_at",
        "expires",
        "is_asked",
        "key",
        "lease",
        "limit",
        "low",
        "owed",
        "refused_until",
        "remaining",
        "returning",
        "size",
        "slot",
        "told_at",
        "used",
        "waiters",
        "wish",
    )

    def __init__(self, key: QuotaKey, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.lease = 0  # calls in hand
        self.size = 0  # of the lease when it was taken
        self.low = 0  # at so many the next one is asked for
        self.slot = 0  # that it was taken in
        self.expires = 0.0
        self.used = 0  # calls since it was taken
        self.returning = 0  # calls to be given back
        self.owed = 0  # calls to be paid for
        self.wish = 0
        self.waiters: list[asyncio.Future[float]] = []
        self.is_asked = False
        self.asked_at = self.called_at = self.told_at = -math.inf
        self.remaining = limit  # when last told
        self.refused_until = 0.0

    def has_credit(self, now: float, period: float) -> bool:
        if self.owed:
            return False
        return self.remaining * CREDIT_SHARE >= self.limit or now - self.told_at > period


class RateLimiter:
    """Keeps callers to their limits; `run` deals with `Quotas` beside the calls.

    A caller's account takes about 500 bytes; of more callers than `capacity` the ones not seen for longest are
    forgotten, which costs nothing but a question.
    """

    def __init__(
        self,
        quotas: Quotas,
        *,
        fallback: Quotas,
        limits: CallLimits,
        timer: Callable[[], float],
        capacity: int = 100_000,
    ) -> None:
        """`fallback`: the quotas of this process alone, for as long as the shared ones are away."""
        self._quotas = quotas
        self._fallback = fallback
        self._limits = limits
        self._timer = timer
        self._capacity = capacity
        self._lease_seconds = limits.period / SLOTS
        self._accounts: OrderedDict[tuple[Caller, CallClass], _Account] = OrderedDict()
        self._asked: deque[_Account] = deque()
        self._leases: deque[tuple[float, _Account]] = deque()  # in the order in which they end
        self._has_news = asyncio.Event()
        self._ask_again_at = -math.inf
        self._is_away = False
        self._streams: Counter[Caller] = Counter()
        self.refusals: Counter[str] = Counter(dict.fromkeys((*CallClass, STREAM), 0))
        """Since the process began, by class of calls; streams are a class of their own."""

    async def admit(self, caller: Caller, call_class: CallClass) -> None:
        """Counts one call. Raises RateLimited."""
        key = caller, call_class
        if (account := self._accounts.get(key)) is None:
            if not (limit := self._limits.calls_of(caller)):
                return
            account = self._open(QuotaKey(caller, call_class), limit)
        else:
            self._accounts.move_to_end(key)
        if account.lease:
            account.lease -= 1
            account.used += 1
            if account.lease <= account.low and not account.is_asked:
                self._ask(account, wish=2 * account.size)
            return
        await self._admit_without_lease(account)

    @contextmanager
    def open_stream(self, caller: Caller) -> Iterator[None]:
        """Counts one stream while the context is open. Raises TooManyOpen on entering."""
        if (limit := self._limits.streams_of(caller)) and self._streams[caller] >= limit:
            self.refusals[STREAM] += 1
            raise TooManyOpen("streams", limit)
        self._streams[caller] += 1
        try:
            yield
        finally:
            self._streams[caller] -= 1
            if not self._streams[caller]:
                del self._streams[caller]

    async def run(self) -> None:
        """Settles with the quotas for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds / 2):
                    await self._has_news.wait()
            self.end_leases()
            await self.settle()

    def end_leases(self) -> None:
        """Gives back what is left of leases whose time is over, to be settled next."""
        now = self._timer()
        while self._leases and self._leases[0][0] <= now:
            _, account = self._leases.popleft()
            if account.expires > now:  # renewed meanwhile
                continue
            # Of a lease in use a part is kept, so that no call has to wait for the next one.
            kept = account.lease // 4 if account.used else 0
            account.returning += account.lease - kept
            account.lease = kept
            if account.returning or account.used:
                self._ask(account, wish=account.used)
            account.used = 0

    async def settle(self) -> None:
        """Settles what was asked for."""
        while self._asked:
            accounts = [self._asked.popleft() for _ in range(min(PORTION, len(self._asked)))]
            demands = [self._demand(account) for account in accounts]
            grants = await self._grants(demands)
            for account, demand, grant in zip(accounts, demands, grants, strict=True):
                self._take(account, demand, grant)
        self._has_news.clear()

    def _open(self, key: QuotaKey, limit: int) -> _Account:
        account = self._accounts[key] = _Account(key, limit)
        if len(self._accounts) > self._capacity:
            self._accounts.popitem(last=False)
        return account

    async def _admit_without_lease(self, account: _Account) -> None:
        now = self._timer()
        since, account.called_at = now - account.called_at, now
        if account.refused_until > now:
            # Asked from time to time all the same: another process may have given something back.
            if not account.is_asked and now - account.asked_at > self._lease_seconds:
                self._ask(account, wish=1)
            raise self._refusal(account, account.refused_until - now)
        if account.has_credit(now, self._limits.period):
            account.owed = 1
            account.used += 1
            self._ask(account, wish=1 if since < self._lease_seconds else 0)
            return
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        account.waiters.append(turn)
        self._ask(account, wish=1)
        if retry_after := await turn:
            raise self._refusal(account, retry_after)

    def _refusal(self, account: _Account, seconds: float) -> RateLimited:
        self.refusals[account.key.call_class] += 1
        return RateLimited(
            account.key.call_class.value,
            limit=account.limit,
            period=self._limits.period,
            retry_after=math.ceil(seconds * 100) / 100,
        )

    def _ask(self, account: _Account, *, wish: int) -> None:
        account.wish = max(account.wish, wish)
        if not account.is_asked:
            account.is_asked = True
            self._asked.append(account)
            self._has_news.set()

    def _demand(self, account: _Account) -> Demand:
        account.asked_at = self._timer()
        wish, account.wish = account.wish, 0
        waiting = len(account.waiters)
        return Demand(
            account.key,
            account.limit,
            paid=account.owed,
            waiting=waiting,
            wish=max(wish, waiting),
            returned=account.returning,
            slot=account.slot,
        )

    async def _grants(self, demands: Sequence[Demand]) -> list[Grant]:
        """Returns the grants of the shared quotas, or, while they are away, of the process's own."""
        if self._timer() >= self._ask_again_at:
            try:
                async with asyncio.timeout(PATIENCE):
                    grants = await self._quotas.settle(demands)
            except (StorageUnavailable, TimeoutError) as error:
                self._ask_again_at = self._timer() + RETRY_SECONDS
                if not self._is_away:
                    self._is_away = True
                    log.warning("rate limits are kept by each process alone", error=str(error))
            else:
                if self._is_away:
                    self._is_away = False
                    log.info("rate limits are kept together again")
                return grants
        return await self._fallback.settle(demands)

    def _take(self, account: _Account, demand: Demand, grant: Grant) -> None:
        now = self._timer()
        account.is_asked = False
        account.owed -= demand.paid
        account.returning -= demand.returned
        account.remaining, account.told_at = grant.remaining, now
        account.refused_until = now + grant.retry_after if grant.retry_after else 0.0
        account.lease += grant.calls
        waiters, account.waiters = account.waiters, []
        for position, turn in enumerate(waiters):
            if turn.done():  # the call was given up
                continue
            if account.lease:
                account.lease -= 1
                account.used += 1
                turn.set_result(0.0)
            elif grant.retry_after:
                turn.set_result(grant.retry_after)
            else:  # came after the question
                account.waiters = waiters[position:]
                self._ask(account, wish=1)
                break
        if grant.calls:
            account.size, account.low, account.slot = account.lease, account.lease // 2, grant.slot
            account.expires = now + self._lease_seconds
            self._leases.append((account.expires, account))
        if account.owed:  # let in while this question was under way
            self._ask(account, wish=0)
