"""The border between two schools with the same students: nothing of one is seen or changed from the other."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import redis
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from mastery.v1 import batch_service_pb2, events_pb2
from mastery.v1 import compliance_service_pb2 as compliance
from mastery.v1.compliance_service_pb2 import DATA_KIND_AUDIT_ENTRY
from mastery.v1.compliance_service_pb2_grpc import ComplianceServiceStub
from mastery_grpc.application.callers import Role
from tests.builders import event_id
from tests.integration.every_method import answers, contract, named, request_for, served_methods
from tests.integration.serving import (
    Client,
    Engine,
    eventually,
    failure_from,
    failure_in,
    quiz_event,
    running_engine,
)
from tests.real.redis_servers import RedisServer

OURS, THEIRS = "north", "south"
STUDENTS = ("s1", "s2", "s3")
DAYS = 12
MOMENT = timedelta(hours=1)
"""What is so near to now was made by the test's own calls; the events are days old."""
MADE_UP = {
    "etag", "mac", "receipt_id", "pseudonym", "sha256", "student_hash", "suppress_end_time", "entries",
    "entry_count", "expire_time",
}  # fmt: skip
"""Fields that are another each time; among them what the audit log tells, which is written behind the calls."""
CONTRACT = contract()
EVENTS = {name: method for name, method in CONTRACT.items() if name.endswith(("IngestEvents", "StreamEvents"))}
READING = (
    "MasteryService.GetMastery",
    "MasteryService.BatchGetMastery",
    "PredictionService.PredictNextWeek",
    "PredictionService.PredictTrajectory",
    "PredictionService.CheckIntervention",
    "PredictionService.DetectPatterns",
    "RecommendationService.GetRecommendations",
    "RecommendationService.GetLearningPath",
    "AnalyticsService.GetHistory",
    "AnalyticsService.GetCohort",
    "AnalyticsService.ListCohorts",
    "AnalyticsService.CompareCohorts",
    "AnalyticsService.CompareToCohort",
)
LATE = ("AnalyticsService.DeleteCohort",)
ERASE = "ComplianceService.EraseStudentData"


# --- two schools ------------------------------------------------------------------------------------------


def lessons(school_id: str, *, correct: int) -> list[events_pb2.LearningEvent]:
    """Returns days of quizzes and exercises; ids, students and course are the same in every school."""
    morning = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0) - timedelta(days=1)
    events = []
    for number, student_id in enumerate(STUDENTS):
        for day in range(DAYS):
            event = quiz_event(
                correct,
                8,
                number=100 * number + day,
                student_id=student_id,
                school_id=school_id,
                course_id="algebra",
                time=morning - timedelta(days=day),
            )
            events.append(event)
    return events


async def settle(redis_url: str, *schools: str) -> None:
    """Fills schools, and leaves when all of it is written, what courses did included."""
    async with running_engine(redis_url) as engine:
        for school_id in schools:
            results = await engine.client().ingest(*lessons(school_id, correct=2 if school_id == OURS else 7))
            assert all(result.accepted for result in results)
            await found_cohort(engine, school_id, STUDENTS if school_id == OURS else STUDENTS[:2])


async def found_cohort(engine: Engine, school_id: str, members: tuple[str, ...]) -> None:
    """Creates a cohort that has the same id and name in every school."""
    admin = engine.client(Role.ADMIN, "founder", school_id)
    method = CONTRACT["AnalyticsService.CreateCohort"]
    request = request_for(method, members[0], request_id=event_id(1))  # may be settled again
    request.listed.student_ids.extend(members[1:])
    await answers(engine.channel, method, request, admin.metadata)


@asynccontextmanager
async def both_schools(redis_url: str, **given: Any) -> AsyncIterator[Engine]:
    await settle(redis_url, OURS, THEIRS)
    async with running_engine(redis_url, **given) as engine:
        yield engine


# --- what is told -----------------------------------------------------------------------------------------


async def told(client: Client, method: MethodDescriptor, request: Message) -> list[bytes]:
    """Returns the answers, or the status of the refusal, as bytes, without what is another each time."""
    metadata = (*client.metadata, ("x-request-id", f"of-{method.name}"))
    try:
        found = await answers(client.channel, method, request, metadata, patience=0.5)
    except grpc.aio.AioRpcError as error:
        status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]  # a finished call in all but its type
        return [error.code().name.encode(), status.SerializeToString(deterministic=True)]
    # The entries of the audit log are written behind the calls: how many there are by now, no test can tell.
    found = [
        answer for answer in found if getattr(getattr(answer, "record", None), "kind", 0) != DATA_KIND_AUDIT_ENTRY
    ]
    if method.name == "SubmitBatch":
        await until_worked_off(client, found[0].batch.batch_id)
    for answer in found:
        make_comparable(answer)
    return [answer.SerializeToString(deterministic=True) for answer in found]


async def until_worked_off(client: Client, batch_id: str) -> None:
    """Returns once a batch has ended: what is held of it is another thing before."""
    method = CONTRACT["BatchService.GetBatch"]
    request = batch_service_pb2.GetBatchRequest(batch_id=batch_id)

    async def has_ended() -> bool:
        [answer] = await answers(client.channel, method, request, client.metadata)
        return bool(answer.batch.HasField("end_time"))

    await eventually(has_ended)


def make_comparable(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in MADE_UP or (isinstance(value, Timestamp) and is_now(value.ToMicroseconds() / 1e6)):
            message.ClearField(field.name)
        elif field.name == "json":
            setattr(message, field.name, without_moments(value))
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else (value,):
                make_comparable(part)


def without_moments(line: str) -> str:
    """Returns a line of JSON without times of just now, of whatever spelling."""

    def replaced(found: re.Match[str]) -> str:
        text = found[0]
        # An entry of a log has the millisecond as its id, and its number within it.
        millis = text.partition("-")[0]
        moment = int(millis) / 1000 if len(millis) == 13 else datetime.fromisoformat(text).timestamp()
        return "now" if is_now(moment) else text

    line = re.sub(r'"(mac|pseudonym|receipt_id|expire_time)":"[^"]*"', r'"\1":""', line)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)|\b\d{13}(?:-\d+)?\b", replaced, line)


def is_now(seconds: float) -> bool:
    return abs(seconds - datetime.now(UTC).timestamp()) < MOMENT.total_seconds()


def callers(engine: Engine, school_id: str) -> dict[Role, Client]:
    return {role: engine.client(role, "s1", school_id) for role in Role}


def in_order(methods: dict[str, MethodDescriptor]) -> Iterator[MethodDescriptor]:
    """Yields those first that only read, before a change drops what is cached; those that delete at the end."""
    yield from (
        methods[name]
        for name in sorted(methods, key=lambda name: (name == ERASE, name in LATE, name not in READING))
    )


async def everything_told(engine: Engine, *, naming: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Returns what callers of our school are told by every method, whichever schools they name."""
    found = {}
    for method in in_order(await served_methods(engine)):
        for role, client in callers(engine, OURS).items():
            for student_id in ("s1", "s2", "unknown"):
                for school_id in naming:
                    fields = {"validate_only": False} if student_id == "s2" and named(method) == ERASE else {}
                    request = request_for(method, student_id, school_id, number=7, **fields)
                    asked = f"{named(method)} by a {role} about {student_id} of {school_id or 'his school'}"
                    found[asked] = await told(client, method, request)
    return found


async def warm_up(engine: Engine, school_id: str) -> dict[str, list[bytes]]:
    """Reads all there is about the students of a school, so that whatever is cached is."""
    found = {}
    for name in READING:
        method = CONTRACT[name]
        admin = engine.client(Role.ADMIN, f"reader-of-{method.name}", school_id)  # each has a limit of calls
        for student_id in STUDENTS:
            await told(admin, method, request_for(method, student_id))  # the second time it is from a cache
            found[f"{name} {student_id}"] = await told(admin, method, request_for(method, student_id))
    return found


async def test_what_callers_are_told_does_not_depend_on_another_school(
    redis_url: str, redis_server: RedisServer
) -> None:
    await settle(redis_url, OURS)
    async with running_engine(redis_url) as engine:
        alone = await everything_told(engine, naming=("", THEIRS))
    redis_server.flush()
    async with both_schools(redis_url) as engine:
        await warm_up(engine, THEIRS)
        beside = await everything_told(engine, naming=("", THEIRS))
        ours = await engine.client(Role.ADMIN, "a", OURS).get("s3")
        theirs = await engine.client(Role.ADMIN, "a", THEIRS).get("s3")
    assert ours.mastery_score != theirs.mastery_score  # or nothing could be seen
    assert {asked for asked, answer in beside.items() if answer != alone[asked]} == set()


async def test_a_school_that_is_not_there_is_refused_as_one_that_is(redis_url: str) -> None:
    async with both_schools(redis_url) as engine:
        existing = await everything_told(engine, naming=(THEIRS,))
    async with both_schools(redis_url) as engine:
        missing = await everything_told(engine, naming=("nowhs",))  # as long as the other
    assert without(existing, THEIRS) == without(missing, "nowhs")


def without(found: dict[str, list[bytes]], name: str) -> list[list[bytes]]:
    return [[part.replace(name.encode(), b"") for part in answer] for answer in found.values()]


# --- what is kept -----------------------------------------------------------------------------------------


def kept_of(redis_server: RedisServer, school_id: str) -> dict[bytes, Any]:
    """Returns all that Redis holds of a school: keys that name it, and fields of hashes that all schools share."""
    name = school_id.encode()
    found: dict[bytes, Any] = {}
    with redis.Redis(port=redis_server.port) as client:
        for key in client.scan_iter(count=1000):
            if name in key:
                found[key] = client.dump(key)
            elif client.type(key) == b"hash":
                fields: Any = client.hgetall(key)
                found |= {key + b" " + field: value for field, value in fields.items() if name in field}
    return found


async def test_nothing_that_callers_do_touches_another_school(redis_url: str, redis_server: RedisServer) -> None:
    async with both_schools(redis_url) as engine:
        before_told = await warm_up(engine, THEIRS)
    before = kept_of(redis_server, THEIRS)
    assert len(before) > 3 * DAYS
    ours_before = kept_of(redis_server, OURS)
    async with running_engine(redis_url) as engine:
        await everything_told(engine, naming=("", OURS, THEIRS))
        for role in (Role.ADMIN, Role.SERVICE):
            intruder = engine.client(role, "intruder", OURS)
            for name, method in EVENTS.items():
                request = request_for(method, "s1", THEIRS, number=99_000)
                [answer] = await answers(engine.channel, method, request, intruder.metadata)
                outcome = answer.results[0] if name.endswith("IngestEvents") else answer
                assert failure_in(outcome.error).reason == "OTHER_SCHOOL"
    assert kept_of(redis_server, THEIRS) == before
    assert kept_of(redis_server, OURS) != ours_before  # or nothing was done
    async with running_engine(redis_url) as engine:
        assert await warm_up(engine, THEIRS) == before_told


async def test_a_refused_event_among_good_ones_leaves_no_trace_of_its_school(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with running_engine(redis_url) as engine:
        service = engine.client(school_id=OURS)
        events = [
            quiz_event(number=1),
            quiz_event(number=2, school_id=THEIRS),
            quiz_event(number=3, school_id=OURS),
        ]
        for results in (await service.ingest(*events), [answer async for answer in service.stream(events)]):
            assert [result.accepted for result in results] == [True, False, True]
            assert failure_in(results[1].error).reason == "OTHER_SCHOOL"
            assert results[1].event_id == event_id(2)
    assert kept_of(redis_server, THEIRS) == {}


# --- cohorts ----------------------------------------------------------------------------------------------


async def test_a_cohort_is_of_the_students_of_its_school(redis_url: str) -> None:
    async with both_schools(redis_url) as engine:
        found = {}
        for school_id in (OURS, THEIRS):
            teacher = engine.client(Role.TEACHER, "t", school_id)
            request = request_for(CONTRACT["AnalyticsService.CompareToCohort"], "s1")
            method = CONTRACT["AnalyticsService.CompareToCohort"]
            [found[school_id]] = await answers(engine.channel, method, request, teacher.metadata)
        assert [found[school_id].cohort.count for school_id in (OURS, THEIRS)] == [3, 2]
        assert found[OURS].cohort.mean < found[THEIRS].cohort.mean


async def test_a_teacher_reaches_no_cohort_of_another_school(redis_url: str, redis_server: RedisServer) -> None:
    async with both_schools(redis_url) as engine:
        teacher = engine.client(Role.TEACHER, "t", OURS)
        admin = engine.client(Role.ADMIN, "a", OURS)
        only_theirs = engine.client(Role.ADMIN, "b", THEIRS)
        create = CONTRACT["AnalyticsService.CreateCohort"]
        await answers(engine.channel, create, request_for(create, "s1", cohort_id="secret"), only_theirs.metadata)
        before = kept_of(redis_server, THEIRS)
        for name, method in CONTRACT.items():
            if not name.startswith("AnalyticsService.") or name.endswith(("GetHistory", "ListCohorts")):
                continue
            for client in (teacher, admin):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await answers(engine.channel, method, request_for(method, "s1", THEIRS), client.metadata)
                assert failure_from(refused.value).reason == "OTHER_SCHOOL"
            if name.endswith("CreateCohort"):
                continue
            fields: dict[str, Any] = {
                field.name: "secret" for field in method.input_type.fields if field.name.endswith("cohort_id")
            }
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await answers(engine.channel, method, request_for(method, "s1", **fields), teacher.metadata)
            assert failure_from(refused.value).reason == "COHORT_NOT_FOUND"
        listing = CONTRACT["AnalyticsService.ListCohorts"]
        [ours] = await answers(engine.channel, listing, request_for(listing, "s1"), teacher.metadata)
        assert [cohort.cohort_id for cohort in ours.cohorts] == ["class-7b"]
        assert kept_of(redis_server, THEIRS) == before


# --- announcements, caches and limits ---------------------------------------------------------------------


async def test_a_watcher_hears_of_his_school_alone(redis_url: str) -> None:
    async with both_schools(redis_url) as engine:
        watch: Any = engine.client(Role.TEACHER, "t", OURS).watch("s1")
        assert (await watch.read()).initial
        await engine.client().ingest(quiz_event(8, 8, number=5000, student_id="s1", school_id=THEIRS))
        await engine.client().ingest(quiz_event(1, 8, number=5001, student_id="s1", school_id=OURS))
        heard = (await watch.read()).mastery  # the change of the other school was first, and announced first
        assert (heard.school_id, heard.version) == (OURS, DAYS + 1)
        watch.cancel()


async def test_a_change_in_one_school_leaves_the_cached_reading_of_the_other(redis_url: str) -> None:
    async with both_schools(redis_url) as engine:
        ours, theirs = engine.client(Role.TEACHER, "t", OURS), engine.client(Role.TEACHER, "t", THEIRS)
        first = await ours.get(), await theirs.get()
        await engine.client().ingest(quiz_event(8, 8, number=5000, school_id=THEIRS))

        async def is_seen() -> bool:
            return bool((await theirs.get()).version == DAYS + 1)

        await eventually(is_seen)
        assert await ours.get() == first[0]
        assert (await theirs.get()).school_id == THEIRS


async def test_counts_of_a_course_are_those_of_its_school(redis_url: str, redis_server: RedisServer) -> None:
    await settle(redis_url, OURS, THEIRS)
    courses = [key for key in kept_of(redis_server, THEIRS) if b"course:{algebra}" in key]
    assert courses
    before = kept_of(redis_server, THEIRS)
    async with running_engine(redis_url) as engine:
        for number in range(20):
            event = quiz_event(number=6000 + number, student_id=f"new-{number}", course_id="algebra")
            event.event_time.GetCurrentTime()
            await engine.client(school_id=OURS).ingest(event)
    assert kept_of(redis_server, THEIRS) == before
    assert any(b"course:{algebra}" in key for key in kept_of(redis_server, OURS))


async def test_who_calls_too_often_in_one_school_is_served_in_another(redis_url: str) -> None:
    async with both_schools(redis_url, rate_limit_people=100) as engine:
        same = [engine.client(Role.TEACHER, "t1", school_id) for school_id in (OURS, THEIRS)]
        reasons: list[str] = []

        async def call(client: Client) -> None:
            try:
                await client.get()
            except grpc.aio.AioRpcError as error:
                reasons.append(failure_from(error).reason)

        await asyncio.gather(*(call(same[0]) for _ in range(250)))
        assert set(reasons) == {"RATE_LIMITED"}
        reasons.clear()
        await call(same[1])
        assert reasons == []


# --- compliance -------------------------------------------------------------------------------------------


async def test_an_audit_log_tells_of_its_own_school_alone(redis_url: str) -> None:
    async with both_schools(redis_url) as engine:
        for school_id in (OURS, THEIRS):
            for number in range(3):
                await engine.client(Role.TEACHER, f"teacher-{number}-of-{school_id}", school_id).get()
        admin = engine.client(Role.ADMIN, "admin", OURS)
        stub: Any = ComplianceServiceStub(engine.channel)
        asked = compliance.ListAuditEntriesRequest(page_size=1000)
        entries: list[Any] = []

        async def are_written() -> bool:
            entries[:] = (await stub.ListAuditEntries(asked, metadata=admin.metadata)).entries
            return len({entry.caller for entry in entries if entry.caller.startswith("teacher-")}) == 3

        await eventually(are_written)
        assert {entry.school_id for entry in entries} == {OURS}
        assert not any(THEIRS in entry.caller for entry in entries)
        filtered = compliance.ListAuditEntriesRequest(caller=f"teacher-1-of-{THEIRS}")
        assert not (await stub.ListAuditEntries(filtered, metadata=admin.metadata)).entries


async def test_an_erasure_in_one_school_leaves_the_namesake_in_another(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with both_schools(redis_url) as engine:
        await warm_up(engine, THEIRS)
        ours, theirs = engine.client(Role.ADMIN, "a", OURS), engine.client(Role.ADMIN, "a", THEIRS)
        before, held = await theirs.get("s1"), kept_of(redis_server, THEIRS)
        stub: Any = ComplianceServiceStub(engine.channel)
        await stub.EraseStudentData(compliance.EraseStudentDataRequest(student_id="s1"), metadata=ours.metadata)
        assert await theirs.get("s1") == before
        now = kept_of(redis_server, THEIRS)
        own = {key for key in held if b"{s1}" in key and b":audit" not in key}
        assert own
        assert {key: now.get(key) for key in own} == {key: held[key] for key in own}
