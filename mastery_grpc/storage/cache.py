"""The L1 cache: current masteries in a server process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import TTLCache

from mastery_grpc.application.cache_tally import CacheTally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.application.ports import MasteryReader
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.student import Mastery


class _ReadUnderWay:
    """What was announced while a read is under way: its answer may be older and must not be kept."""

    def __init__(self) -> None:
        self.changed: set[StudentKey] = set()
        self.missed = False


class CachedMasteryReader:
    """Reads through an LRU cache whose entries live for a bounded time and are dropped when announced.

    Safe without the announcements: an entry is never older than its lifetime. Fresh with them.
    """

    def __init__(
        self, reader: MasteryReader, *, capacity: int, lifetime: float, timer: Callable[[], float]
    ) -> None:
        """`lifetime` in seconds, by the monotonic `timer`."""
        self._reader = reader
        self._entries: TTLCache[StudentKey, Mastery] = TTLCache(capacity, lifetime, timer)
        # Each has notes of its own: under load reads always overlap, and no moment would be right to clear
        # notes that they shared.
        self._reads_under_way: set[_ReadUnderWay] = set()
        self.l1, self.l2 = CacheTally(), CacheTally()
        """What was found here; and of the rest, what the reader behind knew."""

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        found = [self._entries.get(student) for student in students]
        missing = [index for index, mastery in enumerate(found) if mastery is None]
        self.l1.take(asked=len(found), missing=len(missing))
        if missing:
            read = await self._read([students[index] for index in missing])
            self.l2.take(asked=len(read), missing=read.count(None))
            for index, mastery in zip(missing, read, strict=True):
                found[index] = mastery
        return found

    def drop(self, student: StudentKey) -> None:
        """Forgets one student, because his mastery was announced to have changed."""
        self._entries.pop(student, None)
        for read in self._reads_under_way:
            read.changed.add(student)

    def clear(self) -> None:
        """Forgets everybody, because announcements may have been missed."""
        self._entries.clear()
        for read in self._reads_under_way:
            read.missed = True

    async def _read(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        read = _ReadUnderWay()
        self._reads_under_way.add(read)
        try:
            masteries = await self._reader.read_masteries(students)
        finally:
            self._reads_under_way.discard(read)
        if not read.missed:
            for student, mastery in zip(students, masteries, strict=True):
                if mastery and student not in read.changed:
                    self._entries[student] = mastery
        return masteries
