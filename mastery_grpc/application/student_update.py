"""One student's step from the stored state to the next: which events are new, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from mastery_grpc.application.course_pulse import Counted, counted
from mastery_grpc.application.forget_events import forget
from mastery_grpc.application.ports import AppliedEvent, LoggedEvent, ProcessingRecord, StudentChange
from mastery_grpc.domain.errors import EventTooOld, MasteryError, StudentErased
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.learning_path import path_of
from mastery_grpc.domain.recommendations import AdviceConfig, Feedback, recommend
from mastery_grpc.domain.results import MasteryUpdated, Result, results_of
from mastery_grpc.domain.student import Mastery, StudentState, mastery_of
from mastery_grpc.domain.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, timedelta

    from mastery_grpc.application.ports import LoadedStudent
    from mastery_grpc.domain.scoring import ScoringRules


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event as it arrived."""

    event: LearningEvent
    origin: str = ""
    """The Kafka record that holds it, as topic/partition/offset; empty if none does."""
    produced_time: datetime | None = None
    """When its producer sent it, or the engine accepted it; None for now. An event from before its student was
    erased is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one delivery: applied, known already, or refused."""

    mastery: Mastery | None = None
    """The mastery after the event; None if it was refused, or applied too long ago to say."""
    duplicate: bool = False
    late: bool = False
    """Whether it was applied, and is older than an event applied before."""
    results: tuple[Result, ...] = ()
    """What is to be published for this delivery. A duplicate has results only if it is the very record that
    was applied before: then the first attempt may have died before it could publish them."""
    error: MasteryError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceTerms:
    """What the advice that goes with a student's results depends on, besides the mastery."""

    config: AdviceConfig = field(default_factory=AdviceConfig)
    feedback: tuple[Feedback, ...] = ()


NO_FEEDBACK = AdviceTerms()


def needs_log(
    loaded: LoadedStudent, deliveries: Sequence[Delivery], *, now: datetime, log_retention: timedelta
) -> bool:
    """Returns whether the update needs the student's log.

    It does for events at or before the newest one, which are late or repeated, and when part of the log has
    outlived its time.
    """
    if loaded.log_start_time is not None and now - loaded.log_start_time > log_retention:
        return True
    return any(
        delivery.event.position <= loaded.state.position and delivery.event.event_id not in loaded.processed
        for delivery in deliveries
    )


class StudentUpdate:
    """Applies deliveries one after the other to what was loaded, and collects the change to be written."""

    def __init__(
        self,
        loaded: LoadedStudent,
        log: Sequence[LoggedEvent] | None,
        *,
        rules: ScoringRules,
        advice: AdviceTerms = NO_FEEDBACK,
        now: datetime,
    ) -> None:
        """`log` may be None unless `needs_log` says otherwise."""
        self._loaded = loaded
        self._log = log
        self._rules = rules
        self._advice = advice
        self._now = now
        # Without the log, or where all of it has expired, the state stands for everything before.
        base = loaded.base if log else loaded.state
        self._timeline = Timeline(base=base, events=[logged.event for logged in log or ()], rules=rules)
        self._mastery = self._mastery_of(loaded.state) if loaded.state.event_count else None
        self._path: tuple[str, ...] | None = None
        self._processed = dict(loaded.processed)
        self._applied: list[AppliedEvent] = []
        self._snapshots: dict[date, Mastery] = {}
        self.counted: list[Counted] = []
        """What the new events change in the counts of their courses."""

    def apply(self, delivery: Delivery) -> Outcome:
        """Takes in one delivery."""
        event, erase_time = delivery.event, self._loaded.erase_time
        if erase_time and (delivery.produced_time or self._now) <= erase_time:
            return Outcome(error=StudentErased(event.event_id, erase_time))
        if (record := self._processed.get(event.event_id)) is not None:
            return self._duplicate(record, delivery)
        if event.event_id in self._timeline:
            return Outcome(duplicate=True)
        is_late = event.position <= self._timeline.state.position
        try:
            results = self._fold(event)
        except EventTooOld as error:
            return Outcome(error=error)
        record = ProcessingRecord(self._now, delivery.origin, results)
        self._processed[event.event_id] = record
        self._applied.append(AppliedEvent(event, record))
        return Outcome(mastery=self._mastery, late=is_late, results=self._advised(results))

    def change(self, *, log_retention: timedelta) -> StudentChange | None:
        """Returns what is to be written, None if no delivery was new."""
        if not self._applied or self._mastery is None:
            return None
        base, forgotten, log_start_time = self._forget(log_retention)
        return StudentChange(
            student=self._loaded.student,
            expected_version=self._loaded.state.event_count,
            expected_rebuilds=self._loaded.rebuilds,
            state=self._timeline.state,
            base=base,
            log_start_time=log_start_time,
            mastery=self._mastery,
            snapshots=self._snapshots,
            applied=self._applied,
            forgotten=forgotten,
        )

    def _fold(self, event: LearningEvent) -> tuple[Result, ...]:
        before, day = self._mastery, event.event_time.date()
        state_before = self._timeline.state
        is_late = event.position <= state_before.position
        self._timeline.add(event)
        if event.course_id:
            around = self._timeline.around(event) if is_late else (state_before, ())
            self.counted += counted(event, *around)
        after = self._mastery = self._mastery_of(self._timeline.state)
        if is_late:
            later_days = self._timeline.last_states_since(day)
            self._snapshots.update({later: self._mastery_of(state) for later, state in later_days.items()})
        else:
            self._snapshots[day] = after
        path_before = self._path_to(before) if self._path is None else self._path
        self._path = self._path_to(after)
        return results_of(event, before=before, after=after, path_before=path_before, path_after=self._path)

    def _path_to(self, mastery: Mastery | None) -> tuple[str, ...]:
        return path_of(mastery, self._advice.feedback, self._advice.config, self._now) if mastery else ()

    def _advised(self, results: tuple[Result, ...]) -> tuple[Result, ...]:
        """Returns results as they are published. What is stored of them lacks the recommendations, which follow
        from the rest and would treble it."""
        return tuple(
            replace(
                result,
                recommendations=recommend(
                    result.mastery, feedback=self._advice.feedback, config=self._advice.config, now=self._now
                ),
            )
            if isinstance(result, MasteryUpdated)
            else result
            for result in results
        )

    def _duplicate(self, record: ProcessingRecord, delivery: Delivery) -> Outcome:
        is_redelivery = record.origin != "" and record.origin == delivery.origin
        return Outcome(
            mastery=next(
                (result.mastery for result in record.results if isinstance(result, MasteryUpdated)), None
            ),
            duplicate=True,
            results=self._advised(record.results) if is_redelivery else (),
        )

    def _forget(self, log_retention: timedelta) -> tuple[StudentState, list[str], datetime]:
        """Returns the base, the log entries that it replaces, and when the oldest of the rest was written."""
        if self._log is None:
            return self._loaded.base, [], self._loaded.log_start_time or self._now
        forgetting = forget(
            self._timeline,
            self._log,
            unwritten=[applied.event for applied in self._applied],
            now=self._now,
            log_retention=log_retention,
        )
        return forgetting.base, forgetting.entry_ids, forgetting.log_start_time

    def _mastery_of(self, state: StudentState) -> Mastery:
        return mastery_of(self._loaded.student, state, self._rules)
