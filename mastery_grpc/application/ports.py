"""What the use cases need from the outside, as Protocols; `storage`, `ingest` and test fakes provide it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.forecasting.forecast import ForecastTerms
from mastery_grpc.domain.forecasting.outlook import Outlook
from mastery_grpc.domain.results import Result
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import EMPTY_STATE, Mastery, StudentState

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
    from mastery_grpc.domain.forecasting.pulse import CoursePulse
    from mastery_grpc.domain.forecasting.verification import DayScore, IssuedForecast


@dataclass(frozen=True, slots=True)
class ProcessingRecord:
    """The proof that an event was applied."""

    processed_time: datetime
    origin: str
    """The Kafka record that delivered it, as topic/partition/offset; empty if none did."""
    results: tuple[Result, ...]


class Revision(NamedTuple):
    """Which of a student's stored states is meant; each write of him makes a greater one.

    The version alone would not do: a rebuild replaces a state by a better one of the same events. A writer
    that had loaded the old one would then pass the comparison and bring the old one back, one event older.
    """

    version: int = 0
    """The number of distinct events."""
    rebuilds: int = 0
    """How often the state was rebuilt from the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStudent:
    """What is stored of a student, as far as folding further events forward needs it."""

    student: StudentKey
    state: StudentState = EMPTY_STATE
    base: StudentState = EMPTY_STATE
    """The state before the first event in the log; not empty once old events have left the log."""
    log_start_time: datetime | None = None
    """When the oldest event in the log was written."""
    rebuilds: int = 0
    """As in `Revision`."""
    erase_time: datetime | None = None
    """When the student was erased, if he was: events produced until then are dropped."""
    processed: Mapping[str, ProcessingRecord] = field(default_factory=dict)
    """Of the events asked about, those already applied within the retention of the records."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event in a student's log."""

    entry_id: str
    """The id of the stream entry."""
    written_time: datetime
    event: LearningEvent


@dataclass(frozen=True, slots=True)
class AppliedEvent:
    """An event to be written, with its proof."""

    event: LearningEvent
    record: ProcessingRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentChange:
    """One update of one student: written whole or not at all."""

    student: StudentKey
    expected_version: int
    """The version that the change was computed from; 0 for a new student."""
    expected_rebuilds: int = 0
    """The rebuilds of the revision that the change was computed from; a change does not add to them."""
    state: StudentState
    base: StudentState
    log_start_time: datetime
    mastery: Mastery
    snapshots: Mapping[date, Mastery]
    """The last mastery of every day that the change touches."""
    applied: Sequence[AppliedEvent]
    forgotten: Sequence[str] = ()
    """Ids of log entries that `base` replaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentHistory:
    """What a rebuild recomputes a student from, and the state that it may replace."""

    student: StudentKey
    revision: Revision
    state: StudentState | None
    """None if nothing is stored, or nothing that can be read."""
    base: StudentState
    """The state before the first event in the log."""
    log_start_time: datetime | None
    log: Sequence[LoggedEvent]
    """Without entries that cannot be read."""


@dataclass(frozen=True, slots=True)
class StoredDay:
    """The snapshot of one day; None stands for what is missing or cannot be read."""

    mastery: Mastery | None = None
    scores: Components | None = None
    """The components' scores as they are stored beside the snapshot."""


@dataclass(frozen=True, slots=True)
class StoredMasteries:
    """What is stored of a student for readers, all of one moment."""

    revision: Revision
    current: Mastery | None
    """None if it is missing or cannot be read."""
    days: Mapping[date, StoredDay]
    """Of the days asked about, those of which anything is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRewrite:
    """What one student's log amounts to, to be stored instead of what is there: whole or not at all."""

    student: StudentKey
    expected: Revision
    """The revision that was compared with the log."""
    state: StudentState
    base: StudentState
    log_start_time: datetime
    mastery: Mastery
    snapshots: Mapping[date, Mastery]
    """Of the days that differ."""
    forgotten: Sequence[str] = ()
    """Ids of log entries that `base` replaces."""


class StudentRepository(Protocol):
    """The students' state, their logs, snapshots and processing records.

    Batch-shaped: each method is one round trip however many students it is given, and answers in their
    order. Raises StorageUnavailable; what was being written then may be there or not, and repeating is safe.
    """

    async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
        """Returns each student's state together with the records of the given event ids."""

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        """Returns each student's retained events in order of writing."""

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        """Writes each change if its student still has the expected revision and none of its events is applied.

        Returns for each change whether it was written; drops the student's prediction and path, announces the
        new mastery. Where replicas are required, a change counts as written once they have it.
        """

    async def confirm(self, known: Mapping[StudentKey, Sequence[str]]) -> list[bool]:
        """Waits until what was written when the given events were applied is safe, as `commit` does.

        Returns for each student whether his events are applied still: those of a write that failed for want of
        replicas are found again, until a failover loses them.
        """

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        """Returns each student's current mastery, None for unknown students."""

    async def read_snapshot(self, student: StudentKey, day: date) -> Mastery | None:
        """Returns the last mastery of a UTC day, None if the student had no event on it."""

    async def read_snapshots(
        self, student: StudentKey, first: date | None = None, last: date | None = None
    ) -> dict[date, Mastery]:
        """Returns the last mastery of each UTC day with events, by day, from `first` to `last` inclusive."""

    async def load_histories(self, students: Sequence[StudentKey]) -> list[StudentHistory]:
        """Returns what each student is recomputed from. The log may be newer than the rest: whoever finds the
        revision unchanged after this call knows that it was not."""

    async def load_masteries(self, wanted: Mapping[StudentKey, Sequence[date]]) -> list[StoredMasteries]:
        """Returns each student's current mastery and his snapshots of the given days, as stored."""

    async def rewrite(self, rewrites: Sequence[StudentRewrite]) -> list[bool]:
        """Writes each rewrite if its student still has the expected revision; returns for each whether it was.

        Counts one more rebuild and announces the mastery. What is rewritten keeps the lifetime that it has.
        """

    def walk(self, school_id: str | None = None) -> AsyncIterator[list[StudentKey]]:
        """Yields all students with a mastery, or those of one school, in portions; a student may come twice.

        One who is new while this goes on may come or not. Those of one school cost what they are; all of them, a
        walk over every key.
        """

    async def forget_days(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        """Forgets on which days there were snapshots that have expired."""

    async def strike_off(self, students: Sequence[StudentKey]) -> None:
        """Takes those students off the list of their school of whom nothing is stored."""

    async def ping(self) -> None:
        """Returns if the storage answers."""


@dataclass(frozen=True, slots=True)
class KeptOutlook:
    """An outlook, and of what it was made besides the day and the forecaster that it names itself."""

    outlook: Outlook
    revision: Revision
    """Of the student then."""
    terms: ForecastTerms


@dataclass(frozen=True, slots=True)
class StudentOutlook:
    """What is stored of a student's outlook, and his revision in the same moment."""

    revision: Revision
    """Of version 0 for a student who is not known."""
    kept: KeptOutlook | None
    """None if it is missing, was dropped, or cannot be read. Else it may be out of date all the same: whoever
    had read the student before his latest event may have stored it after."""


class OutlookStore(Protocol):
    """The students' outlooks, for an hour or until a student's next event.

    Batch-shaped as `StudentRepository`. Raises StorageUnavailable.
    """

    async def read(self, students: Sequence[StudentKey]) -> list[StudentOutlook]:
        """Returns what is stored of each student."""

    async def write(self, outlooks: Sequence[KeptOutlook]) -> None:
        """Stores the outlooks instead of what is there, but those of students who have moved on meanwhile."""


class IssuedForecasts(Protocol):
    """The forecasts whose day is still to come, by that UTC day, and the scores of the days that have come.

    Raises StorageUnavailable. Repeating is safe: the same day's score is the same, whoever stores it.
    """

    async def store(
        self, due: Mapping[date, Mapping[StudentKey, IssuedForecast]], *, issued_time: datetime
    ) -> None:
        """Stores forecasts by the day they are for, instead of those of the same students. Two round trips.

        `issued_time`: not after that of any of them. What was issued before its student was erased is not kept.
        """

    async def due_days(self, days: Sequence[date]) -> list[date]:
        """Returns those of the days for which forecasts are stored."""

    async def claim(self, day: date) -> bool:
        """Returns False if somebody else claimed the day some minutes ago; only to spare work."""

    async def load_due(self, day: date) -> dict[StudentKey, IssuedForecast]:
        """Returns all forecasts for a day, or none if somebody finished it meanwhile."""

    async def finish(self, score: DayScore) -> None:
        """Stores the score of a day instead of its forecasts."""

    async def load_scores(self, days: Sequence[date]) -> list[DayScore]:
        """Returns the scores of those of the days that have one, in the order of the days. One round trip."""


class CourseKey(NamedTuple):
    """One course of one school; an empty `school_id` is the default school."""

    course_id: str
    school_id: str = ""


class CoursePulses(Protocol):
    """What the students of whole courses did lately."""

    async def until(self, courses: Sequence[CourseKey], today: date) -> Mapping[CourseKey, CoursePulse]:
        """Returns each course at the end of `today`, without those of which nothing is known.

        One round trip. Raises StorageUnavailable.
        """


class MasteryReader(Protocol):
    """Current masteries, possibly from a cache that is at most 30 s behind."""

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        """Returns each student's current mastery, None for unknown students."""


class Subscription(Protocol):
    """Changes of the students that one watcher asked for."""

    async def next(self) -> Sequence[Mastery | ErasureAnnouncement] | None:
        """Waits for changes; returns the newest mastery of each changed student, and before it that he was erased.

        Returns None when announcements may have been missed and the current state must be read anew. Raises
        ShuttingDown.
        """


class MasteryFeed(Protocol):
    """The announcements of committed changes."""

    def subscribe(self, students: Sequence[StudentKey]) -> AbstractAsyncContextManager[Subscription]:
        """Returns a subscription that is live from entering the context on."""


class RequestLog(Protocol):
    """The topic `mastery.requests`, for events that arrive by gRPC."""

    async def append(self, events: Sequence[LearningEvent], *, produced_time: datetime | None = None) -> list[str]:
        """Returns where each event was written, as topic/partition/offset, once the broker has them all.

        `produced_time`: if they were given to the engine earlier than now. Raises BrokerUnavailable; some of the
        events may have been written all the same.
        """

    async def append_erasure(self, announcement: ErasureAnnouncement) -> None:
        """Writes that a student was erased, behind his events. Raises BrokerUnavailable."""
