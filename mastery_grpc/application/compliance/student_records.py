"""All that is kept under a student's own keys, as one thing: to be shown, erased, or put back whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mastery_grpc.application.compliance.data_kinds import DataKind
    from mastery_grpc.application.compliance.erasure_mark import ErasureMark
    from mastery_grpc.domain.events import StudentKey

Records = dict["DataKind", list[bytes]]
"""JSON objects by kind, each one record; kinds without any are left out."""


class ErasureMarks(Protocol):
    """Who was erased."""

    async def marks_of(self, students: Sequence[StudentKey]) -> list[ErasureMark | None]:
        """Returns the mark of each student's latest erasure, None if he was never erased, or long ago.

        One round trip. Raises StorageUnavailable.
        """


class StudentRecords(ErasureMarks, Protocol):
    """A student's mastery, log, snapshots, processing records, activity, forecast, path and feedback.

    Each method is one atomic step. Raises StorageUnavailable; repeating is safe.
    """

    async def held(self, student: StudentKey) -> Records:
        """Returns what is kept, all of one moment. Lifetimes are part of it."""

    async def erase(self, student: StudentKey, mark: ErasureMark) -> ErasureMark:
        """Deletes what is kept, leaves the mark, and announces the erasure.

        Returns the mark as it was left: with the counts, and the rebuilds that come after those of the state
        deleted. A repeat with the same receipt deletes nothing and returns the first one's.
        """

    async def finish(self, student: StudentKey, mark: ErasureMark) -> None:
        """Replaces the mark of the same receipt by this one, if he was not erased again since."""

    async def claim_announcement(self, student: StudentKey, receipt_id: str, origin: str) -> ErasureMark | None:
        """Returns the mark of a receipt if the record at `origin` is the one that announces it: the first to ask.

        None if the erasure is not known, or another record announced it.
        """

    async def restore(self, student: StudentKey, records: Mapping[DataKind, Sequence[bytes]]) -> bool:
        """Puts back what `held` returned. Returns False, and changes nothing, if anything is kept already.

        What has outlived its time since is left out. Raises InvalidInput for records that are not of this student.
        """
