"""Limits as a caller meets them, over several servers on one Redis."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from mastery_grpc.application.callers import Role
from tests.integration.serving import Engine, failure_from, running_engine


async def _let_in(
    engines: list[Engine], count: int, role: Role = Role.TEACHER
) -> tuple[int, list[grpc.aio.AioRpcError]]:
    """Returns how many quick calls of one caller were let in, and how the others failed."""
    clients = [engine.client(role, "t1") for engine in engines]
    refused: list[grpc.aio.AioRpcError] = []

    async def call(number: int) -> int:
        try:
            await clients[number % len(clients)].batch("nobody")
        except grpc.aio.AioRpcError as error:
            refused.append(error)
            return 0
        return 1

    return sum(await asyncio.gather(*(call(number) for number in range(count)))), refused


@pytest.mark.parametrize("servers", [1, 3])
async def test_a_limit_is_shared_by_all_servers_within_a_tenth(redis_url: str, servers: int) -> None:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(running_engine(redis_url, rate_limit_people=100))
            for _ in range(servers)
        ]
        let_in, _ = await _let_in(engines, 300)

        assert 90 <= let_in <= 110


async def test_a_refusal_says_when_to_come_back_and_which_quota_is_used_up(redis_url: str) -> None:
    async with running_engine(redis_url, rate_limit_people=5) as engine:
        _, refused = await _let_in([engine], 20)

        failure = failure_from(refused[-1])
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert dict(failure.metadata) == {"limit": "5", "period": "60s"}
        assert failure.retry_delay is not None
        assert 0 < failure.retry_delay <= 63
        assert failure.quota == ("calls", "more than 5 calls of the class 'read' in 60 s")


async def test_services_have_a_limit_of_their_own(redis_url: str) -> None:
    async with running_engine(redis_url, rate_limit_people=5, rate_limit_services=50) as engine:
        let_in, _ = await _let_in([engine], 100, Role.SERVICE)

        assert 45 <= let_in <= 55


async def test_a_person_may_hold_so_many_streams_and_no_more(redis_url: str) -> None:
    async with running_engine(redis_url, max_streams_people=2) as engine:
        client = engine.client(Role.TEACHER, "t1")
        await engine.client().calculate("s1")
        held = [client.watch("s1") for _ in range(2)]
        for stream in held:
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.watch("s1").read()

        failure = failure_from(refused.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN")
        held[0].cancel()
        await asyncio.sleep(0.3)
        assert await client.watch("s1").read()
