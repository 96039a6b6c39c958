"""The circuit breaker, on a clock turned by hand."""

import asyncio

import pytest

from mastery_grpc.application.circuit_breaker import BreakerState, BreakerTerms, CircuitBreaker
from mastery_grpc.domain.errors import InvalidInput, StorageUnavailable


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(StorageUnavailable, terms=BreakerTerms(failures=3, open_seconds=2.0), timer=clock)


def state_of(breaker: CircuitBreaker) -> BreakerState:
    return breaker.state


async def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(StorageUnavailable, match="away"):
            async with breaker.guard():
                raise StorageUnavailable("away")


async def succeed(breaker: CircuitBreaker) -> None:
    async with breaker.guard():
        pass


async def give_up(breaker: CircuitBreaker, clock: Clock, *, after: float) -> None:
    async with breaker.guard():
        clock.now += after
        raise asyncio.CancelledError


async def refusal(breaker: CircuitBreaker) -> StorageUnavailable:
    with pytest.raises(StorageUnavailable, match="circuit breaker is open") as refused:
        async with breaker.guard():
            pytest.fail("the call went through")
    return refused.value


async def test_it_opens_after_so_many_failures_in_a_row(breaker: CircuitBreaker) -> None:
    await fail(breaker, 2)
    assert state_of(breaker) is BreakerState.CLOSED

    await fail(breaker)

    assert state_of(breaker) is BreakerState.OPEN
    await refusal(breaker)


async def test_one_success_begins_the_count_anew(breaker: CircuitBreaker) -> None:
    await fail(breaker, 2)
    await succeed(breaker)
    await fail(breaker, 2)

    assert state_of(breaker) is BreakerState.CLOSED


async def test_a_refusal_says_when_to_come_back(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 3)
    clock.now += 0.5

    assert (await refusal(breaker)).retry_after == pytest.approx(1.5)


async def test_after_its_time_one_call_tries_and_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 3)
    clock.now += 2.0

    async with breaker.guard():
        assert state_of(breaker) is BreakerState.HALF_OPEN
        await refusal(breaker)

    assert state_of(breaker) is BreakerState.CLOSED
    await succeed(breaker)


async def test_a_failed_try_opens_it_for_another_full_time(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 3)
    clock.now += 2.0
    await fail(breaker)

    clock.now += 1.9
    await refusal(breaker)
    clock.now += 0.1
    await succeed(breaker)


async def test_an_error_that_is_an_answer_is_no_failure(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        with pytest.raises(InvalidInput):
            async with breaker.guard():
                raise InvalidInput.of("field", "is wrong")

    assert state_of(breaker) is BreakerState.CLOSED


@pytest.mark.parametrize(("waited", "state"), [(0.1, BreakerState.CLOSED), (0.3, BreakerState.OPEN)])
async def test_a_call_given_up_on_counts_only_after_a_wait(
    breaker: CircuitBreaker, clock: Clock, waited: float, state: BreakerState
) -> None:
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await give_up(breaker, clock, after=waited)

    assert state_of(breaker) is state


async def test_a_try_given_up_at_once_leaves_the_next_call_to_try(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 3)
    clock.now += 2.0
    with pytest.raises(asyncio.CancelledError):
        await give_up(breaker, clock, after=0)

    await succeed(breaker)

    assert state_of(breaker) is BreakerState.CLOSED


async def test_calls_given_up_on_at_one_moment_count_as_one(breaker: CircuitBreaker, clock: Clock) -> None:
    calls = [asyncio.create_task(give_up_when_cancelled(breaker)) for _ in range(5)]
    await asyncio.sleep(0)
    clock.now += 0.3  # a stall of our own: nobody can tell what the dependency did meanwhile
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    assert state_of(breaker) is BreakerState.CLOSED


async def test_a_call_given_up_on_tells_nothing_if_another_was_answered_meanwhile(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(5):
        slow = asyncio.create_task(give_up_when_cancelled(breaker))
        await asyncio.sleep(0)
        await succeed(breaker)
        clock.now += 0.3
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    await fail(breaker, 2)

    assert state_of(breaker) is BreakerState.CLOSED


async def give_up_when_cancelled(breaker: CircuitBreaker) -> None:
    async with breaker.guard():
        await asyncio.Event().wait()
