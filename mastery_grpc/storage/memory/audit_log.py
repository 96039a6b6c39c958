"""The audit log in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.audit.store import Appended, ChainEnd, Portion

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mastery_grpc.application.audit.store import SealedEntries
    from mastery_grpc.domain.events import StudentKey


class MemoryAuditStore:
    """Implements `AuditStore`; what it holds is open to tests, and nothing expires."""

    def __init__(self) -> None:
        self.logs: dict[str, dict[int, bytes]] = {}
        self.heads: dict[str, bytes] = {}
        self.anchors: dict[str, bytes] = {}
        self.own_salts: dict[StudentKey, bytes] = {}
        self.known: set[StudentKey] = set()
        """Students of whom something is held."""
        self.erased: set[StudentKey] = set()
        self._schools: set[str] = set()
        self._upkeep_is_claimed = False

    async def append(self, school_id: str, sealed: SealedEntries) -> Appended:
        log = self.logs.setdefault(school_id, {})
        head = self.heads.get(school_id, b"")
        newest = max(log, default=0)
        if head != sealed.expected or newest >= sealed.first:
            is_there = log.get(sealed.first + len(sealed.records) - 1) == sealed.records[-1]
            return Appended(is_there, True, ChainEnd(head, newest))
        log.update(enumerate(sealed.records, start=sealed.first))
        self.heads[school_id] = sealed.head
        self._schools.add(school_id)
        return Appended(True, True, ChainEnd(sealed.head, max(log)))

    async def has_log(self, school_id: str) -> bool:
        return school_id in self._schools

    async def load(self, school_id: str, *, after: int, count: int) -> Portion:
        log = sorted(self.logs.get(school_id, {}).items())
        entries = [entry for entry in log if entry[0] > after][:count]
        return Portion(self.heads.get(school_id, b""), self.anchors.get(school_id, b""), entries)

    async def load_before(self, school_id: str, *, before: int, count: int) -> list[tuple[int, bytes]]:
        log = sorted(self.logs.get(school_id, {}).items(), reverse=True)
        return [entry for entry in log if not before or entry[0] < before][:count]

    async def cut(self, school_id: str, *, expected: bytes, anchor: bytes, through: int) -> bool:
        if self.anchors.get(school_id, b"") != expected:
            return False
        self.anchors[school_id] = anchor
        log = self.logs[school_id]
        for place in [place for place in log if place <= through]:
            del log[place]
        return True

    async def schools(self) -> list[str]:
        return sorted(self._schools)

    async def claim_upkeep(self, seconds: int) -> bool:
        is_first = not self._upkeep_is_claimed
        self._upkeep_is_claimed = True
        return is_first

    async def salts(self, students: Sequence[StudentKey]) -> list[bytes | None]:
        return [self.own_salts.get(student) for student in students]

    async def give_salts(
        self, fresh: Mapping[StudentKey, bytes], newcomers: Collection[StudentKey]
    ) -> list[bytes | None]:
        for student, salt in fresh.items():
            if student in self.known or (student in newcomers and student not in self.erased):
                self.own_salts.setdefault(student, salt)
        return [self.own_salts.get(student) for student in fresh]

    async def take_salt(self, student: StudentKey) -> bytes | None:
        return self.own_salts.pop(student, None)
