"""The student repository in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mastery_grpc.application.ports import LoadedStudent, LoggedEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime

    from mastery_grpc.application.ports import ProcessingRecord, StudentChange
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.student import Mastery


class MemoryStudentRepository:
    """Implements `StudentRepository`; nothing expires, and the log's clock is the one given."""

    def __init__(
        self, *, clock: Callable[[], datetime], announce: Callable[[Mastery], None] | None = None
    ) -> None:
        self._clock = clock
        self._announce = announce or (lambda mastery: None)
        self._changes: dict[StudentKey, StudentChange] = {}
        self._processed: defaultdict[StudentKey, dict[str, ProcessingRecord]] = defaultdict(dict)
        self._logs: defaultdict[StudentKey, list[LoggedEvent]] = defaultdict(list)
        self._snapshots: dict[tuple[StudentKey, date], Mastery] = {}
        self._written = 0

    async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
        return [self._loaded(student, event_ids) for student, event_ids in wanted.items()]

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        return [list(self._logs[student]) for student in students]

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        return [self._commit(change) for change in changes]

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        changes = [self._changes.get(student) for student in students]
        return [None if change is None else change.mastery for change in changes]

    async def read_snapshot(self, student: StudentKey, day: date) -> Mastery | None:
        return self._snapshots.get((student, day))

    async def ping(self) -> None:
        return None

    def _loaded(self, student: StudentKey, event_ids: Sequence[str]) -> LoadedStudent:
        known = self._processed[student]
        processed = {event_id: known[event_id] for event_id in event_ids if event_id in known}
        if (change := self._changes.get(student)) is None:
            return LoadedStudent(student=student, processed=processed)
        return LoadedStudent(
            student=student,
            state=change.state,
            base=change.base,
            log_start_time=change.log_start_time,
            processed=processed,
        )

    def _commit(self, change: StudentChange) -> bool:
        student, stored = change.student, self._changes.get(change.student)
        processed = self._processed[student]
        if (stored.state.event_count if stored else 0) != change.expected_version:
            return False
        if any(applied.event.event_id in processed for applied in change.applied):
            return False
        self._changes[student] = change
        for applied in change.applied:
            self._written += 1
            processed[applied.event.event_id] = applied.record
            self._logs[student].append(LoggedEvent(f"0-{self._written}", self._clock(), applied.event))
        self._logs[student] = [logged for logged in self._logs[student] if logged.entry_id not in change.forgotten]
        for day, mastery in change.snapshots.items():
            self._snapshots[student, day] = mastery
        self._announce(change.mastery)
        return True
