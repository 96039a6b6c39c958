"""Limits as a caller meets them, over several servers on one Redis."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from mastery.v1 import mastery_service_pb2
from mastery_grpc.application.callers import Role
from tests.integration.serving import Client, Engine, eventually, failure_from, quiz_event, running_engine


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


async def _reason(stream: Any) -> str:
    """Returns why a stream is refused, empty if it is not."""
    try:
        await stream.read()
    except grpc.aio.AioRpcError as error:
        return failure_from(error).reason
    return ""


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


async def test_a_watcher_who_does_not_read_is_dropped_and_what_he_held_is_free_again(redis_url: str) -> None:
    students = [f"s{number}" for number in range(1000)]
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            running_engine(redis_url, max_streams_services=1, grpc_slow_reader_timeout=0.3)
        )
        client = engine.client()
        for start in range(0, 1000, 500):
            await client.ingest(*(quiz_event(student_id=student) for student in students[start : start + 500]))
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{engine.port}", options=narrow)
        )
        slow = Client(channel, client.metadata).watch(*students)
        assert await slow.read()

        async def another_may_watch() -> bool:
            return await _reason(client.watch("s1")) == ""

        assert await _reason(client.watch("s1")) == "TOO_MANY_OPEN"
        await eventually(another_may_watch)
        reason = ""
        while not reason:
            reason = await _reason(slow)

    assert reason == "SLOW_READER"


async def test_a_sender_who_does_not_read_his_answers_is_dropped(redis_url: str) -> None:
    async with running_engine(redis_url, max_streams_services=1, grpc_slow_reader_timeout=0.3) as engine:
        client = engine.client()
        sending = client.stream(quiz_event(number=number % 500) for number in range(6000))

        async def another_may_send() -> bool:
            return await _reason(client.stream([quiz_event()])) == ""

        await eventually(another_may_send, within=30)
        sending.cancel()


async def test_every_thousand_events_of_a_stream_count_as_a_call(redis_url: str) -> None:
    async with running_engine(redis_url, rate_limit_people=2) as engine:
        stream: Any = engine.client(Role.ADMIN, "importer").stream()
        event = mastery_service_pb2.StreamEventsRequest(event=quiz_event())
        for _ in range(1999):  # the call itself is the first, the thousandth event the second
            await stream.write(event)
        assert all([(await stream.read()).accepted for _ in range(1999)])
        # Alone on its way: a refusal that meets what is still being sent may be told as a broken stream.
        await stream.write(event)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        failure = failure_from(refused.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert failure.retry_delay is not None
