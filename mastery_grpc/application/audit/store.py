"""Where the audit log is kept: the port, held to by tests/contract/test_audit_store.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mastery_grpc.domain.events import StudentKey


class ChainEnd(NamedTuple):
    """How the log of a school ends, as it is stored: nothing of it is to be believed before it is checked."""

    head: bytes = b""
    """The signed head; empty if there is none."""
    last: int = 0
    """The place of the newest entry that was ever in the log."""


class SealedEntries(NamedTuple):
    """Entries that are ready to be appended to one state of a log."""

    expected: bytes
    """The head that the log must have; empty for none."""
    head: bytes
    """The head that it has then."""
    first: int
    """The place of the first record; the others follow."""
    records: Sequence[bytes]
    """At least one."""


class Appended(NamedTuple):
    """What became of an attempt to append."""

    is_done: bool
    """Whether the entries are in the log, by this attempt or an earlier one with the same."""
    is_replicated: bool
    """Whether as many replicas have them as shall."""
    end: ChainEnd
    """How the log ends now."""


class Portion(NamedTuple):
    """A part of a log, with its two ends as they were at the same moment."""

    head: bytes
    anchor: bytes
    entries: Sequence[tuple[int, bytes]]
    """The place of each, -1 for one that no entry can be at, and its record."""


class AuditStore(Protocol):
    """Keeps the logs of all schools, and the salts of pseudonyms. Every method raises StorageUnavailable."""

    async def append(self, school_id: str, sealed: SealedEntries) -> Appended:
        """Appends all of it, if the log still ends as expected; else nothing."""

    async def has_log(self, school_id: str) -> bool:
        """Returns whether entries of a school were ever appended."""

    async def load(self, school_id: str, *, after: int, count: int) -> Portion:
        """Returns the first `count` entries after a place, oldest first."""

    async def load_before(self, school_id: str, *, before: int, count: int) -> list[tuple[int, bytes]]:
        """Returns the last `count` entries before a place, newest first; 0 for the end of the log."""

    async def cut(self, school_id: str, *, expected: bytes, anchor: bytes, through: int) -> bool:
        """Replaces the anchor, and forgets the entries up to a place; False if the anchor is not as expected."""

    async def schools(self) -> list[str]:
        """Returns the schools that have a log."""

    async def claim_upkeep(self, seconds: int) -> bool:
        """Returns whether the caller is the first one in so many seconds."""

    async def salts(self, students: Sequence[StudentKey]) -> list[bytes | None]:
        """Returns the salts that students have, and lets them live on."""

    async def give_salts(
        self, fresh: Mapping[StudentKey, bytes], newcomers: Collection[StudentKey]
    ) -> list[bytes | None]:
        """Returns each student's salt: his own if he has one, else the fresh one, which is his from now on.

        None for one of whom nothing is held, unless he is among the newcomers and was not erased.
        """

    async def take_salt(self, student: StudentKey) -> bytes | None:
        """Forgets a student's salt, and returns what it was."""
