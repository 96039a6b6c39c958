"""The audit log of real servers: every call leaves its entry, through restarts, crashes and outages."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.descriptor import MethodDescriptor

from mastery.v1 import access_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_grpc.application.audit.log import AuditLog
from mastery_grpc.application.audit.reader import AuditFilter
from mastery_grpc.application.callers import Role
from mastery_grpc.assembly import audit_log_of
from mastery_grpc.domain.audit_chain import AuditEntry
from mastery_grpc.settings import SettingsError
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.redis_audit_log import RedisAuditStore
from tests.builders import student
from tests.integration.every_method import answers, request_for, served_methods
from tests.integration.serving import (
    DEADLINE,
    Client,
    Engine,
    bearer,
    eventually,
    failure_of,
    quiz_event,
    running_engine,
    settings_for,
    token,
)
from tests.integration.test_server_process import serving
from tests.real.redis_servers import RedisServer

GET = "mastery.v1.MasteryService/GetMastery"
AUDIT_KEY = "a key for the audit log that only the tests know"
LOST_AT_MOST = 2.0
"""Seconds of work that a killed server may take with it: ten times the interval, for a busy machine."""
OK, NOT_FOUND, PERMISSION_DENIED = 0, 5, 7


@asynccontextmanager
async def opened_log(redis_url: str) -> AsyncIterator[AuditLog]:
    """Yields the log as another process sees it."""
    client = connect(redis_url, timeout=5)
    store = RedisAuditStore(client, retention=timedelta(days=365))
    yield audit_log_of(settings_for(redis_url, audit_key=AUDIT_KEY), store)
    await client.aclose()


async def entries(log: AuditLog, school_id: str = "") -> list[AuditEntry]:
    """Returns all entries, oldest first."""
    found: list[AuditEntry] = []
    wanted = AuditFilter(school_id=school_id, page_size=1000)
    while True:
        page = await log.entries(wanted)
        found += page.entries
        if not page.next_page_token:
            return found[::-1]
        wanted = AuditFilter(school_id=school_id, page_size=1000, page_token=page.next_page_token)


async def entries_of(log: AuditLog, count: int, school_id: str = "") -> list[AuditEntry]:
    """Returns all entries as soon as there are so many."""

    async def are_there() -> bool:
        return len(await entries(log, school_id)) >= count

    await eventually(are_there)
    return await entries(log, school_id)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine:
        yield engine


@pytest.fixture
async def log(redis_url: str) -> AsyncIterator[AuditLog]:
    async with opened_log(redis_url) as log:
        yield log


def with_request_id(client: Client, request_id: str) -> Client:
    return Client(client.channel, (*client.metadata, ("x-request-id", request_id)))


# --- every call -------------------------------------------------------------------------------------------


def role_for(method: MethodDescriptor) -> Role:
    """Returns the most powerful role that may call a method."""
    allowed = method.GetOptions().Extensions[access_pb2.access].roles
    names = {access_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in allowed}
    return next(role for role in (Role.ADMIN, Role.SERVICE, Role.TEACHER, Role.STUDENT) if role in names)


async def outcome(engine: Engine, method: MethodDescriptor, request: Any, metadata: Any) -> int:
    try:
        await answers(engine.channel, method, request, metadata)
    except grpc.aio.AioRpcError as error:
        number: int = error.code().value[0]
        return number
    return OK


async def test_every_method_leaves_an_entry_with_its_outcome(engine: Engine, log: AuditLog) -> None:
    await engine.client().ingest(quiz_event(student_id="s1"))
    expected = {}
    for number, (name, method) in enumerate(sorted((await served_methods(engine)).items())):
        request = request_for(method, "s1", number=100 + number)
        metadata = (*bearer(token(role_for(method), "root")), ("x-request-id", f"call-{number}"))
        code = await outcome(engine, method, request, metadata)
        fields = {field.name for field in method.input_type.fields}
        is_about_him = bool(fields & {"student_id", "student_ids", "listed", "event", "events", "items"})
        if is_about_him or code != OK or name.startswith("ComplianceService."):
            full_name = f"{method.containing_service.full_name}/{method.name}"
            expected[f"call-{number}"] = full_name, code, is_about_him
    assert {name.rpartition("/")[2] for name, _, _ in expected.values()} >= {
        "GetMastery",
        "BatchGetMastery",
        "CalculateMastery",
        "IngestEvents",
        "StreamEvents",
        "WatchMastery",
        "PredictNextWeek",
        "GetRecommendations",
        "RecordFeedback",
        "SubmitBatch",
    }
    found = {
        entry.request_id: (entry.method, entry.code, bool(entry.student_hash))
        for entry in (await entries_of(log, len(expected) + 1))[1:]
    }
    assert found == expected


async def test_every_refused_call_leaves_an_entry_with_its_outcome(engine: Engine, log: AuditLog) -> None:
    await engine.client().ingest(quiz_event(student_id="s2"))
    methods = await served_methods(engine)
    metadata = bearer(token(Role.STUDENT, "s1"))
    expected = Counter({("mastery.v1.MasteryService/IngestEvents", OK): 1})
    for method in methods.values():
        code = await outcome(engine, method, request_for(method, "s2"), metadata)
        if code != OK or method.containing_service.name == "ComplianceService":
            expected[f"{method.containing_service.full_name}/{method.name}", code] += 1
    assert expected[GET, PERMISSION_DENIED] == 1
    found = await entries_of(log, expected.total())
    assert Counter((entry.method, entry.code) for entry in found) == expected
    pseudonym = await log.pseudonym_of(student("s2"))
    assert pseudonym is not None
    about_him = [entry for entry in found if entry.method == GET]
    assert [entry.student_hash for entry in about_him] == [pseudonym.hex()]


async def test_an_entry_tells_who_what_whom_when_how_and_under_which_request_id(
    engine: Engine, log: AuditLog
) -> None:
    teacher = engine.client(Role.TEACHER, "jane", "north")
    await engine.client().ingest(quiz_event(student_id="s1", school_id="north"))
    begin = datetime.now(UTC)
    await with_request_id(teacher, "seen-in-the-log").get()
    _, entry = await entries_of(log, 2, "north")
    pseudonym = await log.pseudonym_of(student("s1", school_id="north"))
    assert pseudonym is not None
    assert begin <= entry.create_time <= datetime.now(UTC)
    assert (entry.caller, entry.role, entry.school_id, entry.method, entry.code) == (
        "jane",
        "teacher",
        "north",
        GET,
        OK,
    )
    assert (entry.student_hash, entry.request_id) == (pseudonym.hex(), "seen-in-the-log")
    assert await entries(log) == []


async def test_a_stranger_leaves_none_and_a_student_is_not_named(
    engine: Engine, log: AuditLog, redis_url: str
) -> None:
    await engine.client().ingest(quiz_event(student_id="s1"))
    await failure_of(engine.client_with(()).get())
    await engine.client(Role.STUDENT, "s1").get("s1")
    ingested, own = await entries_of(log, 2)
    assert own.caller == f"student:{ingested.student_hash}"
    client: Any = connect(redis_url, timeout=5)
    stored = b"".join(fields[b"e"] for _, fields in await client.xrange(keys.audit_log("")))
    await client.aclose()
    assert b"s1" not in stored


async def test_a_batch_of_a_thousand_is_a_thousand_entries(engine: Engine, log: AuditLog) -> None:
    students = [f"s{number}" for number in range(1000)]
    await engine.client().ingest(*[quiz_event(student_id=s, number=n) for n, s in enumerate(students)])
    await engine.client(Role.TEACHER, "jane").batch(*students)
    found = await entries_of(log, 2000)
    of_batch = [entry for entry in found if entry.caller == "jane"]
    assert len({entry.student_hash for entry in of_batch}) == len(of_batch) == 1000
    assert (await log.verify("")).intact


# --- the life of a server ---------------------------------------------------------------------------------


async def test_a_restart_loses_nothing_and_continues_the_chain(redis_url: str, log: AuditLog) -> None:
    heads = []
    for round_ in (1, 2):
        with structlog.testing.capture_logs() as told:
            async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine:
                for number in range(5):
                    await failure_of(with_request_id(engine.client(), f"{round_}-{number}").get("nobody"))
        # The last one: a server that has run for a while tells where the log ends before it stops, too.
        heads += [line for line in told if line["event"] == "audit log head"][-1:]
    found = await entries(log)
    assert [entry.sequence for entry in found] == list(range(1, 11))
    assert [entry.request_id for entry in found] == [f"{r}-{n}" for r in (1, 2) for n in range(5)]
    assert [(head["sequence"], head["mac"]) for head in heads] == [
        (5, found[4].mac.hex()),
        (10, found[9].mac.hex()),
    ]
    verdict = await log.verify("")
    assert (verdict.intact, verdict.entry_count) == (True, 10)


async def load(engines: list[Engine], answered: dict[str, float], stopping: asyncio.Event, name: str) -> None:
    """Calls until told to stop, or nobody answers; notes which calls were answered, and when."""
    count = 0
    while not stopping.is_set():
        request_id = f"{name}-{count}"
        client = with_request_id(engines[count % len(engines)].client(), request_id)
        try:
            await client.stub.GetMastery(
                pb.GetMasteryRequest(student_id="s1"), metadata=client.metadata, timeout=DEADLINE
            )
        except grpc.aio.AioRpcError:
            return
        answered[request_id] = time.monotonic()
        count += 1


async def test_several_processes_write_one_chain_without_gaps(
    redis_url: str, tmp_path: Path, log: AuditLog
) -> None:
    settings = {"MASTERY_AUDIT_KEY": AUDIT_KEY}
    async with (
        serving(redis_url, tmp_path, **settings) as (first, one),
        serving(redis_url, tmp_path, **settings) as (second, other),
    ):
        await one.client().ingest(quiz_event(student_id="s1"))
        answered: dict[str, float] = {}
        stopping = asyncio.Event()
        loads = [asyncio.create_task(load([one, other], answered, stopping, str(n))) for n in range(8)]
        await asyncio.sleep(2)
        stopping.set()
        await asyncio.gather(*loads)
        for server in (first, second):
            server.process.terminate()
            assert await server.ended(within=10) == 0
        for server in (first, second):
            assert any(line["event"] == "audit log head" for line in server.entries())  # both did write
    found = await entries(log)
    assert [entry.sequence for entry in found] == list(range(1, len(answered) + 2))
    assert sorted(entry.request_id for entry in found if entry.method == GET) == sorted(answered)
    assert (await log.verify("")).intact


async def test_a_killed_server_takes_the_last_moments_with_it_and_no_more(
    redis_url: str, tmp_path: Path, log: AuditLog
) -> None:
    answered: dict[str, float] = {}
    async with serving(redis_url, tmp_path, MASTERY_AUDIT_KEY=AUDIT_KEY) as (server, engine):
        await engine.client().ingest(quiz_event(student_id="s1"))
        loads = [asyncio.create_task(load([engine], answered, asyncio.Event(), str(n))) for n in range(8)]
        await asyncio.sleep(LOST_AT_MOST + 1.5)
        os.killpg(server.process.pid, signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.gather(*loads)
    found = await entries(log)
    lost = answered.keys() - {entry.request_id for entry in found}
    assert len(found) > len(answered) / 4
    assert all(killed - answered[request_id] < LOST_AT_MOST for request_id in lost)
    assert (await log.verify("")).intact
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine:
        await engine.client().get()
    verdict = await log.verify("")
    assert (verdict.intact, verdict.entry_count) == (True, len(found) + 1)


async def test_entries_wait_for_redis_and_come_in_order(
    engine: Engine, log: AuditLog, redis_server: RedisServer
) -> None:
    await engine.client().ingest(quiz_event(student_id="s1"))
    await engine.client().get()
    await entries_of(log, 2)
    redis_server.kill()
    for number in range(5):
        # From the cache: what can be answered is answered, and is taken down.
        await with_request_id(engine.client(), f"r{number}").get()
    redis_server.start()
    found = await entries_of(log, 7)
    assert [entry.request_id for entry in found[2:]] == [f"r{number}" for number in range(5)]
    assert (await log.verify("")).intact


# --- settings ---------------------------------------------------------------------------------------------


def test_a_short_key_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"^MASTERY_AUDIT_KEY: must be at least 32 bytes long$"):
        settings_for("redis://127.0.0.1", audit_key="short").audit_secret()


def test_without_a_key_it_is_that_of_the_tokens_and_without_either_the_start_stops() -> None:
    assert (
        settings_for("redis://127.0.0.1").audit_secret()
        != settings_for("redis://127.0.0.1", audit_key=AUDIT_KEY).audit_secret()
    )
    without = settings_for("redis://127.0.0.1", jwt_secret="", jwt_jwks="/keys.json")
    with pytest.raises(SettingsError, match=r"^MASTERY_AUDIT_KEY: is not set, nor is MASTERY_JWT_SECRET; "):
        without.audit_secret()


async def test_the_key_is_not_shown_and_its_lack_is_told(redis_url: str, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path) as (server, _):
        assert any(line["event"].startswith("no audit key is set") for line in server.entries())
    async with serving(redis_url, tmp_path, MASTERY_AUDIT_KEY=AUDIT_KEY) as (server, engine):
        await failure_of(engine.client().get("nobody"))
        server.process.terminate()
        await server.ended(within=10)
        assert not any(line["event"].startswith("no audit key is set") for line in server.entries())
        assert AUDIT_KEY not in server.output()


async def test_a_stream_of_events_that_its_sender_breaks_off_leaves_its_entries(redis_url: str) -> None:
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine, opened_log(redis_url) as log:
        stream = engine.client().stream()
        for number in range(3):
            await stream.write(pb.StreamEventsRequest(event=quiz_event(number=number)))
            answer: Any = await stream.read()
            assert answer.accepted
        stream.cancel()

        async def is_taken_down() -> bool:
            return any(
                entry.method.endswith("/StreamEvents") and entry.student_hash for entry in await entries(log)
            )

        await eventually(is_taken_down)
