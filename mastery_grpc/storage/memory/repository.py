"""The student repository in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mastery_grpc.application.ports import (
    LoadedStudent,
    LoggedEvent,
    Revision,
    StoredDay,
    StoredMasteries,
    StudentChange,
    StudentHistory,
)
from mastery_grpc.domain.student import EMPTY_STATE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import date, datetime

    from mastery_grpc.application.compliance.erasure_mark import ErasureMark
    from mastery_grpc.application.ports import ProcessingRecord, StudentRewrite
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.student import Mastery


class MemoryStudentRepository:
    """Implements `StudentRepository`; nothing expires, and the log's clock is the one given.

    Its dictionaries are open to the other fakes that stand on the same students.
    """

    def __init__(
        self, *, clock: Callable[[], datetime], announce: Callable[[Mastery], None] | None = None
    ) -> None:
        self._clock = clock
        self._announce = announce or (lambda mastery: None)
        self.changes: dict[StudentKey, StudentChange] = {}
        self.processed: defaultdict[StudentKey, dict[str, ProcessingRecord]] = defaultdict(dict)
        self.logs: defaultdict[StudentKey, list[LoggedEvent]] = defaultdict(list)
        self.snapshots: dict[tuple[StudentKey, date], Mastery] = {}
        self._written = 0
        self.marks: dict[StudentKey, ErasureMark] = {}
        """Of the students who were erased."""

    async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
        return [self._loaded(student, event_ids) for student, event_ids in wanted.items()]

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        return [list(self.logs[student]) for student in students]

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        return [self._commit(change) for change in changes]

    async def confirm(self, known: Mapping[StudentKey, Sequence[str]]) -> list[bool]:
        return [self.processed[student].keys() >= set(event_ids) for student, event_ids in known.items()]

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        changes = [self.changes.get(student) for student in students]
        return [None if change is None else change.mastery for change in changes]

    async def read_snapshot(self, student: StudentKey, day: date) -> Mastery | None:
        return self.snapshots.get((student, day))

    async def read_snapshots(
        self, student: StudentKey, first: date | None = None, last: date | None = None
    ) -> dict[date, Mastery]:
        days = sorted(day for owner, day in self.snapshots if owner == student)
        return {day: self.snapshots[student, day] for day in days if (first or day) <= day <= (last or day)}

    async def load_histories(self, students: Sequence[StudentKey]) -> list[StudentHistory]:
        return [self._history(student) for student in students]

    async def load_masteries(self, wanted: Mapping[StudentKey, Sequence[date]]) -> list[StoredMasteries]:
        return [
            StoredMasteries(
                self._revision(student),
                self.changes[student].mastery if student in self.changes else None,
                {
                    day: StoredDay(mastery, mastery.components)
                    for day in days
                    if (mastery := self.snapshots.get((student, day))) is not None
                },
            )
            for student, days in wanted.items()
        ]

    async def rewrite(self, rewrites: Sequence[StudentRewrite]) -> list[bool]:
        return [self._rewrite(rewrite) for rewrite in rewrites]

    async def walk(self, school_id: str | None = None) -> AsyncIterator[list[StudentKey]]:
        if found := [student for student in self.changes if school_id in (None, student.school_id)]:
            yield found

    async def forget_days(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        return None

    async def strike_off(self, students: Sequence[StudentKey]) -> None:
        return None

    async def ping(self) -> None:
        return None

    def _loaded(self, student: StudentKey, event_ids: Sequence[str]) -> LoadedStudent:
        known = self.processed[student]
        processed = {event_id: known[event_id] for event_id in event_ids if event_id in known}
        mark = self.marks.get(student)
        erase_time = None if mark is None else mark.erase_time
        if (change := self.changes.get(student)) is None:
            rebuilds = self._revision(student).rebuilds
            return LoadedStudent(student=student, rebuilds=rebuilds, erase_time=erase_time, processed=processed)
        return LoadedStudent(
            student=student,
            state=change.state,
            base=change.base,
            log_start_time=change.log_start_time,
            rebuilds=change.expected_rebuilds,
            erase_time=erase_time,
            processed=processed,
        )

    def _history(self, student: StudentKey) -> StudentHistory:
        change = self.changes.get(student)
        return StudentHistory(
            student=student,
            revision=self._revision(student),
            state=change.state if change else None,
            base=change.base if change else EMPTY_STATE,
            log_start_time=change.log_start_time if change else None,
            log=list(self.logs[student]),
        )

    def _revision(self, student: StudentKey) -> Revision:
        if (change := self.changes.get(student)) is not None:
            return Revision(change.mastery.version, change.expected_rebuilds)
        mark = self.marks.get(student)
        return Revision() if mark is None else Revision(0, mark.rebuilds)

    def _commit(self, change: StudentChange) -> bool:
        student = change.student
        processed = self.processed[student]
        if self._revision(student) != (change.expected_version, change.expected_rebuilds):
            return False
        if any(applied.event.event_id in processed for applied in change.applied):
            return False
        self.changes[student] = change
        for applied in change.applied:
            self._written += 1
            processed[applied.event.event_id] = applied.record
            self.logs[student].append(LoggedEvent(f"0-{self._written}", self._clock(), applied.event))
        self.logs[student] = [logged for logged in self.logs[student] if logged.entry_id not in change.forgotten]
        for day, mastery in change.snapshots.items():
            self.snapshots[student, day] = mastery
        self._announce(change.mastery)
        return True

    def _rewrite(self, rewrite: StudentRewrite) -> bool:
        student, (version, rebuilds) = rewrite.student, rewrite.expected
        if self._revision(student) != rewrite.expected:
            return False
        self.changes[student] = StudentChange(
            student=student,
            expected_version=version,
            expected_rebuilds=rebuilds + 1,
            state=rewrite.state,
            base=rewrite.base,
            log_start_time=rewrite.log_start_time,
            mastery=rewrite.mastery,
            snapshots=rewrite.snapshots,
            applied=(),
        )
        self.logs[student] = [logged for logged in self.logs[student] if logged.entry_id not in rewrite.forgotten]
        for day, mastery in rewrite.snapshots.items():
            self.snapshots[student, day] = mastery
        self._announce(rewrite.mastery)
        return True
