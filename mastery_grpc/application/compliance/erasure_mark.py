"""The mark that a student was erased: what is left of him, and what keeps him from coming back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.events import StudentKey

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureAnnouncement:
    """What servers tell each other about an erasure. No mastery has its version."""

    version: int = 0
    student_id: str
    school_id: str
    receipt_id: str
    erase_millis: int

    @property
    def student(self) -> StudentKey:
        """Who was erased."""
        return StudentKey(self.student_id, self.school_id)

    @property
    def erase_time(self) -> datetime:
        """When it took effect."""
        return _EPOCH + self.erase_millis * _MILLISECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureMark:
    """What is remembered of an erasure; it names nobody but the key that it stands under."""

    rebuilds: int
    """Of the revision that the student begins afresh with: greater than that of any state he had. Whoever had
    loaded one is refused, however many events come afterwards."""
    erase_millis: int
    """Events produced until then are dropped; milliseconds since 1970, as Kafka counts."""
    receipt_id: str
    pseudonym: str
    """What took the student's place in the audit log, in hexadecimal."""
    request_id: str = ""
    counts: dict[DataKind, int] = field(default_factory=dict)
    """How many records of each kind were erased."""
    is_finished: bool = False
    """Whether everything that is kept elsewhere is gone as well, and the erasure was announced."""
    origin: str = ""
    """The record that announces it, as topic/partition/offset, once one was published."""

    @property
    def erase_time(self) -> datetime:
        """When it took effect; until then events are dropped, inclusive."""
        return _EPOCH + self.erase_millis * _MILLISECOND


def announcement_of(student: StudentKey, mark: ErasureMark) -> ErasureAnnouncement:
    """Returns the announcement of an erasure."""
    return ErasureAnnouncement(
        student_id=student.student_id,
        school_id=student.school_id,
        receipt_id=mark.receipt_id,
        erase_millis=mark.erase_millis,
    )


def erase_millis(now: datetime) -> int:
    """Returns `now` in milliseconds since 1970, rounded up: what was produced before is not after it."""
    return -(-(now - _EPOCH) // _MILLISECOND)
