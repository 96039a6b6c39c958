"""What no caller may break: ill-formed requests, requests too large, requests while Redis is away."""

import asyncio
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from math import inf, nan
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.type.date_pb2 import Date

from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_grpc.application.callers import Role
from mastery_grpc.assembly import MASTERY_SERVICE
from tests.builders import at
from tests.integration.serving import (
    Client,
    Engine,
    Failure,
    a_day,
    components,
    failure_from,
    failure_in,
    failure_of,
    quiz_event,
    running_engine,
    weights,
)
from tests.real.redis_servers import RedisServer

SEED = 20260112
RANDOM_REQUESTS = 2000
METHODS = [method.name for method in MASTERY_SERVICE.methods]

# What a message for callers never contains: traces, drivers, where the storage is.
INDISCREET = ["Traceback", 'File "', "redis", "Redis", "hiredis", "127.0.0.1", "Errno", "Error:", "object at 0x"]


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Client:
    return engine.client()


def violations_of(failure: Failure) -> list[str]:
    """Returns the fields found wrong, of a failure that is the caller's fault and says so."""
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert all(description for _, description in failure.violations)
    assert_discreet(failure)
    return failure.fields


def assert_discreet(failure: Failure) -> None:
    assert [word for word in INDISCREET if word in failure.message] == []


# --- rules of the fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize("student_id", ["", "x" * 65, "a b", "ü", "a/b", "{s1}", "s1\n", "s1:events", "\x00"])
async def test_an_ill_formed_student_id_is_refused_everywhere(client: Client, student_id: str) -> None:
    assert violations_of(await failure_of(client.get(student_id))) == ["student_id"]
    assert violations_of(await failure_of(client.calculate(student_id))) == ["student_id"]
    assert violations_of(await failure_of(client.batch("s1", student_id))) == ["student_ids[1]"]
    assert violations_of(await failure_of(client.watch("s1", student_id).read())) == ["student_ids[1]"]
    [result] = await client.ingest(quiz_event(student_id=student_id))
    assert violations_of(failure_in(result.error)) == ["student_id"]


@pytest.mark.parametrize("student_id", ["x" * 64, "-", "A-z_0", "0"])
async def test_an_id_at_the_limits_of_the_rule_is_taken(client: Client, student_id: str) -> None:
    assert (await client.calculate(student_id)).mastery.student_id == student_id


@pytest.mark.parametrize("school_id", ["x" * 65, "a b", "a:b"])
async def test_an_ill_formed_school_id_is_refused(client: Client, school_id: str) -> None:
    assert violations_of(await failure_of(client.get(school_id=school_id))) == ["school_id"]
    [result] = await client.ingest(quiz_event(school_id=school_id))
    assert violations_of(failure_in(result.error)) == ["school_id"]


@pytest.mark.parametrize("value", [nan, inf, -inf, -0.001, 1.001, 1e308])
@pytest.mark.parametrize("name", ["completion", "quiz", "quality", "consistency"])
async def test_a_score_that_is_no_fraction_is_refused(client: Client, name: str, value: float) -> None:
    failure = await failure_of(client.calculate(components=components(**{name: value})))
    assert set(violations_of(failure)) == {f"components.{name}"}


@pytest.mark.parametrize("value", [0.0, 1.0, 5e-324])
async def test_a_score_at_the_limits_is_taken(client: Client, value: float) -> None:
    assert (await client.calculate(components=components(value))).mastery.components.quiz == value


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (None, ["components"]),
        (
            mastery_pb2.Components(),
            [f"components.{name}" for name in ("completion", "quiz", "quality", "consistency")],
        ),
        (mastery_pb2.Components(completion=0, quiz=0, quality=0), ["components.consistency"]),
    ],
)
async def test_a_missing_component_is_not_taken_for_zero(
    client: Client, given: mastery_pb2.Components | None, missing: list[str]
) -> None:
    assert violations_of(await failure_of(client.calculate(components=given))) == missing


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        (weights(0.4, 0.3, 0.2, 0.0), ["weights"]),
        (weights(0.4, 0.3, 0.2, 0.1 + 1e-8), ["weights"]),
        (mastery_pb2.Weights(), ["weights"]),
        (weights(2, -1, 0, 0), ["weights.completion", "weights.quiz"]),
        (weights(nan, 1, 0, 0), ["weights", "weights.completion"]),
    ],
)
async def test_weights_that_are_no_shares_of_one_are_refused(
    client: Client, given: mastery_pb2.Weights, fields: list[str]
) -> None:
    assert sorted(set(violations_of(await failure_of(client.calculate(weights=given))))) == fields


async def test_weights_that_sum_to_one_but_for_rounding_are_taken(client: Client) -> None:
    tenths = weights(0.1 + 0.2, 0.3, 0.3, 0.1)
    assert (await client.calculate(components=components(1), weights=tenths)).mastery.mastery_score <= 1


@pytest.mark.parametrize(
    ("year", "month", "day"),
    [
        (2026, 2, 30),
        (2026, 2, 29),
        (1900, 2, 29),
        (2026, 4, 31),
        (2026, 13, 1),
        (2026, 0, 1),
        (2026, 1, 0),
        (0, 1, 1),
        (2026, 1, 32),
        (10000, 1, 1),
        (-1, 1, 1),
        (0, 0, 0),
        (2026, 1, -5),
    ],
)
async def test_a_date_in_no_calendar_is_refused(client: Client, year: int, month: int, day: int) -> None:
    failure = await failure_of(client.get(date=a_day(year, month, day)))
    assert violations_of(failure) == ["date"]
    assert "must be a day of the calendar" in failure.violations[0][1]


@pytest.mark.parametrize("date", [a_day(2024, 2, 29), a_day(2000, 2, 29), a_day(1, 1, 1), a_day(9999, 12, 31)])
async def test_every_day_of_the_calendar_may_be_asked_for(client: Client, date: Date) -> None:
    assert (await failure_of(client.get(date=date))).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("request_id", ["x", "550e8400e29b41d4a716446655440000", "g" * 36, " " * 36, "1" * 5000])
async def test_a_request_id_that_is_no_uuid_is_refused(client: Client, request_id: str) -> None:
    assert violations_of(await failure_of(client.calculate(request_id=request_id))) == ["request_id"]


async def test_the_number_of_items_is_limited_to_a_thousand(client: Client) -> None:
    many = [f"s{number}" for number in range(1001)]
    assert violations_of(await failure_of(client.batch())) == ["student_ids"]
    assert violations_of(await failure_of(client.batch(*many))) == ["student_ids"]
    assert violations_of(await failure_of(client.watch().read())) == ["student_ids"]
    assert violations_of(await failure_of(client.watch(*many).read())) == ["student_ids"]
    assert violations_of(await failure_of(client.ingest())) == ["events"]
    events = [quiz_event(number=number) for number in range(1001)]
    assert violations_of(await failure_of(client.ingest(*events))) == ["events"]


async def test_a_watch_of_the_same_student_twice_is_refused(client: Client) -> None:
    assert violations_of(await failure_of(client.watch("s1", "s1").read())) == ["student_ids"]


async def test_every_violation_of_a_request_is_listed(client: Client) -> None:
    call = client.calculate("a b", school_id="c d", components=components(2), request_id="e")
    assert violations_of(await failure_of(call)) == [
        "student_id",
        "school_id",
        *(f"components.{name}" for name in ("completion", "quiz", "quality", "consistency")),
        "request_id",
    ]


async def test_a_thousand_ill_formed_ids_are_still_the_callers_fault(client: Client) -> None:
    fields = violations_of(await failure_of(client.batch(*("ill formed" for _ in range(1000)))))
    assert fields[:2] == ["student_ids[0]", "student_ids[1]"]


def _with(**fields: Any) -> events_pb2.LearningEvent:
    return quiz_event(**fields)


def _at(seconds: int, nanos: int = 0) -> events_pb2.LearningEvent:
    event = quiz_event()
    event.event_time.seconds, event.event_time.nanos = seconds, nanos
    return event


def _of(**payload: Message) -> events_pb2.LearningEvent:
    event = quiz_event()
    event.ClearField("quiz_performance_submitted")
    for name, message in payload.items():
        getattr(event, name).CopyFrom(message)
    return event


def _taking(seconds: int) -> events_pb2.QuizPerformanceSubmitted:
    quiz = events_pb2.QuizPerformanceSubmitted(total_questions=1)
    quiz.time_spent.seconds = seconds
    return quiz


BAD_EVENTS: list[tuple[events_pb2.LearningEvent, list[str]]] = [
    (_with(event_id=""), ["event_id"]),
    (_with(event_id="550e8400"), ["event_id"]),
    (_with(source="x" * 256), ["source"]),
    (_with(course_id="x" * 256), ["course_id"]),
    (_at(-1), ["event_time"]),
    (_at(253402300800), ["event_time"]),
    (_at(1768386600, -1), ["event_time"]),
    (_at(1768386600, 1_000_000_000), ["event_time"]),
    (_of(), ["payload"]),
    (quiz_event(3, 2), ["quiz_performance_submitted"]),
    (quiz_event(0, 0), ["quiz_performance_submitted.total_questions"]),
    (quiz_event(-1, 1), ["quiz_performance_submitted.correct_answers"]),
    (
        _of(
            quiz_performance_submitted=events_pb2.QuizPerformanceSubmitted(total_questions=1, confidence_score=nan)
        ),
        ["quiz_performance_submitted.confidence_score"],
    ),
    (_of(quiz_performance_submitted=_taking(-1)), ["quiz_performance_submitted.time_spent"]),
    (_of(quiz_performance_submitted=_taking(31622401)), ["quiz_performance_submitted.time_spent"]),
    (
        _of(
            exercise_completion_submitted=events_pb2.ExerciseCompletionSubmitted(
                total_exercises=1, completed_exercises=2
            )
        ),
        ["exercise_completion_submitted"],
    ),
    (_of(quality_assessment_completed=events_pb2.QualityAssessmentCompleted()), ["quality_assessment_completed"]),
    (
        _of(quality_assessment_completed=events_pb2.QualityAssessmentCompleted(correctness_score=inf)),
        ["quality_assessment_completed.correctness_score"],
    ),
    (
        _of(consistency_activity_recorded=events_pb2.ConsistencyActivityRecorded(consistency_score=-0.5)),
        ["consistency_activity_recorded.consistency_score"],
    ),
    (
        _of(mastery_calculation_requested=events_pb2.MasteryCalculationRequested()),
        ["mastery_calculation_requested.components"],
    ),
]


async def test_a_bad_event_is_refused_by_its_field_and_leaves_no_trace(
    client: Client, redis_server: RedisServer
) -> None:
    results = await client.ingest(*(event for event, _ in BAD_EVENTS))
    found = [sorted(set(violations_of(failure_in(result.error)))) for result in results]
    assert found == [fields for _, fields in BAD_EVENTS]
    with redis_server.client() as redis:
        assert [
            key for key in redis.scan_iter() if not any(part in key for part in ("audit", "limit", "upkeep"))
        ] == []


# --- bytes, methods and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "data",
    [b"\xff", b"\x0a\x7f", b"\x0a\x02\xc3\x28", b"\x08", b"\x0b\x0b\x0b", b"\xff" * 100],
    ids=["cut tag", "cut string", "no utf-8", "cut number", "open groups", "noise"],
)
async def test_bytes_that_are_no_message_are_the_callers_fault(client: Client, method: str, data: bytes) -> None:
    assert violations_of(await failure_of(client.send(method, data))) == ["request"]


async def test_fields_of_a_newer_contract_are_ignored(client: Client) -> None:
    await client.calculate()
    newer = pb.GetMasteryRequest(student_id="s1").SerializeToString() + b"\x9a\x3f\x03abc"
    assert pb.GetMasteryResponse.FromString(await client.send("GetMastery", newer)).mastery.version == 1


async def test_an_event_kind_of_a_newer_contract_is_refused_alone(client: Client) -> None:
    newer = _of().SerializeToString() + b"\xa2\x06\x00"  # a payload of number 100
    data = b"".join(_embedded(1, event) for event in (newer, quiz_event(number=2).SerializeToString()))
    results = pb.IngestEventsResponse.FromString(await client.send("IngestEvents", data)).results
    assert [result.accepted for result in results] == [False, True]
    assert failure_in(results[0].error).fields == ["payload"]


def _embedded(number: int, message: bytes) -> bytes:
    assert len(message) < 128
    return bytes([number << 3 | 2, len(message)]) + message


@pytest.mark.parametrize(
    "path", ["/mastery.v1.MasteryService/Nothing", "/mastery.v2.MasteryService/GetMastery", "/x", "//"]
)
async def test_an_unknown_method_is_unimplemented(client: Client, path: str) -> None:
    channel: Any = client.channel
    failure = await failure_of(channel.unary_unary(path)(b"", metadata=client.metadata, timeout=5))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_one_just_below_is_not(redis_url: str) -> None:
    async with running_engine(redis_url, grpc_max_receive_message_size=10_000) as engine:
        client = engine.client()
        for method in METHODS:
            failure = await failure_of(client.send(method, b"\x00" * 10_001))
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert_discreet(failure)
        assert violations_of(await failure_of(client.send("GetMastery", b"\xff" * 10_000))) == ["request"]
        await client.calculate()


# --- what does not exist ----------------------------------------------------------------------------------


async def test_a_student_not_known_is_named_as_the_missing_resource(client: Client) -> None:
    failure = await failure_of(client.get("nobody"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STUDENT_NOT_FOUND")
    assert failure.resource == ("mastery.v1.Student", "nobody")
    assert_discreet(failure)


async def test_a_day_without_events_is_named_as_the_missing_resource(client: Client) -> None:
    await client.ingest(quiz_event(time=at(0)))
    failure = await failure_of(client.get(date=a_day(2026, 1, 13)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "SNAPSHOT_NOT_FOUND")
    assert failure.resource == ("mastery.v1.MasterySnapshot", "s1/2026-01-13")


async def test_a_day_of_a_student_not_known_is_for_want_of_the_student(client: Client) -> None:
    failure = await failure_of(client.get("nobody", date=a_day(2026, 1, 13)))
    assert failure.reason == "STUDENT_NOT_FOUND"


async def test_what_varies_in_a_failure_is_in_its_metadata_too(engine: Engine) -> None:
    client, confined = engine.client(), engine.client(Role.STUDENT, "s1", "north")
    await client.ingest(quiz_event(time=at(0)))
    told = [
        await failure_of(client.get("a b")),
        await failure_of(client.get("nobody")),
        await failure_of(client.get(date=a_day(2026, 1, 13))),
        await failure_of(confined.get("s2")),
        await failure_of(confined.get(school_id="south")),
        await failure_of(confined.batch("s1")),
    ]
    assert [dict(failure.metadata) for failure in told] == [
        {"field": "student_id"},
        {"student_id": "nobody"},
        {"student_id": "s1", "date": "2026-01-13"},
        {"field": "student_id"},
        {"school_id": "south"},
        {"role": "student", "method": "mastery.v1.MasteryService/BatchGetMastery"},
    ]


# --- Redis away -------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Client], Any]] = {
    "GetMastery": lambda client: client.get("cold"),
    "GetMastery on a day": lambda client: client.get(date=a_day(2026, 1, 12)),
    "BatchGetMastery": lambda client: client.batch("cold", "colder"),
    "CalculateMastery": lambda client: client.calculate(),
    "CalculateMastery preview": lambda client: client.calculate(validate_only=True),
    "IngestEvents": lambda client: client.ingest(quiz_event(number=9)),
    "StreamEvents": lambda client: client.stream([quiz_event(number=9)]).read(),
    "WatchMastery": lambda client: client.watch("s1").read(),
}


@pytest.mark.parametrize("away", ["kill", "pause"])
async def test_while_redis_is_away_callers_are_told_when_to_retry_and_all_heals(
    redis_url: str, redis_server: RedisServer, away: str
) -> None:
    # The breaker stays closed: each call asks for itself, and none is told how long an open one has to go.
    async with running_engine(redis_url, breaker_failures=1_000_000) as engine:
        client = engine.client()
        getattr(redis_server, away)()
        started = time.monotonic()
        failures = await asyncio.gather(*(failure_of(call(client)) for call in CALLS.values()))
        assert time.monotonic() - started < 3.0  # two tries of half a second, and slack
        for failure in failures:
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
            assert failure.retry_delay == 1.0
            assert_discreet(failure)
        redis_server.revive()
        async with asyncio.timeout(5):
            for call in CALLS.values():
                await _until_found_or_answered(call, client)


async def _until_found_or_answered(call: Callable[[Client], Any], client: Client) -> None:
    codes: list[grpc.StatusCode] = []
    while not codes or codes[-1] is grpc.StatusCode.UNAVAILABLE:
        try:
            await call(client)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
            await asyncio.sleep(0.02)
        else:
            return
    assert codes[-1] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("away", ["pause", "kill"])
async def test_what_is_cached_is_still_read_while_redis_is_away(
    client: Client, redis_server: RedisServer, away: str
) -> None:
    await client.ingest(quiz_event())
    await asyncio.sleep(0.1)  # until the announcement of the change has been heard
    cached = await client.get()
    getattr(redis_server, away)()
    await asyncio.sleep(0.3)
    assert await client.get() == cached


async def test_a_deadline_shorter_than_the_outage_ends_the_call_in_time(
    client: Client, redis_server: RedisServer
) -> None:
    redis_server.pause()
    started = time.monotonic()
    request = pb.GetMasteryRequest(student_id="cold")
    failure = await failure_of(client.send("GetMastery", request, deadline=0.2))
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 0.5


async def test_a_call_without_a_deadline_is_given_one(redis_url: str, redis_server: RedisServer) -> None:
    async with running_engine(redis_url, grpc_default_timeout=0.2) as engine:
        client = engine.client()
        redis_server.pause()
        failure = await failure_of(
            client.stub.GetMastery(pb.GetMasteryRequest(student_id="cold"), metadata=client.metadata)
        )
        assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        redis_server.resume()


# --- anything at all --------------------------------------------------------------------------------------

IDS = ["s1", "s2", "", "x" * 65, "a b", "ü", "550e8400-e29b-41d4-a716-446655440000", "\x00", "' OR 1=1", "{}"]
NUMBERS = [0, 1, -1, 2, 29, 2026, 10_000, 2**31 - 1, -(2**31)]
FRACTIONS = [0.0, 1.0, 0.25, 0.5, nan, inf, -inf, -1.0, 1e300, 5e-324]


class RandomMessages:
    """Builds requests of any shape from their descriptors, half of them nearly right."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def of(self, message_type: type[Message], *, depth: int = 0) -> Message:
        message = message_type()
        density = self._random.choice([0.3, 0.9, 1.0])
        for field in message.DESCRIPTOR.fields:
            if depth < 6 and self._random.random() < density:
                self._set(message, field, depth)
        return message

    def _set(self, message: Message, field: Any, depth: int) -> None:
        if field.is_repeated:
            values = [self._value(field, depth) for _ in range(self._random.choice([0, 1, 2, 5]))]
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._value(field, depth))
        else:
            setattr(message, field.name, self._value(field, depth))

    def _value(self, field: Any, depth: int) -> Any:
        pick = self._random.choice
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                return self.of(GetMessageClass(field.message_type), depth=depth + 1)
            case FieldDescriptor.CPPTYPE_STRING:
                if field.name == "event_id":
                    return pick([f"{self._random.getrandbits(32):08x}-0000-4000-8000-000000000000", *IDS])
                usual = "s1" if field.name.startswith("student_id") else ""
                return pick([*IDS, *[usual] * 2 * len(IDS)])
            case FieldDescriptor.CPPTYPE_DOUBLE:
                return pick(FRACTIONS) if self._random.random() < 0.2 else pick([0.0, 0.25, 0.5, 1.0])
            case FieldDescriptor.CPPTYPE_INT32:
                return pick(NUMBERS)
            case FieldDescriptor.CPPTYPE_INT64:
                return pick([*NUMBERS, 1768386600, 253402300799, 253402300800, 2**63 - 1, -(2**63)])
            case FieldDescriptor.CPPTYPE_BOOL:
                return pick([True, False])
            case other:
                raise NotImplementedError(f"{field.full_name}: {other}")

    def damaged(self, data: bytes) -> bytes:
        """Returns the bytes with one of them changed, or a piece cut off."""
        if not data:
            return struct.pack("B", self._random.randrange(256))
        place = self._random.randrange(len(data))
        if self._random.random() < 0.5:
            return data[:place]
        return data[:place] + bytes([self._random.randrange(256)]) + data[place + 1 :]


async def _codes(client: Client, method: str, requests: list[bytes], *, at_once: int = 50) -> Counter[str]:
    codes: Counter[str] = Counter()
    limit = asyncio.Semaphore(at_once)

    async def send(request: bytes) -> None:
        async with limit:
            try:
                await client.send(method, request)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                failure = failure_from(error)
                codes[failure.code.name] += 1
                assert_discreet(failure)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(send(request))
    return codes


@pytest.mark.parametrize("method", METHODS)
async def test_no_request_whatever_is_an_error_of_the_server(client: Client, method: str) -> None:
    await client.calculate("s1")
    anything = RandomMessages(SEED)
    request_type = GetMessageClass(MASTERY_SERVICE.methods_by_name[method].input_type)
    requests = [anything.of(request_type).SerializeToString() for _ in range(RANDOM_REQUESTS)]
    requests[::4] = [anything.damaged(request) for request in requests[::4]]
    codes = await _codes(client, method, requests, at_once=400 if method == "WatchMastery" else 50)
    assert codes.total() == RANDOM_REQUESTS
    assert codes["OK"] > 20
    assert codes["INVALID_ARGUMENT"] > 20
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
