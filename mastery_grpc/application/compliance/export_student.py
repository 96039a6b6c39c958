"""The use case of telling everything that is held about a student."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.errors import StudentNotFound
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from mastery_grpc.application.audit.log import AuditLog
    from mastery_grpc.application.compliance.held_data import HeldData
    from mastery_grpc.application.compliance.student_records import StudentRecords

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One thing that is held, as one line of JSON."""

    kind: DataKind
    json: bytes


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """How many records of a kind there are, and the SHA-256 digest of their lines, each with a line feed."""

    kind: DataKind
    count: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """Sums up an export."""

    student: StudentKey
    create_time: datetime
    entries: tuple[ManifestEntry, ...]


class ExportStudent:
    """Tells what is held: the student's own records of one moment, then what is held elsewhere, then the audit."""

    def __init__(
        self,
        records: StudentRecords,
        elsewhere: Sequence[HeldData],
        audit: AuditLog,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._records = records
        self._elsewhere = elsewhere
        self._audit = audit
        self._clock = clock

    async def __call__(
        self, student: StudentKey, *, manifest_only: bool = False
    ) -> AsyncIterator[ExportRecord | ExportManifest]:
        """Yields the records in the order of their kinds, and the manifest last.

        Raises StudentNotFound if nothing is held, StorageUnavailable.
        """
        create_time = self._clock()
        held = await self._records.held(student)
        for holder in self._elsewhere:
            held[holder.kind] = held.get(holder.kind, []) + await holder.held(student)
        # Entries of the audit log alone are about nobody any more, or about calls that found nobody.
        if not any(held.values()):
            raise StudentNotFound(student.student_id)
        held[DataKind.AUDIT_ENTRY] = [_encode(entry) async for entry in self._audit.about(student)]
        if not manifest_only:
            for kind in DataKind:
                for json in held.get(kind, ()):
                    yield ExportRecord(kind, json)
        entries = tuple(manifest_entry(kind, held[kind]) for kind in DataKind if held.get(kind))
        yield ExportManifest(student, create_time, entries)


def manifest_entry(kind: DataKind, lines: Iterable[bytes]) -> ManifestEntry:
    """Returns what a manifest says of the records of one kind."""
    digest, count = hashlib.sha256(), 0
    for count, each in enumerate(lines, 1):  # noqa: B007 - the last one counts
        digest.update(each + b"\n")
    return ManifestEntry(kind, count, digest.digest())
