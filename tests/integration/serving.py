"""A running engine behind a real socket, callers of every role, and what a failed call tells."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from google.type.date_pb2 import Date
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery.v1.mastery_service_pb2_grpc import MasteryServiceStub
from mastery_grpc.app import running_server
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.assembly import MASTERY_SERVICE
from mastery_grpc.rpc.authentication import issue_token
from mastery_grpc.settings import Settings
from tests.builders import at, event_id

if TYPE_CHECKING:
    from mastery.v1.mastery_service_pb2_grpc import MasteryServiceAsyncStub

SECRET = "a-secret-that-only-the-tests-sign-with-and-long-enough-for-any-algorithm"
SERVICE_NAME = MASTERY_SERVICE.full_name
DEADLINE = 10.0
"""Of every call of the tests, in seconds: none waits for ever."""

PATIENCE = 2.0
"""Of a watcher to whom nothing is said, in seconds: long enough to be refused on a busy machine."""
STREAMS = {"StreamEvents", "WatchMastery"}

Metadata = tuple[tuple[str, str], ...]
DETAILS: tuple[type[Message], ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
)


# --- callers ----------------------------------------------------------------------------------------------


def token(role: Role = Role.SERVICE, subject: str = "someone", school_id: str = "", *, hours: float = 1) -> str:
    return issue_token(
        Caller(subject, role, school_id),
        secret=SECRET,
        algorithm="HS256",
        expires_at=time.time() + hours * 3600,
    )


def bearer(value: str) -> Metadata:
    return (("authorization", f"Bearer {value}"),)


class Client:
    """Calls the service with one token."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.channel = channel
        self.metadata = metadata
        self.stub: MasteryServiceAsyncStub = MasteryServiceStub(channel)

    async def get(self, student_id: str = "s1", *, date: Date | None = None, school_id: str = "") -> Any:
        request = pb.GetMasteryRequest(student_id=student_id, date=date, school_id=school_id)
        return (await self._send(self.stub.GetMastery, request)).mastery

    async def batch(self, *student_ids: str) -> list[Any]:
        request = pb.BatchGetMasteryRequest(student_ids=student_ids)
        return list((await self._send(self.stub.BatchGetMastery, request)).results)

    async def calculate(self, student_id: str = "s1", **fields: Any) -> Any:
        request = pb.CalculateMasteryRequest(student_id=student_id, **{"components": components()} | fields)
        return await self._send(self.stub.CalculateMastery, request)

    async def ingest(self, *events: events_pb2.LearningEvent) -> list[Any]:
        return list((await self._send(self.stub.IngestEvents, pb.IngestEventsRequest(events=events))).results)

    def stream(
        self, events: Iterable[events_pb2.LearningEvent] | None = None
    ) -> "grpc.aio.StreamStreamCall[pb.StreamEventsRequest, pb.StreamEventsResponse]":
        """Sends these events and ends; without any it stays open to be written to."""
        requests = None if events is None else (pb.StreamEventsRequest(event=event) for event in events)
        return self.stub.StreamEvents(requests, metadata=self.metadata, timeout=30)

    def watch(self, *student_ids: str) -> "grpc.aio.UnaryStreamCall[Any, pb.WatchMasteryResponse]":
        return self.stub.WatchMastery(
            pb.WatchMasteryRequest(student_ids=student_ids), metadata=self.metadata, timeout=30
        )

    async def send(self, method: str, request: Message | bytes, *, deadline: float = DEADLINE) -> bytes:
        """Makes any call and returns the first answer, as bytes; none from a watcher who waits in vain."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        path = f"/{SERVICE_NAME}/{method}"
        terms: dict[str, Any] = {"metadata": self.metadata, "timeout": deadline}
        channel: Any = self.channel
        if method not in STREAMS:
            return bytes(await channel.unary_unary(path)(data, **terms))
        if method == "StreamEvents":
            call = channel.stream_stream(path)(iter([data]), **terms)
        else:
            call = channel.unary_stream(path)(data, **terms)
        try:
            async with asyncio.timeout(PATIENCE if method == "WatchMastery" else deadline):
                answer = await call.read()
        except TimeoutError:
            call.cancel()
            return b""
        return b"" if answer is grpc.aio.EOF else bytes(answer)

    async def _send(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=self.metadata, timeout=DEADLINE)


# --- the engine -------------------------------------------------------------------------------------------


class Engine:
    """One running server, as its clients see it."""

    def __init__(self, port: int, channel: grpc.aio.Channel) -> None:
        self.port = port
        self.channel = channel
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def client(self, role: Role = Role.SERVICE, subject: str = "someone", school_id: str = "") -> Client:
        return Client(self.channel, bearer(token(role, subject, school_id)))

    def client_with(self, metadata: Metadata) -> Client:
        return Client(self.channel, metadata)

    async def is_serving(self, service: str = SERVICE_NAME) -> bool:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_ready(self, *, ready: bool = True) -> None:
        async def as_wanted() -> bool:
            return await self.is_serving() == ready

        await eventually(as_wanted)


def settings_for(redis_url: str, **given: Any) -> Settings:
    defaults: dict[str, Any] = {
        "redis_url": redis_url,
        "redis_timeout": 0.5,
        "kafka_bootstrap_servers": "",
        "grpc_host": "127.0.0.1",
        "grpc_port": 0,
        "grpc_drain_timeout": 2.0,
        "jwt_secret": SECRET,
        "rate_limit_people": 0,  # tests that are not about limits call as often as they like
    }
    return Settings(**defaults | given)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Engine]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Engine(port, channel)


@asynccontextmanager
async def running_engine(redis_url: str, **given: Any) -> AsyncIterator[Engine]:
    """Serves with these settings, ready to be called."""
    async with running_server(settings_for(redis_url, **given)) as port, connected(port) as engine:
        await engine.until_ready()
        yield engine


async def eventually(condition: Callable[[], Awaitable[bool]], *, within: float = 8.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.02)


# --- what a failed call tells -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A failed call, or a failed item of one."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    violations: tuple[tuple[str, str], ...] = ()
    """Pairs of field and description."""
    resource: tuple[str, str] | None = None
    retry_delay: float | None = None
    quota: tuple[str, str] | None = None
    """Subject and description."""

    @property
    def fields(self) -> list[str]:
        return [field for field, _ in self.violations]


CODES = {code.value[0]: code for code in grpc.StatusCode}


def failure_in(status: status_pb2.Status) -> Failure:
    told: dict[str, Any] = {}
    for packed in status.details:
        [detail_type] = [known for known in DETAILS if packed.Is(known.DESCRIPTOR)]
        detail: Any = detail_type()
        packed.Unpack(detail)
        match detail:
            case error_details_pb2.ErrorInfo():
                assert detail.domain == "mastery.v1"
                told |= {"reason": detail.reason, "metadata": tuple(sorted(detail.metadata.items()))}
            case error_details_pb2.BadRequest():
                told["violations"] = tuple((each.field, each.description) for each in detail.field_violations)
            case error_details_pb2.ResourceInfo():
                told["resource"] = detail.resource_type, detail.resource_name
            case error_details_pb2.RetryInfo():
                told["retry_delay"] = detail.retry_delay.ToMilliseconds() / 1000
            case error_details_pb2.QuotaFailure():
                [violation] = detail.violations
                told["quota"] = violation.subject, violation.description
    return Failure(CODES[status.code], status.message, **told)


def failure_from(error: grpc.aio.AioRpcError) -> Failure:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a finished call in all but its type
    return Failure(error.code(), error.details() or "") if status is None else failure_in(status)


async def failure_of(call: Awaitable[Any]) -> Failure:
    """Awaits a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return failure_from(raised.value)


# --- messages ---------------------------------------------------------------------------------------------


def components(value: float = 0.5, **given: float) -> mastery_pb2.Components:
    values = {"completion": value, "quiz": value, "quality": value, "consistency": value} | given
    return mastery_pb2.Components(**values)


def weights(
    completion: float = 0.4, quiz: float = 0.3, quality: float = 0.2, consistency: float = 0.1
) -> mastery_pb2.Weights:
    return mastery_pb2.Weights(completion=completion, quiz=quiz, quality=quality, consistency=consistency)


def quiz_event(
    correct: int = 1,
    total: int = 2,
    *,
    number: int = 1,
    student_id: str = "s1",
    time: datetime | None = None,
    **fields: Any,
) -> events_pb2.LearningEvent:
    """Returns a quiz result, a second later for each greater number."""
    event = events_pb2.LearningEvent(
        **{"event_id": event_id(number), "student_id": student_id} | fields,
        quiz_performance_submitted=events_pb2.QuizPerformanceSubmitted(
            total_questions=total, correct_answers=correct
        ),
    )
    event.event_time.FromDatetime(at(seconds=number) if time is None else time)
    return event


def a_day(year: int, month: int, day: int) -> Date:
    return Date(year=year, month=month, day=day)
