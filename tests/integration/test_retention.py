"""Nothing outlives its time: on real Redis, whose clock cannot be moved, the data is made older instead."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from mastery.v1 import compliance_service_pb2 as pb
from mastery.v1.compliance_service_pb2_grpc import ComplianceServiceStub
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.callers import Role
from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.export_student import ExportRecord, ExportStudent
from mastery_grpc.application.compliance.forget_overdue import ForgetOverdue
from mastery_grpc.application.compliance.retention import Retention, policy
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.assembly import Storage, audit_log_of, opened_storage, utc_now
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.student import fold_all
from tests.builders import DEFAULT_RULES, FOR_EVER, at, in_order, quiz
from tests.integration.every_method import answers, request_for, served_methods
from tests.integration.serving import quiz_event, running_engine, settings_for
from tests.real.redis_servers import RedisServer

STUDENT = StudentKey("s1")
LIFETIMES = {rule.kind: rule.lifetime for rule in policy(Retention())}
FOR_GOOD = {DataKind.CURRENT_MASTERY, DataKind.COHORT_MEMBERSHIP}
MOMENT = timedelta(minutes=5)
"""More than the test takes."""


@pytest.fixture
async def storage(redis_url: str) -> AsyncIterator[Storage]:
    async with opened_storage(settings_for(redis_url, redis_timeout=10.0), None) as storage:
        yield storage


def make_older(server: RedisServer, by: timedelta) -> None:
    """Makes all that Redis holds of students older than it is: lifetimes, and the times that data bears."""
    millis = int(by.total_seconds() * 1000)
    with redis.Redis(port=server.port) as client:
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            if kind == b"stream" and not key.startswith(b"audit:"):
                _make_log_older(client, key, millis)
            elif key.endswith(b":mastery:days"):
                for day, written in client.zrange(key, 0, -1, withscores=True):
                    client.zadd(key, {day: written - millis / 1000})
            elif key.endswith(b":current_mastery"):
                value = json.loads(client.get(key) or b"")
                began = datetime.fromisoformat(value["fold"]["log_start_time"]) - by
                value["fold"]["log_start_time"] = began.isoformat()
                client.set(key, json.dumps(value, separators=(",", ":")))
            elif key.endswith(b":feedback"):
                for field, text in client.hgetall(key).items():
                    if text.startswith(b"{"):
                        given = json.loads(text)
                        created = datetime.fromisoformat(given["create_time"]) - by
                        client.hset(key, field, json.dumps(given | {"create_time": created.isoformat()}))
            if (left := client.pttl(key)) > 0:
                client.pexpire(key, max(1, left - millis))


def _make_log_older(client: Any, key: bytes, millis: int) -> None:
    entries, left = client.xrange(key), client.pttl(key)
    client.delete(key)
    for id_, fields in entries:
        time, _, number = id_.partition(b"-")
        client.xadd(key, fields, id=f"{int(time) - millis}-{number.decode()}")
    if left > 0 and entries:
        client.pexpire(key, left)


async def held(storage: Storage) -> dict[DataKind, int]:
    audit = audit_log_of(settings_for("redis://unused"), storage.audit)
    export = ExportStudent(storage.records, storage.elsewhere, audit, clock=utc_now)
    counts: dict[DataKind, int] = {}
    async for part in export(STUDENT):
        if isinstance(part, ExportRecord):
            counts[part.kind] = counts.get(part.kind, 0) + 1
    return counts


def forget_overdue(storage: Storage) -> ForgetOverdue:
    return ForgetOverdue(
        storage.repository,
        storage.advice,
        storage.claims,
        rules=DEFAULT_RULES,
        log_retention=Retention().event_log,
        clock=utc_now,
    )


async def test_nothing_outlives_its_time(redis_url: str, redis_server: RedisServer, storage: Storage) -> None:
    async with running_engine(redis_url) as engine:
        now = datetime.now(UTC)
        await engine.client().ingest(
            *(quiz_event(n, 9, number=n, time=now - timedelta(days=n)) for n in range(1, 9))
        )
        admin, methods = engine.client(Role.ADMIN, "an-admin"), await served_methods(engine)
        for name in ("RecordFeedback", "PredictNextWeek", "GetRecommendations", "GetLearningPath"):
            [method] = [method for method in methods.values() if method.name == name]
            await answers(engine.channel, method, request_for(method, "s1"), admin.metadata)
    before = await held(storage)
    expected = set(DataKind) - {DataKind.COHORT_MEMBERSHIP, DataKind.BATCH_RESULT, DataKind.ERASURE_MARK}
    assert before.keys() == expected
    age = timedelta()
    for lifetime in sorted({lifetime for lifetime in LIFETIMES.values() if lifetime}):
        make_older(redis_server, lifetime - MOMENT - age)
        await forget_overdue(storage)()
        young = {kind for kind in before if (LIFETIMES[kind] or FOR_EVER) >= lifetime} - {DataKind.AUDIT_ENTRY}
        there = (await held(storage)).keys()
        # A cached prediction goes after an hour, and what is kept to be compared once its day has passed.
        assert there >= young - {DataKind.PREDICTION}, f"gone before its time, after {lifetime}"
        make_older(redis_server, 2 * MOMENT)
        age = lifetime + MOMENT
        await forget_overdue(storage)()
        overdue = {kind for kind in before if LIFETIMES[kind] == lifetime} - {DataKind.AUDIT_ENTRY}
        assert not overdue & (await held(storage)).keys(), f"still there after {lifetime}"
    assert (await held(storage)).keys() <= FOR_GOOD | {DataKind.AUDIT_ENTRY}


async def test_what_is_old_in_a_log_goes_though_the_student_sent_something_since(
    redis_server: RedisServer, storage: Storage
) -> None:
    apply = ApplyEvents(
        storage.repository, rules=DEFAULT_RULES, log_retention=Retention().event_log, clock=utc_now
    )
    now = datetime.now(UTC)
    old = [
        quiz(number % 4, 4, number=number, time=now - timedelta(days=200 - number), of=STUDENT)
        for number in range(3)
    ]
    new = quiz(1, 4, number=9, time=now - timedelta(days=100), of=STUDENT)
    await apply([Delivery(event) for event in old])
    make_older(redis_server, timedelta(days=60))
    await apply([Delivery(new)])
    make_older(redis_server, timedelta(days=29))
    assert await forget_overdue(storage)() == 0
    make_older(redis_server, timedelta(days=2))
    [mastery] = await storage.repository.read_masteries([STUDENT])
    assert await forget_overdue(storage)() == 3
    assert await forget_overdue(storage)() == 0
    [log] = await storage.repository.load_logs([STUDENT])
    assert [logged.event for logged in log] == [new]
    assert await storage.repository.read_masteries([STUDENT]) == [mastery]
    assert list(await storage.repository.read_snapshots(STUDENT)) == [new.event_time.date()]
    # What is forgotten still counts.
    last = quiz(4, 4, number=10, time=now, of=STUDENT)
    late = quiz(2, 4, number=11, time=now - timedelta(days=1), of=STUDENT)
    await apply([Delivery(last), Delivery(late)])
    [loaded] = await storage.repository.load({STUDENT: []})
    assert loaded.state == fold_all(in_order([*old, new, late, last]), DEFAULT_RULES)


async def test_whoever_folds_on_from_a_log_that_is_being_forgotten_is_refused(
    redis_server: RedisServer, storage: Storage
) -> None:
    apply = ApplyEvents(storage.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=utc_now)
    await apply([Delivery(quiz(number=1, of=STUDENT))])
    make_older(redis_server, timedelta(days=60))
    await apply([Delivery(quiz(number=2, time=at(1), of=STUDENT))])
    make_older(redis_server, timedelta(days=31))
    [before] = await storage.repository.load({STUDENT: []})
    assert await forget_overdue(storage)() == 1
    [after] = await storage.repository.load({STUDENT: []})
    assert (after.state, after.rebuilds) == (before.state, before.rebuilds + 1)
    assert after.base == fold_all([quiz(number=1, of=STUDENT)], DEFAULT_RULES)


async def test_one_process_a_day_does_it(storage: Storage) -> None:
    assert await storage.claims.claim("some work", 100)
    assert not await storage.claims.claim("some work", 100)
    assert await storage.claims.claim("other work", 100)


async def test_the_policy_is_told_to_everybody(redis_url: str) -> None:
    async with running_engine(redis_url, retention_snapshot_days=30) as engine:
        stub: Any = ComplianceServiceStub(engine.channel)
        for role in Role:
            metadata = engine.client(role, "s1").metadata
            told = await stub.GetRetentionPolicy(pb.GetRetentionPolicyRequest(), metadata=metadata)
            rules = {pb.DataKind.Name(rule.kind).removeprefix("DATA_KIND_").lower(): rule for rule in told.rules}
            assert list(rules) == list(DataKind)
            assert rules["snapshot"].lifetime.ToTimedelta() == timedelta(days=30)
            assert not rules["current_mastery"].HasField("lifetime")
