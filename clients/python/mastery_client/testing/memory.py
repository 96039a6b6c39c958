"""What the fake server remembers."""

from __future__ import annotations

from queue import SimpleQueue
from threading import RLock
from typing import TYPE_CHECKING

from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_client.testing.statuses import student_not_found

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import grpc
    from google.rpc import status_pb2

WEIGHTS = {"completion": 0.4, "quiz": 0.3, "quality": 0.2, "consistency": 0.1}
LEVELS = (0.4, 0.6, 0.75, 0.9)
"""Where the levels after the first begin."""


class Refused(Exception):
    """A call fails with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Memory:
    """Masteries and event ids; what the methods of MasteryService make of them."""

    def __init__(self) -> None:
        self.masteries: dict[str, mastery_pb2.Mastery] = {}
        self._event_ids: set[str] = set()
        self._watchers: list[SimpleQueue[pb.WatchMasteryResponse | None]] = []
        self._lock = RLock()

    def get_mastery(self, request: pb.GetMasteryRequest) -> pb.GetMasteryResponse:
        if (mastery := self.masteries.get(request.student_id)) is None:
            raise Refused(student_not_found(request.student_id))
        return pb.GetMasteryResponse(mastery=mastery)

    def batch_get_mastery(self, request: pb.BatchGetMasteryRequest) -> pb.BatchGetMasteryResponse:
        return pb.BatchGetMasteryResponse(
            results=[
                pb.MasteryResult(student_id=each, mastery=self.masteries[each])
                if each in self.masteries
                else pb.MasteryResult(student_id=each, error=student_not_found(each))
                for each in request.student_ids
            ]
        )

    def calculate_mastery(self, request: pb.CalculateMasteryRequest) -> pb.CalculateMasteryResponse:
        duplicate = self._is_known(request.request_id)
        components = {name: getattr(request.components, name) for name in WEIGHTS}
        if request.validate_only:
            mastery = _mastery(request.student_id, components, version=1)
        elif duplicate:
            mastery = self.masteries[request.student_id]
        else:
            mastery = self.set_mastery(request.student_id, components)
        return pb.CalculateMasteryResponse(mastery=mastery, duplicate=duplicate)

    def ingest_events(self, request: pb.IngestEventsRequest) -> pb.IngestEventsResponse:
        return pb.IngestEventsResponse(
            results=[
                pb.IngestEventsResult(event_id=event.event_id, accepted=True, duplicate=self._applied(event))
                for event in request.events
            ]
        )

    def stream_events(self, request: pb.StreamEventsRequest) -> pb.StreamEventsResponse:
        event = request.event
        return pb.StreamEventsResponse(event_id=event.event_id, accepted=True, duplicate=self._applied(event))

    def _applied(self, event: events_pb2.LearningEvent) -> bool:
        """Applies an event and tells whether it had been before."""
        duplicate = self._is_known(event.event_id)
        if not duplicate:
            self.set_mastery(event.student_id, _observed(event))
        return duplicate

    def _is_known(self, event_id: str) -> bool:
        with self._lock:
            known = event_id in self._event_ids
            self._event_ids |= {event_id} - {""}
        return known

    def set_mastery(self, student_id: str, components: Mapping[str, float]) -> mastery_pb2.Mastery:
        with self._lock:
            last = self.masteries.get(student_id) or mastery_pb2.Mastery()
            kept = {name: getattr(last.components, name) for name in WEIGHTS}
            mastery = _mastery(student_id, kept | dict(components), version=last.version + 1)
            self.masteries[student_id] = mastery
            self._tell(pb.WatchMasteryResponse(mastery=mastery))
        return mastery

    def erase(self, student_id: str) -> None:
        with self._lock:
            del self.masteries[student_id]
            self._tell(pb.WatchMasteryResponse(erased=events_pb2.StudentDataErased(student_id=student_id)))

    def _tell(self, update: pb.WatchMasteryResponse) -> None:
        for watcher in self._watchers:
            watcher.put(update)

    def watch_mastery(
        self, request: pb.WatchMasteryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchMasteryResponse]:
        updates: SimpleQueue[pb.WatchMasteryResponse | None] = SimpleQueue()
        context.add_callback(lambda: updates.put(None))
        with self._lock:
            self._watchers.append(updates)
            found = [self.masteries[each] for each in request.student_ids if each in self.masteries]
        try:
            for mastery in found:
                yield pb.WatchMasteryResponse(mastery=mastery, initial=True)
            while (update := updates.get()) is not None:
                if (update.mastery.student_id or update.erased.student_id) in request.student_ids:
                    yield update
        finally:
            self._watchers.remove(updates)


def _mastery(student_id: str, components: Mapping[str, float], *, version: int) -> mastery_pb2.Mastery:
    score = sum(weight * components[name] for name, weight in WEIGHTS.items())
    mastery = mastery_pb2.Mastery(
        student_id=student_id,
        mastery_score=score,
        level=mastery_pb2.Level.values()[1 + sum(score >= bound for bound in LEVELS)],
        components=mastery_pb2.Components(**components),
        version=version,
        breakdown=[
            mastery_pb2.ComponentScore(
                component=mastery_pb2.Component.Value(f"COMPONENT_{name.upper()}"),
                score=components[name],
                weight=weight,
                contribution=weight * components[name],
                observed=True,
            )
            for name, weight in WEIGHTS.items()
        ],
    )
    mastery.update_time.GetCurrentTime()
    return mastery


def _observed(event: events_pb2.LearningEvent) -> dict[str, float]:
    match event.WhichOneof("payload"):
        case "exercise_completion_submitted":
            exercises = event.exercise_completion_submitted
            return {"completion": exercises.completed_exercises / exercises.total_exercises}
        case "quiz_performance_submitted":
            quiz = event.quiz_performance_submitted
            return {"quiz": quiz.correct_answers / quiz.total_questions}
        case "quality_assessment_completed":
            given = [value for _, value in event.quality_assessment_completed.ListFields() if value != ""]
            scores = [value for value in given if isinstance(value, float)]
            return {"quality": sum(scores) / len(scores)}
        case "mastery_calculation_requested":
            components = event.mastery_calculation_requested.components
            return {name: getattr(components, name) for name in WEIGHTS}
        case _:
            return {"consistency": event.consistency_activity_recorded.consistency_score}
