"""The use case of putting an exported student into an engine that does not know him."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.export_student import ExportManifest, manifest_entry
from mastery_grpc.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mastery_grpc.application.compliance.export_student import ExportRecord
    from mastery_grpc.application.compliance.held_data import HeldData
    from mastery_grpc.application.compliance.student_records import StudentRecords
    from mastery_grpc.domain.events import StudentKey


class ImportStudent:
    """Puts back what was exported. Entries of the audit log are not: its chain takes none from elsewhere."""

    def __init__(self, records: StudentRecords, elsewhere: Sequence[HeldData]) -> None:
        self._records = records
        self._elsewhere = elsewhere

    async def __call__(self, parts: Iterable[ExportRecord | ExportManifest]) -> StudentKey:
        """Returns whose records were put back.

        Raises InvalidInput, and changes nothing, for an export that is incomplete or was changed, for one from
        before the student was erased, and if anything is held about him already; StorageUnavailable.
        """
        held: dict[DataKind, list[bytes]] = {}
        manifest = None
        for part in parts:
            if manifest is not None:
                raise InvalidInput.of("manifest", "is not the last part")
            if isinstance(part, ExportManifest):
                manifest = part
            else:
                held.setdefault(part.kind, []).append(part.json)
        if manifest is None:
            raise InvalidInput.of("manifest", "is missing: the export is incomplete")
        for kind in DataKind:
            stated = [entry for entry in manifest.entries if entry.kind is kind]
            if stated != ([manifest_entry(kind, held[kind])] if held.get(kind) else []):
                raise InvalidInput.of(kind, "is not what the manifest says")
        student = manifest.student
        [mark] = await self._records.marks_of([student])
        if mark is not None and manifest.create_time <= mark.erase_time:
            raise InvalidInput.of("create_time", "is from before the student was erased")
        # What shares a kind stands in the same list; each takes what is his and passes the rest over.
        if not await self._records.restore(student, held):
            raise InvalidInput.of("student_id", "is known here already")
        for holder in self._elsewhere:
            await holder.restore(student, held.get(holder.kind, []))
        return student
