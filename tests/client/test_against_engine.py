"""The client against the engine itself: real server, real Redis, a real socket, restarts among it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mastery.v1 import events_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Tls,
    Unauthenticated,
    Unavailable,
    error_of,
)
from mastery_grpc.app import running_server
from mastery_grpc.application.callers import Role
from tests.integration.serving import (
    components,
    eventually,
    quiz_event,
    running_engine,
    settings_for,
    token,
)
from tests.real.certificates import Authority
from tests.real.processes import free_ports
from tests.real.redis_servers import RedisServer

PATIENCE = 30.0


class Restartable:
    """An engine on one port and one Redis, started and stopped as a test likes."""

    def __init__(self, redis_url: str) -> None:
        [self.port] = free_ports(1)
        self._redis_url = redis_url
        self._running = AsyncExitStack()

    async def start(self) -> None:
        engine = running_engine(self._redis_url, grpc_port=self.port, grpc_drain_timeout=0.2)
        await self._running.enter_async_context(engine)

    async def stop(self) -> None:
        await self._running.aclose()


@asynccontextmanager
async def restartable(redis_url: str) -> AsyncIterator[Restartable]:
    engine = Restartable(redis_url)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Restartable]:
    async with restartable(redis_url) as engine:
        yield engine


def client_of(engine: Restartable, role: Role = Role.SERVICE, subject: str = "someone") -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{engine.port}", token=token(role, subject), stream_patience=PATIENCE)


# --- calls ------------------------------------------------------------------------------------------------


async def test_what_is_served_answers(engine: Restartable) -> None:
    events = [quiz_event(3, 4, number=number) for number in range(1, 5)]
    async with client_of(engine) as client:
        ingested = await client.mastery.ingest_events(events=events)
        mastery = (await client.mastery.get_mastery(student_id="s1")).mastery
        predicted = await client.prediction.predict_trajectory(student_id="s1", horizon_days=3)
        advice = await client.recommendation.get_recommendations(student_id="s1")

    assert all(result.accepted for result in ingested.results)
    assert mastery.components.quiz == pytest.approx(0.75)
    assert len(predicted.points) == 3
    assert advice.recommendations


async def test_a_write_is_idempotent_by_the_id_that_the_client_gives_it(engine: Restartable) -> None:
    async with client_of(engine) as client:
        request = pb.CalculateMasteryRequest(student_id="s1", components=components(0.5))
        first = await client.mastery.calculate_mastery(request)
        second = await client.mastery.calculate_mastery(request)

    assert (first.duplicate, second.duplicate) == (False, False)  # two calls, two ids
    assert second.mastery.version == 2


async def test_failures_tell_what_the_engine_tells(engine: Restartable) -> None:
    async with client_of(engine) as client:
        with pytest.raises(NotFound) as unknown:
            await client.with_options(request_id="mine").mastery.get_mastery(student_id="nobody")
        with pytest.raises(InvalidRequest) as invalid:
            await client.mastery.get_mastery(student_id="?")
        [item] = (await client.mastery.batch_get_mastery(student_ids=["nobody"])).results
    async with client_of(engine, Role.STUDENT, "s1") as student:
        with pytest.raises(PermissionDenied) as denied:
            await student.mastery.get_mastery(student_id="s2")
    async with AsyncClient(f"127.0.0.1:{engine.port}", token="no-token") as stranger:
        with pytest.raises(Unauthenticated) as unauthenticated:
            await stranger.mastery.get_mastery(student_id="s1")

    assert (unknown.value.reason, unknown.value.request_id) == ("STUDENT_NOT_FOUND", "mine")
    assert unknown.value.metadata == {"student_id": "nobody"}
    assert [field for field, _ in invalid.value.violations] == ["student_id"]
    assert error_of(item.error).reason == "STUDENT_NOT_FOUND"
    assert denied.value.reason == "NOT_OWN_RECORD"
    assert unauthenticated.value.reason == "TOKEN_INVALID"


async def test_a_token_file_is_rotated_under_a_running_client(engine: Restartable, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token(hours=-1))
    async with AsyncClient(f"127.0.0.1:{engine.port}", token=file) as client:
        with pytest.raises(Unauthenticated) as expired:
            await client.mastery.get_mastery(student_id="nobody")
        file.write_text(token())
        with pytest.raises(NotFound):
            await client.mastery.get_mastery(student_id="nobody")

    assert expired.value.reason == "TOKEN_EXPIRED"


async def test_a_read_outlives_a_restart_of_the_server(engine: Restartable) -> None:
    async with client_of(engine) as client:
        await client.mastery.ingest_events(events=[quiz_event()])
        await engine.stop()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await client.with_options(timeout=1).mastery.get_mastery(student_id="s1")
        await engine.start()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await client.mastery.get_mastery(student_id="s1")
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)

    assert answer.mastery.version == 1


async def test_while_redis_is_away_a_call_is_told_so_and_when_to_come_back(
    engine: Restartable, redis_server: RedisServer
) -> None:
    async with client_of(engine) as client:
        await client.mastery.calculate_mastery(student_id="s1", components=components())
        redis_server.kill()
        try:
            with pytest.raises(Unavailable) as raised:
                await client.mastery.get_mastery(student_id="s2")
        finally:
            await asyncio.to_thread(redis_server.revive)

    assert raised.value.reason == "STORAGE_UNAVAILABLE"
    assert raised.value.retry_delay


async def test_a_server_that_stops_is_not_noticed_while_another_serves(redis_url: str) -> None:
    done = asyncio.Event()
    answered = 0

    async def call(client: AsyncClient) -> None:
        nonlocal answered
        while not done.is_set():
            await client.mastery.get_mastery(student_id="s1")
            answered += 1

    async def has_reached(count: int) -> bool:
        return answered > count

    async with restartable(redis_url) as first, restartable(redis_url) as second:
        address = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
        async with AsyncClient(address, token=token()) as client:
            await client.mastery.calculate_mastery(student_id="s1", components=components())
            calling = [asyncio.create_task(call(client)) for _ in range(3)]
            await eventually(lambda: has_reached(50), within=PATIENCE)
            await first.stop()
            seen = answered
            await eventually(lambda: has_reached(seen + 50), within=PATIENCE)
            await first.start()
            done.set()
            await asyncio.gather(*calling)


async def test_the_face_that_waits_works_alike(engine: Restartable) -> None:
    def use() -> list[Any]:
        with Client(f"127.0.0.1:{engine.port}", token=token()) as client:
            acknowledged = list(client.mastery.stream_events(quiz_event(number=n) for n in range(1, 301)))
            updates = client.mastery.watch_mastery(student_ids=["s1"])
            first = next(updates)
            updates.close()
            return [len(acknowledged), first.mastery.version, first.initial]

    assert await asyncio.to_thread(use) == [300, 300, True]


async def test_tls_is_mutual_where_the_server_asks_for_it(redis_url: str, tmp_path: Path) -> None:
    authority = Authority("authority")
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    server_certificate, server_key = authority.certify().write(tmp_path, "server")
    certificate, key = authority.certify("client").write(tmp_path, "client")
    [health_port] = free_ports(1)
    settings = settings_for(
        redis_url,
        tls_cert=str(server_certificate),
        tls_key=str(server_key),
        tls_client_ca=str(tmp_path / "ca.crt"),
        grpc_health_port=health_port,
    )
    async with running_server(settings) as port:
        address = f"localhost:{port}"
        known = Tls(ca=tmp_path / "ca.crt", certificate=certificate, key=key)
        async with AsyncClient(address, token=token(), tls=known) as client:
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await client.mastery.calculate_mastery(student_id="s1", components=components())
                        break
                    except Unavailable:  # not ready yet
                        await asyncio.sleep(0.05)
            assert (await client.mastery.get_mastery(student_id="s1")).mastery.version == 1
        async with AsyncClient(address, token=token(), tls=Tls(ca=tmp_path / "ca.crt")) as unknown:
            with pytest.raises(Unavailable):
                await unknown.with_options(timeout=2).mastery.get_mastery(student_id="s1")


# --- streams ----------------------------------------------------------------------------------------------


async def test_a_watcher_misses_nothing_new_and_sees_nothing_twice_over_restarts(engine: Restartable) -> None:
    students = [f"s{number}" for number in range(5)]
    seen: dict[str, list[int]] = {student: [] for student in students}
    written = dict.fromkeys(students, 0)
    chance = random.Random(7)

    async def watch(client: AsyncClient) -> None:
        async with aclosing(client.mastery.watch_mastery(student_ids=students)) as updates:
            async for update in updates:
                seen[update.mastery.student_id].append(update.mastery.version)

    async def write(client: AsyncClient, count: int) -> None:
        for _ in range(count):
            student = chance.choice(students)
            await client.mastery.calculate_mastery(student_id=student, components=components(chance.random()))
            written[student] += 1

    async with client_of(engine) as client:
        watching = asyncio.create_task(watch(client))
        for _ in range(3):
            await write(client, 10)
            await engine.stop()
            await engine.start()
            async with client_of(engine) as other:  # what happens before the watcher is back
                await write(other, 5)
        async with asyncio.timeout(PATIENCE):
            while any((seen[student] or [0])[-1] != written[student] for student in students):
                assert not watching.done()
                await asyncio.sleep(0.02)
        watching.cancel()

    for versions in seen.values():
        assert versions == sorted(set(versions))


async def test_a_watcher_does_not_notice_that_the_server_keeps_no_connection_for_long(redis_url: str) -> None:
    short = {"grpc_max_connection_age": 0.5, "grpc_max_connection_age_grace": 0.2}
    async with (
        running_engine(redis_url, **short) as engine,
        AsyncClient(f"127.0.0.1:{engine.port}", token=token()) as client,
        aclosing(client.mastery.watch_mastery(student_ids=["s1"])) as updates,
    ):
        for version in range(1, 5):
            await client.mastery.calculate_mastery(student_id="s1", components=components())
            async with asyncio.timeout(PATIENCE):
                assert (await anext(updates)).mastery.version == version
            await asyncio.sleep(1)


async def test_a_stream_of_events_loses_and_doubles_none_over_restarts(engine: Restartable) -> None:
    total, students = 3000, 20
    events = [quiz_event(number=n, student_id=f"s{n % students}") for n in range(1, total + 1)]
    acknowledged: list[str] = []

    async def source() -> AsyncIterator[events_pb2.LearningEvent]:
        for number, event in enumerate(events):
            if number % 50 == 0:
                await asyncio.sleep(0.02)  # so that the restarts come in the middle
            yield event

    async def send(client: AsyncClient) -> None:
        async for each in client.mastery.stream_events(source()):
            assert each.accepted, each.error
            assert each.sequence == len(acknowledged) + 1
            acknowledged.append(each.event_id)

    async def has_come(share: float) -> bool:
        return len(acknowledged) >= share * total or sending.done()

    async with client_of(engine) as client:
        sending = asyncio.create_task(send(client))
        for share in (0.2, 0.5, 0.8):
            await eventually(lambda: has_come(share), within=PATIENCE)  # noqa: B023 - awaited here
            await engine.stop()
            await asyncio.sleep(0.1)
            await engine.start()
        await asyncio.wait_for(sending, PATIENCE)
        results = (await client.mastery.batch_get_mastery(student_ids=[f"s{n}" for n in range(students)])).results

    assert acknowledged == [event.event_id for event in events]
    assert [result.mastery.version for result in results] == [total // students] * students


async def test_a_stream_waits_while_redis_is_away(engine: Restartable, redis_server: RedisServer) -> None:
    sent = [quiz_event(number=number) for number in range(1, 101)]

    async def source() -> AsyncIterator[events_pb2.LearningEvent]:
        for number, event in enumerate(sent):
            if number == 50:
                await asyncio.to_thread(redis_server.kill)
                asyncio.get_running_loop().call_later(1.5, lambda: reviving.append(revive()))
            yield event

    def revive() -> "asyncio.Task[None]":
        return asyncio.create_task(asyncio.to_thread(redis_server.revive))

    reviving: list[asyncio.Task[None]] = []
    started = time.monotonic()
    async with client_of(engine) as client:
        acknowledged = [each async for each in client.mastery.stream_events(source())]
        await asyncio.gather(*reviving)
        mastery = await client.mastery.get_mastery(student_id="s1")

    assert time.monotonic() - started > 1
    assert all(each.accepted for each in acknowledged)
    assert [each.event_id for each in acknowledged] == [event.event_id for event in sent]
    assert mastery.mastery.version == 100
