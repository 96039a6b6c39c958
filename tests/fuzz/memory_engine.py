"""The whole service on stores in memory: what the composition root builds, without a socket and without Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import fields
from datetime import timedelta
from itertools import product
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from pydantic import SecretStr

from mastery.v1 import analytics_service_pb2, batch_service_pb2, mastery_service_pb2
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.callers import CallClass, Caller, Role
from mastery_grpc.application.cohorts.manage import ManageCohorts
from mastery_grpc.application.cohorts.members import CohortMembers
from mastery_grpc.application.course_pulse import CountCourses
from mastery_grpc.assembly import ANALYTICS_SERVICE, COUNTING_INTERVAL, Services, Storage, services_of, utc_now
from mastery_grpc.domain.errors import ShuttingDown
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.student import Mastery
from mastery_grpc.rpc.pipeline import CallPipeline
from mastery_grpc.settings import Settings
from mastery_grpc.storage.course_pulse_cache import CachedCoursePulses
from mastery_grpc.storage.memory.advice import MemoryAdviceStore
from mastery_grpc.storage.memory.audit_log import MemoryAuditStore
from mastery_grpc.storage.memory.batches import MemoryBatches
from mastery_grpc.storage.memory.cohorts import MemoryCohortStore
from mastery_grpc.storage.memory.course_pulse import MemoryCoursePulses
from mastery_grpc.storage.memory.figures import MemoryFigures
from mastery_grpc.storage.memory.issued_forecasts import MemoryIssuedForecasts
from mastery_grpc.storage.memory.outlooks import MemoryOutlookStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.memory.student_records import MemoryStudentRecords
from tests.fuzz.messages import COHORTS, DONE, PENDING, SETTLER
from tests.integration.serving import quiz_event

Trailers = tuple[tuple[str, str | bytes], ...]


class Refused(Exception):
    """A call that was ended with a status."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Trailers) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code, self.message, self.trailers = code, message, trailers


class _Enough(BaseException):
    """Ends a stream of which one answer was wanted; no error, or the pipeline would answer it."""


class MemoryContext:
    """Implements as much of a servicer's context as the pipeline uses, for one call by a caller."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.answer: bytes | None = None
        self._code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return (("caller", self.caller),)

    def set_trailing_metadata(self, trailers: Trailers) -> None: ...

    def time_remaining(self) -> float:
        return 60.0

    def code(self) -> grpc.StatusCode | None:
        return self._code

    async def write(self, answer: bytes) -> None:
        self.answer = answer
        raise _Enough

    async def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers) -> NoReturn:
        self._code = code
        raise Refused(code, details, trailers)


class _Believing:
    async def caller(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        caller: Caller = next(value for key, value in metadata if key == "caller")
        return caller


class _Unlimited:
    async def admit(self, caller: Caller, call_class: CallClass) -> None: ...

    def open_stream(self, caller: Caller) -> AbstractContextManager[None]:
        return nullcontext()


class _EndingFeed:
    """Announces nothing, and ends: a watcher sees what is there and is sent away."""

    @asynccontextmanager
    async def subscribe(self, students: Sequence[StudentKey]) -> AsyncIterator["_EndingFeed"]:
        yield self

    async def next(self) -> Sequence[Mastery] | None:
        raise ShuttingDown


class MemoryEngine:
    """Handles calls in process. Nothing is shared between two engines."""

    def __init__(self, **given: Any) -> None:
        settings = Settings(jwt_secret=SecretStr("x" * 64), kafka_bootstrap_servers="", **given)
        self._services = _services(settings)
        self._handlers: dict[str, tuple[MethodDescriptor, Any]] = {}
        pipeline = CallPipeline(
            _Believing(),
            limiter=_Unlimited(),
            audit=self._services.audit,
            clock=utc_now,
            default_timeout=10.0,
            slow_reader_timeout=10.0,
        )
        for service, servicer in self._services.servicers.items():
            handlers: Any = pipeline.compose(service, servicer)
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                self._handlers[path] = method, handlers.service(_CallDetails(path))

    @property
    def methods(self) -> list[MethodDescriptor]:
        return [method for method, _ in self._handlers.values()]

    async def settle(self, students: Collection[str], schools: Collection[str]) -> None:
        """Gives each student ten days of quizzes in each school, and each school cohorts of them, so that there is
        something to tell."""
        ingest = mastery_service_pb2.DESCRIPTOR.services_by_name["MasteryService"].methods_by_name["IngestEvents"]
        now = utc_now()
        for student_id, school_id in product(students, schools):
            events = [
                quiz_event(
                    day % 4,
                    4,
                    number=day,
                    student_id=student_id,
                    school_id=school_id,
                    course_id="a1",
                    time=now - timedelta(days=day),
                )
                for day in range(1, 11)
            ]
            request = mastery_service_pb2.IngestEventsRequest(events=events)
            answer = await self.call(ingest, request.SerializeToString(), Caller(SETTLER, Role.SERVICE))
            results = mastery_service_pb2.IngestEventsResponse.FromString(answer or b"").results
            assert all(result.accepted for result in results)
        await self._create_cohorts(students, schools)
        await self._submit_batches(DONE, students, schools)
        working = asyncio.create_task(self._services.work_batches.run())
        await asyncio.sleep(0.01)  # a few students take no longer, and what is not done is as good for a test
        working.cancel()
        await asyncio.wait([working])
        await self._submit_batches(PENDING, students, schools)

    async def _create_cohorts(self, students: Collection[str], schools: Collection[str]) -> None:
        create = ANALYTICS_SERVICE.methods_by_name["CreateCohort"]
        for school_id, cohort_id in product(schools, COHORTS[::2]):
            whole = cohort_id == COHORTS[0]
            cohort = analytics_service_pb2.CreateCohortRequest(
                cohort_id=cohort_id,
                school_id=school_id,
                display_name=cohort_id,
                listed=None if whole else analytics_service_pb2.StudentList(student_ids=students),
                whole_school=analytics_service_pb2.WholeSchool() if whole else None,
            )
            await self.call(create, cohort.SerializeToString(), Caller(SETTLER, Role.ADMIN))

    async def _submit_batches(self, request_id: str, students: Collection[str], schools: Collection[str]) -> None:
        submit = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"].methods_by_name["SubmitBatch"]
        for school_id in schools:
            request = batch_service_pb2.SubmitBatchRequest(
                school_id=school_id,
                operation=batch_service_pb2.BATCH_OPERATION_RECALCULATE,
                items=[batch_service_pb2.BatchItem(student_id=student_id) for student_id in (*students, "?")],
                request_id=request_id,
            )
            await self.call(submit, request.SerializeToString(), Caller(SETTLER, Role.SERVICE))

    async def close(self) -> list[str]:
        """Writes the audit log to its end; returns the schools whose log is not as it was written."""
        await self._services.audit.flush()
        return [school for school in ("", "north") if not (await self._services.audit.verify(school)).intact]

    async def call(self, method: MethodDescriptor, data: bytes, caller: Caller) -> bytes | None:
        """Returns the first answer, None from a stream that has none. Raises Refused."""
        _, handler = self._handlers[f"/{method.containing_service.full_name}/{method.name}"]
        context = MemoryContext(caller)
        if not method.server_streaming:
            answer: bytes = await handler.unary_unary(data, context)
            return answer
        with suppress(_Enough):
            if method.client_streaming:
                await handler.stream_stream(_stream_of(data), context)
            else:
                await handler.unary_stream(data, context)
        return context.answer


class _CallDetails:
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


async def _stream_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _services(settings: Settings) -> Services:
    repository = MemoryStudentRepository(clock=utc_now)
    records = MemoryStudentRecords(repository)
    advice = MemoryAdviceStore(repository)
    batches = MemoryBatches(timer=time.monotonic)
    batches.feed.close()  # as the feed of masteries ends
    counted = MemoryCoursePulses()
    count_courses = CountCourses(counted, interval=COUNTING_INTERVAL)
    apply = ApplyEvents(
        repository,
        rules=settings.scoring_rules(),
        log_retention=settings.retention().event_log,
        clock=utc_now,
        advice=settings.advice_config(),
        feedback=advice,
        count_courses=count_courses,
    )
    cohorts = MemoryCohortStore()
    fakes: dict[str, Any] = {
        "repository": repository,
        "apply": apply,
        "feed": _EndingFeed(),
        "reader": repository,
        "count_courses": count_courses,
        "course_pulses": CachedCoursePulses(counted, capacity=10, lifetime=1.0, timer=time.monotonic),
        "outlooks": MemoryOutlookStore(repository),
        "advice": advice,
        "cohorts": cohorts,
        "manage_cohorts": ManageCohorts(cohorts, CohortMembers(repository), records, clock=utc_now),
        "figures": MemoryFigures(repository),
        "issued": MemoryIssuedForecasts(records),
        "records": records,
        "audit": MemoryAuditStore(),
        "batches": batches,
        "batch_work": batches,
        "batch_feed": batches.feed,
        "held_batches": batches,
    }
    # What no servicer needs is left out.
    stores: dict[str, Any] = {each.name: fakes.get(each.name) for each in fields(Storage)}
    storage = Storage(**stores)
    return services_of(settings, storage, None)
