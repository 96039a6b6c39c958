"""The quotas in memory and on Redis settle alike."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from mastery_grpc.application.callers import CallClass, Caller, Role
from mastery_grpc.application.rate_limits import Demand, QuotaKey, Quotas
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.memory.quotas import MemoryQuotas
from mastery_grpc.storage.redis_quotas import RedisQuotas

PERIOD = 2.0
KEY = QuotaKey(Caller("somebody", Role.TEACHER, "school-1"), CallClass.READ)
WRITES = QuotaKey(KEY.caller, CallClass.WRITE)


@pytest.fixture(params=["memory", "redis"])
async def quotas(request: pytest.FixtureRequest) -> AsyncIterator[Quotas]:
    if request.param == "memory":
        yield MemoryQuotas(period=PERIOD, timer=time.monotonic)
        return
    client = connect(request.getfixturevalue("redis_url"), timeout=2.0)
    try:
        yield RedisQuotas(client, period=PERIOD)
    finally:
        await client.aclose()


async def test_a_lease_is_a_part_of_what_is_left(quotas: Quotas) -> None:
    [grant] = await quotas.settle([Demand(KEY, 100, wish=50)])

    assert (grant.calls, grant.remaining, grant.retry_after) == (5, 95, 0)


async def test_who_waits_is_served_as_long_as_calls_are_left(quotas: Quotas) -> None:
    [grant] = await quotas.settle([Demand(KEY, 10, waiting=12, wish=12)])

    assert (grant.calls, grant.remaining) == (10, 0)


async def test_paid_calls_count_whatever_is_left(quotas: Quotas) -> None:
    await quotas.settle([Demand(KEY, 10, waiting=10)])
    [grant] = await quotas.settle([Demand(KEY, 10, paid=1, waiting=1)])

    assert (grant.calls, grant.remaining) == (0, -1)
    assert 0 < grant.retry_after <= 1.1 * PERIOD


async def test_returned_calls_may_be_had_again(quotas: Quotas) -> None:
    [lease] = await quotas.settle([Demand(KEY, 10, waiting=10)])
    [grant] = await quotas.settle([Demand(KEY, 10, returned=4, slot=lease.slot, waiting=6)])

    assert grant.calls == 4


async def test_classes_and_limits_are_apart(quotas: Quotas) -> None:
    first, second = await quotas.settle([Demand(KEY, 10, waiting=10), Demand(WRITES, 5, waiting=10)])

    assert (first.calls, second.calls) == (10, 5)


async def test_calls_are_left_again_when_the_time_has_come_that_was_told(quotas: Quotas) -> None:
    await quotas.settle([Demand(KEY, 10, waiting=10)])
    [refused] = await quotas.settle([Demand(KEY, 10, waiting=1)])
    await asyncio.sleep(refused.retry_after + 0.02)
    [grant] = await quotas.settle([Demand(KEY, 10, waiting=1)])

    assert (refused.calls, grant.calls) == (0, 1)


async def test_nothing_says_who_the_caller_is_and_nothing_stays(redis_url: str) -> None:
    client = connect(redis_url, timeout=2.0)
    await RedisQuotas(client, period=PERIOD).settle([Demand(KEY, 10, waiting=1)])
    [key] = [key async for key in client.scan_iter("limit:*")]

    assert b"somebody" not in key
    assert 0 < await client.pttl(key) <= 1000 * PERIOD * 1.2
    await client.aclose()
