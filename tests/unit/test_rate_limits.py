"""A caller's limit holds over all processes together, and costs no question per call."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.application.callers import CallClass, Caller, Role
from mastery_grpc.application.rate_limits import CallLimits, Demand, Grant, QuotaKey, RateLimiter
from mastery_grpc.domain.errors import RateLimited, StorageUnavailable, TooManyOpen
from mastery_grpc.storage.memory.quotas import MemoryQuotas

TEACHER = Caller("t1", Role.TEACHER, "school-1")
OTHER = Caller("t2", Role.TEACHER, "school-1")
SERVICE = Caller("lms", Role.SERVICE)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """Quotas that may be away, and count how often they are asked."""

    def __init__(self, quotas: MemoryQuotas) -> None:
        self.quotas = quotas
        self.asked = 0
        self.is_away = False

    async def settle(self, demands: Sequence[Demand]) -> list[Grant]:
        self.asked += 1
        if self.is_away:
            raise StorageUnavailable("away")
        return await self.quotas.settle(demands)


class Processes:
    """Several limiters on one set of quotas."""

    def __init__(self, count: int, limits: CallLimits) -> None:
        self.clock = Clock()
        self.quotas = Counting(MemoryQuotas(period=limits.period, timer=self.clock))
        self.limiters = [
            RateLimiter(
                self.quotas,
                fallback=MemoryQuotas(period=limits.period, timer=self.clock),
                limits=limits,
                timer=self.clock,
            )
            for _ in range(count)
        ]

    async def call(self, caller: Caller, call_class: CallClass = CallClass.READ, process: int = 0) -> bool:
        """Returns whether one call was let in."""
        limiter = self.limiters[process]
        admitted = asyncio.ensure_future(limiter.admit(caller, call_class))
        await asyncio.sleep(0)
        await limiter.settle()
        try:
            await admitted
        except RateLimited:
            return False
        return True

    async def calls(self, caller: Caller, count: int, call_class: CallClass = CallClass.READ) -> int:
        """Returns how many calls were let in, each made of any process."""
        order = random.Random(count)
        return sum(
            [await self.call(caller, call_class, order.randrange(len(self.limiters))) for _ in range(count)]
        )

    async def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for limiter in self.limiters:
            limiter.end_leases()
            await limiter.settle()


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
async def test_three_hundred_quick_calls_let_about_a_hundred_through(processes: int) -> None:
    assert 90 <= await Processes(processes, CallLimits()).calls(TEACHER, 300) <= 110


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.floats(0, 20), min_size=5, max_size=40), st.integers(1, 40))
def test_no_minute_ever_has_a_tenth_more_calls_than_the_limit(
    processes: int, pauses: list[float], burst: int
) -> None:
    async def run() -> None:
        engine = Processes(processes, CallLimits())
        let_in: list[tuple[float, int]] = []
        for pause in pauses:
            await engine.wait(pause)
            let_in.append((engine.clock.now, await engine.calls(TEACHER, burst)))
        for end, _ in let_in:
            assert sum(count for time, count in let_in if end - 60 < time <= end) <= 110

    asyncio.run(run())


async def test_who_has_reached_his_limit_is_told_when_to_come_back_and_is_let_in_then() -> None:
    engine = Processes(1, CallLimits(people=20))
    await engine.calls(TEACHER, 40)
    with pytest.raises(RateLimited) as refused:
        await engine.limiters[0].admit(TEACHER, CallClass.READ)

    assert (refused.value.limit, refused.value.period) == (20, 60.0)
    assert 0 < refused.value.retry_after <= 63
    await engine.wait(refused.value.retry_after)

    assert await engine.call(TEACHER)


async def test_a_refused_caller_costs_no_question_for_each_call() -> None:
    engine = Processes(1, CallLimits(people=20))
    await engine.calls(TEACHER, 40)
    before = engine.quotas.asked

    assert await engine.calls(TEACHER, 500) == 0
    assert engine.quotas.asked - before <= 1


async def test_calls_from_a_lease_ask_nobody() -> None:
    engine = Processes(1, CallLimits())
    await engine.calls(SERVICE, 1000)
    before = engine.quotas.asked

    assert await engine.calls(SERVICE, 10_000) == 10_000
    assert engine.quotas.asked - before < 20


async def test_one_callers_limit_is_not_anothers() -> None:
    engine = Processes(2, CallLimits())
    await engine.calls(TEACHER, 300)

    assert await engine.calls(OTHER, 50) == 50


async def test_reading_does_not_use_up_writing() -> None:
    engine = Processes(2, CallLimits())
    await engine.calls(TEACHER, 300)

    assert await engine.calls(TEACHER, 50, CallClass.WRITE) == 50


async def test_the_same_name_in_another_school_or_role_is_another_caller() -> None:
    engine = Processes(1, CallLimits())
    await engine.calls(TEACHER, 300)

    for other in (Caller("t1", Role.TEACHER, "school-2"), Caller("t1", Role.ADMIN, "school-1")):
        assert await engine.call(other)


async def test_no_limit_lets_everything_through_and_asks_nobody() -> None:
    engine = Processes(1, CallLimits(people=0))

    assert await engine.calls(TEACHER, 500) == 500
    assert engine.quotas.asked == 0


async def test_while_the_quotas_are_away_each_process_keeps_the_limit_alone_and_then_together_again() -> None:
    engine = Processes(1, CallLimits())
    engine.quotas.is_away = True
    assert 90 <= await engine.calls(TEACHER, 300) <= 110

    engine.quotas.is_away = False
    await engine.wait(130)
    assert 90 <= await engine.calls(TEACHER, 300) <= 110
    assert engine.quotas.asked > 1


async def test_what_is_left_of_a_lease_is_given_back() -> None:
    engine = Processes(2, CallLimits())
    for _ in range(4):
        await engine.call(TEACHER, process=0)
    await engine.wait(4)
    await engine.wait(4)
    let_in = sum([await engine.call(TEACHER, process=1) for _ in range(300)])

    assert let_in >= 90


async def test_a_caller_may_hold_so_many_streams_and_no_more() -> None:
    limiter = Processes(1, CallLimits(streams_people=2)).limiters[0]
    with limiter.open_stream(TEACHER), limiter.open_stream(TEACHER):
        with pytest.raises(TooManyOpen, match="2 streams"), limiter.open_stream(TEACHER):
            pass
        with limiter.open_stream(OTHER):
            pass
    with limiter.open_stream(TEACHER):
        pass


class Slow(Counting):
    """Quotas that may be made to answer later."""

    def __init__(self, quotas: MemoryQuotas) -> None:
        super().__init__(quotas)
        self.answers = asyncio.Event()
        self.answers.set()

    async def settle(self, demands: Sequence[Demand]) -> list[Grant]:
        grants = await super().settle(demands)
        await self.answers.wait()
        return grants


async def test_a_call_let_in_while_a_question_is_under_way_is_paid_for_without_another_call() -> None:
    clock = Clock()
    quotas = Slow(MemoryQuotas(period=60.0, timer=clock))
    limiter = RateLimiter(quotas, fallback=quotas.quotas, limits=CallLimits(), timer=clock)
    calls = 0

    async def call() -> None:
        nonlocal calls
        await limiter.admit(TEACHER, CallClass.READ)
        calls += 1

    await call()
    [account] = limiter._accounts.values()
    while not account.lease:
        await limiter.settle()
        await call()
    while not account.is_asked:
        await call()
    quotas.answers.clear()
    settling = asyncio.create_task(limiter.settle())
    await asyncio.sleep(0)
    while account.lease:
        await call()
    await call()  # on credit
    assert account.owed == 1
    quotas.answers.set()
    await settling
    [grant] = await quotas.quotas.settle(
        [Demand(QuotaKey(TEACHER, CallClass.READ), 100, paid=0, waiting=0, wish=0, returned=0, slot=0)]
    )
    assert 100 - grant.remaining == calls + account.lease
