"""MasteryService: convert, call the use case, convert."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from mastery.v1 import mastery_service_pb2 as pb
from mastery_grpc.application.calculate_mastery import Calculation
from mastery_grpc.application.event_protobuf import components_from_proto, event_from_proto
from mastery_grpc.domain.errors import InvalidInput, MasteryError, StudentNotFound
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.student import Mastery
from mastery_grpc.rpc.access import PermissionDenied
from mastery_grpc.rpc.convert import date_from_proto, mastery_to_proto, weights_from_proto
from mastery_grpc.rpc.convert_compliance import erasure_to_proto
from mastery_grpc.rpc.status import status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from mastery.v1 import events_pb2
    from mastery_grpc.application.accept_events import AcceptEvents
    from mastery_grpc.application.calculate_mastery import CalculateMastery
    from mastery_grpc.application.read_mastery import ReadMastery
    from mastery_grpc.application.watch_mastery import WatchMastery
    from mastery_grpc.rpc.access import Call

STREAM_CHUNK = 200
"""How many events of a stream are applied in one go."""

Refusal = MasteryError | PermissionDenied
_Request = TypeVar("_Request")


class MasteryServicer:
    """Serves `mastery.v1.MasteryService`."""

    def __init__(
        self, *, read: ReadMastery, calculate: CalculateMastery, accept: AcceptEvents, watch: WatchMastery
    ) -> None:
        self._read = read
        self._calculate = calculate
        self._accept = accept
        self._watch = watch

    async def GetMastery(self, request: pb.GetMasteryRequest, call: Call) -> pb.GetMasteryResponse:
        student = StudentKey(request.student_id, call.school_id)
        if request.HasField("date"):
            mastery = await self._read.on_day(student, date_from_proto(request.date))
        else:
            mastery = await self._read.current(student)
        return pb.GetMasteryResponse(mastery=mastery_to_proto(mastery))

    async def BatchGetMastery(self, request: pb.BatchGetMasteryRequest, call: Call) -> pb.BatchGetMasteryResponse:
        students = [StudentKey(student_id, call.school_id) for student_id in request.student_ids]
        masteries = await self._read.many(students)
        return pb.BatchGetMasteryResponse(
            results=[
                pb.MasteryResult(student_id=student.student_id, error=status_of(mastery))
                if isinstance(mastery, StudentNotFound)
                else pb.MasteryResult(student_id=student.student_id, mastery=mastery_to_proto(mastery))
                for student, mastery in zip(students, masteries, strict=True)
            ]
        )

    async def CalculateMastery(
        self, request: pb.CalculateMasteryRequest, call: Call
    ) -> pb.CalculateMasteryResponse:
        calculation = Calculation(
            student=StudentKey(request.student_id, call.school_id),
            components=components_from_proto(request.components),
            weights=weights_from_proto(request.weights) if request.HasField("weights") else None,
            request_id=request.request_id.lower(),
        )
        if request.validate_only:
            mastery, duplicate = await self._calculate.preview(calculation), False
        else:
            mastery, duplicate = await self._calculate(calculation)
        return pb.CalculateMasteryResponse(mastery=mastery_to_proto(mastery), duplicate=duplicate)

    async def IngestEvents(self, request: pb.IngestEventsRequest, call: Call) -> pb.IngestEventsResponse:
        outcomes = await self._ingest(request.events, call)
        return pb.IngestEventsResponse(
            results=[
                pb.IngestEventsResult(
                    event_id=event.event_id,
                    accepted=outcome.error is None,
                    duplicate=outcome.duplicate,
                    error=outcome.error and status_of(outcome.error),
                )
                for event, outcome in zip(request.events, outcomes, strict=True)
            ]
        )

    async def StreamEvents(
        self, requests: AsyncIterator[pb.StreamEventsRequest], call: Call
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        sequence = 0
        async for chunk in _chunks(requests, STREAM_CHUNK):
            outcomes = await self._ingest([request.event for request in chunk], call)
            for request, outcome in zip(chunk, outcomes, strict=True):
                sequence += 1
                yield pb.StreamEventsResponse(
                    sequence=sequence,
                    event_id=request.event.event_id,
                    accepted=outcome.error is None,
                    duplicate=outcome.duplicate,
                    error=outcome.error and status_of(outcome.error),
                )

    async def WatchMastery(
        self, request: pb.WatchMasteryRequest, call: Call
    ) -> AsyncIterator[pb.WatchMasteryResponse]:
        students = [StudentKey(student_id, call.school_id) for student_id in request.student_ids]
        async for sighting in self._watch(students):
            if isinstance(sighting.news, Mastery):
                yield pb.WatchMasteryResponse(mastery=mastery_to_proto(sighting.news), initial=sighting.initial)
            else:
                yield pb.WatchMasteryResponse(erased=erasure_to_proto(sighting.news))

    async def _ingest(self, messages: Sequence[events_pb2.LearningEvent], call: Call) -> list[_Ingested]:
        """Returns the outcome of each event; what is refused here never reaches the use case."""
        admitted = [_admitted(message, call) for message in messages]
        events = [event for event in admitted if isinstance(event, LearningEvent)]
        outcomes = iter(await self._accept(events) if events else ())
        results = []
        for event in admitted:
            if isinstance(event, LearningEvent):
                outcome = next(outcomes)
                results.append(_Ingested(outcome.error, outcome.duplicate))
            else:
                self._accept.observer.refused()
                results.append(_Ingested(event))
        return results


@dataclass(frozen=True, slots=True)
class _Ingested:
    """What became of one event, refused here or applied by the use case."""

    error: Refusal | None = None
    duplicate: bool = False


def _admitted(message: events_pb2.LearningEvent, call: Call) -> LearningEvent | Refusal:
    """Returns the event, or why it is refused."""
    try:
        school_id = call.school_of(message.school_id)
        event = event_from_proto(message)
    except (InvalidInput, PermissionDenied) as refusal:
        return refusal
    return replace(event, student=StudentKey(event.student.student_id, school_id))


async def _chunks(requests: AsyncIterator[_Request], most: int) -> AsyncIterator[list[_Request]]:
    """Yields what has arrived, up to `most` requests at a time: batches under load, no delay without."""
    arrived: asyncio.Queue[_Request | None] = asyncio.Queue(maxsize=2 * most)

    async def receive() -> None:
        try:
            async for request in requests:
                await arrived.put(request)
        except Exception:
            await arrived.put(None)
            raise
        await arrived.put(None)  # not when cancelled: nobody empties the queue then, and it may be full

    receiver = asyncio.create_task(receive())
    try:
        is_open = True
        while is_open:
            chunk = [await arrived.get()]
            while not arrived.empty() and len(chunk) < most:
                chunk.append(arrived.get_nowait())
            is_open = chunk[-1] is not None
            if received := [request for request in chunk if request is not None]:
                yield received
        await receiver
    finally:
        receiver.cancel()
