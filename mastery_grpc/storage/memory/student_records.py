"""A student's records in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.erasure_mark import ErasureMark, announcement_of
from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.application.ports import LoggedEvent, StudentChange
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.storage import records
from mastery_grpc.storage.record_lines import OWN_KINDS, check_owner, line, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
    from mastery_grpc.application.compliance.student_records import Records
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.memory.repository import MemoryStudentRepository


class MemoryStudentRecords:
    """Implements `StudentRecords` on a repository's own dictionaries; nothing expires."""

    def __init__(
        self,
        repository: MemoryStudentRepository,
        *,
        announce: Callable[[ErasureAnnouncement], None] = lambda announcement: None,
    ) -> None:
        self._repository = repository
        self._announce = announce

    async def held(self, student: StudentKey) -> Records:
        repository = self._repository
        if (change := repository.changes.get(student)) is None:
            return {}
        current = records.encode_current(
            change, records.encode_mastery(change.mastery), rebuilds=change.expected_rebuilds
        )
        found = {
            DataKind.CURRENT_MASTERY: [line(current)],
            DataKind.SNAPSHOT: [
                line(records.encode_mastery(mastery), date=day)
                for day, mastery in (await repository.read_snapshots(student)).items()
            ],
            DataKind.EVENT: [
                line(encode_event(logged.event), entry_id=_entry_id(logged)) for logged in repository.logs[student]
            ],
            DataKind.PROCESSING_RECORD: [
                line(records.encode_record(record), event_id=event_id)
                for event_id, record in repository.processed[student].items()
            ],
            DataKind.ACTIVITY: [line(records.encode_activity(change.state))],
        }
        return {kind: lines for kind, lines in found.items() if lines}

    async def marks_of(self, students: Sequence[StudentKey]) -> list[ErasureMark | None]:
        return [self._repository.marks.get(student) for student in students]

    async def erase(self, student: StudentKey, mark: ErasureMark) -> ErasureMark:
        repository, before = self._repository, self._repository.marks.get(student)
        if before is not None and before.receipt_id == mark.receipt_id:
            return before
        counts = {kind: len(lines) for kind, lines in (await self.held(student)).items()}
        change = repository.changes.pop(student, None)
        rebuilds = max(change.expected_rebuilds if change else 0, before.rebuilds if before else 0) + 1
        repository.logs.pop(student, None)
        repository.processed.pop(student, None)
        for day in await repository.read_snapshots(student):
            del repository.snapshots[student, day]
        left = repository.marks[student] = replace(mark, rebuilds=rebuilds, counts=counts)
        self._announce(announcement_of(student, left))
        return left

    async def finish(self, student: StudentKey, mark: ErasureMark) -> None:
        before = self._repository.marks.get(student)
        if before is not None and before.receipt_id == mark.receipt_id:
            self._repository.marks[student] = replace(mark, origin=mark.origin or before.origin)

    async def claim_announcement(self, student: StudentKey, receipt_id: str, origin: str) -> ErasureMark | None:
        mark = self._repository.marks.get(student)
        if mark is None or mark.receipt_id != receipt_id:
            return None
        mark = self._repository.marks[student] = replace(mark, origin=mark.origin or origin)
        return mark if mark.origin == origin else None

    async def restore(self, student: StudentKey, records_: Mapping[DataKind, Sequence[bytes]]) -> bool:
        lines = {kind: read_lines(texts) for kind, texts in records_.items() if kind in OWN_KINDS}
        if len(lines.get(DataKind.CURRENT_MASTERY, ())) != 1:
            raise InvalidInput.of("current_mastery", "must be there once")
        [current], events = lines[DataKind.CURRENT_MASTERY], lines.get(DataKind.EVENT, [])
        check_owner(student, current, events)
        repository, mark = self._repository, self._repository.marks.get(student)
        if student in repository.changes:
            return False
        value = records.with_rebuilds(bytes(current.value), mark.rebuilds if mark else 0)
        loaded = records.decode_current(student, value, {})
        assert loaded.log_start_time is not None  # noqa: S101 - every state has one
        repository.changes[student] = StudentChange(
            student=student,
            expected_version=0,
            expected_rebuilds=loaded.rebuilds,
            state=loaded.state,
            base=loaded.base,
            log_start_time=loaded.log_start_time,
            mastery=records.decode_mastery(value),
            snapshots={},
            applied=(),
        )
        for each in events:
            event = decode_event(bytes(each.value))
            millis, _, _ = each.entry_id.partition("-")
            repository.logs[student].append(LoggedEvent(each.entry_id, records.time_of(int(millis)), event))
        for each in lines.get(DataKind.PROCESSING_RECORD, ()):
            repository.processed[student][each.event_id] = records.decode_record(bytes(each.value))
        for each in lines.get(DataKind.SNAPSHOT, ()):
            if each.date is not None:
                repository.snapshots[student, each.date] = records.decode_mastery(bytes(each.value))
        return True


def _entry_id(logged: LoggedEvent) -> str:
    """Returns an id that tells when the entry was written, as those of Redis do."""
    _, _, number = logged.entry_id.partition("-")
    return f"{records.millis_of(logged.written_time)}-{number}"
