"""What is held about a student outside of his own keys: the port of whoever holds some of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.compliance.data_kinds import DataKind
    from mastery_grpc.domain.events import StudentKey


class HeldData(Protocol):
    """One kind of data that names students, kept in keys that are not theirs alone. Raises StorageUnavailable."""

    @property
    def kind(self) -> DataKind:
        """What kind of data it is."""

    async def held(self, student: StudentKey) -> list[bytes]:
        """Returns what is held about a student: one JSON object a record, in an order that does not change."""

    async def erase(self, student: StudentKey) -> int:
        """Forgets what is held about a student; returns how many records it was. Repeating is safe.

        Called once the student's mark is set and his own keys are gone: whoever writes something about him after
        this call must have found him, or have been told of him, after he was erased.
        """

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        """Puts back what `held` returned elsewhere, instead of what is there. Raises InvalidInput."""
