"""The use case of erasing everything held about a student, so that he stays erased.

1. what stands for him in the audit log is cut off from him
2. his own keys are deleted and the mark set, in one step: from then on he is gone for everybody
3. what is held about him elsewhere is deleted
4. the erasure is announced on `mastery.requests`, behind every event of his that went there before; the worker
   publishes it when it comes to it, so that no result of his follows it
5. the mark is noted as finished

A crash or an outage after 2 is healed by the repeat: the mark tells that the rest is still to be done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.erasure_mark import ErasureMark, announcement_of, erase_millis
from mastery_grpc.domain.errors import StudentNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.application.audit.log import AuditLog
    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
    from mastery_grpc.application.compliance.held_data import HeldData
    from mastery_grpc.application.compliance.student_records import StudentRecords
    from mastery_grpc.application.ports import RequestLog, StudentRepository
    from mastery_grpc.domain.events import StudentKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReceipt:
    """What was erased; names nobody."""

    receipt_id: str = ""
    """Empty if nothing was erased, because it was only asked what would be."""
    pseudonym: str
    erase_time: datetime | None = None
    counts: dict[DataKind, int]
    suppress_end_time: datetime
    """Until then events from before the erasure are dropped."""


class EraseStudent:
    """Erases students. Every method raises StudentNotFound if nothing is held, and StorageUnavailable."""

    def __init__(
        self,
        records: StudentRecords,
        repository: StudentRepository,
        elsewhere: Sequence[HeldData],
        audit: AuditLog,
        request_log: RequestLog | None,
        *,
        mark_lifetime: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        """`elsewhere`: whoever else holds data about students. Without a request log nothing is announced."""
        self._records = records
        self._repository = repository
        self._elsewhere = elsewhere
        self._audit = audit
        self._request_log = request_log
        self._mark_lifetime = mark_lifetime
        self._clock = clock

    async def preview(self, student: StudentKey) -> ErasureReceipt:
        """Returns what would be erased, and erases nothing."""
        counts = await self._held(student)
        if not counts:
            raise StudentNotFound(student.student_id)
        pseudonym = await self._audit.pseudonym_of(student)
        return ErasureReceipt(
            pseudonym=pseudonym.hex() if pseudonym else "",
            counts=counts,
            suppress_end_time=self._clock() + self._mark_lifetime,
        )

    async def __call__(self, student: StudentKey, *, request_id: str = "") -> ErasureReceipt:
        """Erases, and returns the receipt; of a repeated request the first one's. `request_id` in lower case.

        Raises BrokerUnavailable if it could not be announced: the student is gone by then, and a repeat announces.
        """
        [mark] = await self._records.marks_of([student])
        is_repeat = mark is not None and request_id != "" and mark.request_id == request_id
        # An unfinished one is gone on with, unless there is something new to erase.
        is_new = not is_repeat and (mark is None or mark.is_finished or bool(await self._records.held(student)))
        if mark is None or is_new:
            mark = await self._erase(student, request_id)
        if not mark.is_finished:
            mark = await self._finish(student, mark)
        return self._receipt(mark)

    async def again(self, announced: ErasureAnnouncement) -> bool:
        """Erases once more who was erased before the storage was put back to an older state.

        Returns False, and changes nothing, if the storage knows of this erasure or of a later one. The mark has
        the receipt and the time of the first erasure: what was produced after it may be applied again.
        """
        student = announced.student
        [mark] = await self._records.marks_of([student])
        if mark is None or mark.erase_millis < announced.erase_millis:
            pseudonym = await self._audit.forget(student)
            mark = await self._records.erase(
                student,
                ErasureMark(
                    rebuilds=0,
                    erase_millis=announced.erase_millis,
                    receipt_id=announced.receipt_id,
                    pseudonym=pseudonym.hex(),
                ),
            )
        elif mark.is_finished or mark.receipt_id != announced.receipt_id:
            return False
        await self._finish(student, mark, is_announced=True)
        return True

    async def _erase(self, student: StudentKey, request_id: str) -> ErasureMark:
        if not await self._held(student):
            raise StudentNotFound(student.student_id)
        pseudonym = await self._audit.forget(student)  # 1
        return await self._records.erase(  # 2
            student,
            ErasureMark(
                rebuilds=0,
                erase_millis=erase_millis(self._clock()),
                receipt_id=str(uuid4()),
                pseudonym=pseudonym.hex(),
                request_id=request_id,
            ),
        )

    async def _finish(self, student: StudentKey, mark: ErasureMark, *, is_announced: bool = False) -> ErasureMark:
        await self._repository.strike_off([student])
        counts = Counter(mark.counts)
        for holder in self._elsewhere:  # 3
            counts[holder.kind] += await holder.erase(student)
        # Noted before anything is announced, or a repeat would not count again what is gone.
        mark = replace(mark, counts={kind: counts[kind] for kind in DataKind if counts[kind]})
        await self._records.finish(student, mark)
        if self._request_log is not None and not is_announced:
            await self._request_log.append_erasure(announcement_of(student, mark))  # 4
        [left] = await self._records.marks_of([student])
        if left is not None and left.receipt_id == mark.receipt_id:
            mark = replace(left, is_finished=True)
            await self._records.finish(student, mark)  # 5
        return mark

    async def _held(self, student: StudentKey) -> dict[DataKind, int]:
        counts = Counter({kind: len(lines) for kind, lines in (await self._records.held(student)).items()})
        for holder in self._elsewhere:
            counts[holder.kind] += len(await holder.held(student))
        return {kind: counts[kind] for kind in DataKind if counts[kind]}

    def _receipt(self, mark: ErasureMark) -> ErasureReceipt:
        return ErasureReceipt(
            receipt_id=mark.receipt_id,
            pseudonym=mark.pseudonym,
            erase_time=mark.erase_time,
            counts=mark.counts,
            suppress_end_time=mark.erase_time + self._mark_lifetime,
        )
