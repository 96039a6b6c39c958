"""What stands for a student in the audit log, and how he is cut off from it when he is erased.

A pseudonym is a keyed hash over a random salt that is kept with the student's own data. While the salt is there,
his entries can be found; once it is gone, nothing tells whose they were: not the log, not the key.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from cachetools import LRUCache, TTLCache

from mastery_grpc.domain.audit_chain import PSEUDONYM_SIZE
from mastery_grpc.domain.events import student_violations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mastery_grpc.application.audit.store import AuditStore
    from mastery_grpc.domain.audit_chain import AuditKeys
    from mastery_grpc.domain.events import StudentKey

CAPACITY = 50_000
LIFETIME = 600.0
"""Seconds that a pseudonym is remembered, in case nobody tells this process of an erasure."""
ERASED_CAPACITY = 1000
ERASED_LIFETIME = 60.0
"""Seconds that the pseudonym of an erased student stands for him still, in entries about calls under way."""
SALT_SIZE = 16


class Pseudonyms:
    """Finds pseudonyms, many at a time, and remembers them."""

    def __init__(self, store: AuditStore, keys: AuditKeys, *, timer: Callable[[], float]) -> None:
        self._store = store
        self._keys = keys
        self._known: TTLCache[StudentKey, bytes] = TTLCache(CAPACITY, LIFETIME, timer)
        self._erased: TTLCache[StudentKey, bytes] = TTLCache(ERASED_CAPACITY, ERASED_LIFETIME, timer)
        self._dropped: LRUCache[StudentKey, int] = LRUCache(ERASED_CAPACITY)
        self._drops = 0

    async def for_entries(self, wanted: Mapping[StudentKey, bool]) -> dict[StudentKey, bytes]:
        """Returns the pseudonyms of students, and gives one to each that has none.

        Not to one of whom nothing is held, or who was erased; but if the value is true, to one of whom nothing is
        held yet. Raises StorageUnavailable.
        """
        known = self._known
        found: dict[StudentKey, bytes] = {}
        missing = []
        for student in wanted:
            try:
                found[student] = known[student]
            except KeyError:
                if not any(student_violations(student)):  # calls are recorded even if their requests are not valid
                    missing.append(student)
        if not missing:
            return found
        drops = self._drops
        salts = dict(zip(missing, await self._store.salts(missing), strict=True))
        without = [student for student, salt in salts.items() if salt is None]
        if without:
            fresh = {student: secrets.token_bytes(SALT_SIZE) for student in without}
            newcomers = {student for student in without if wanted[student]}
            given = await self._store.give_salts(fresh, newcomers)
            salts |= dict(zip(without, given, strict=True))
        for student, salt in salts.items():
            if salt is not None:
                found[student] = self._keys.pseudonym(student.school_id, student.student_id, salt)
                if self._dropped.get(student, 0) <= drops:  # else he was erased in the meantime
                    known[student] = found[student]
            elif student in self._erased:
                found[student] = self._erased[student]
        return found

    async def find(self, student: StudentKey) -> bytes | None:
        """Returns the pseudonym that a student has. Raises StorageUnavailable."""
        [salt] = await self._store.salts([student])
        return None if salt is None else self._keys.pseudonym(student.school_id, student.student_id, salt)

    async def forget(self, student: StudentKey) -> bytes:
        """Cuts a student off from his pseudonym and returns it; if he had none, one that stood for nobody.

        Raises StorageUnavailable.
        """
        salt = await self._store.take_salt(student)
        if salt is not None:
            pseudonym = self._keys.pseudonym(student.school_id, student.student_id, salt)
        else:
            known = self._known.get(student) or self._erased.get(student)
            pseudonym = known or secrets.token_bytes(PSEUDONYM_SIZE)
        self._erased[student] = pseudonym
        self.drop(student)
        return pseudonym

    def drop(self, student: StudentKey) -> None:
        """Does not rely on what is remembered of a student any more."""
        self._drops += 1
        self._dropped[student] = self._drops
        self._known.pop(student, None)
