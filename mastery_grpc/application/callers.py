"""Who calls: what a token says of him, as far as the use cases care."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller is, as the `role` claim spells it."""

    STUDENT = "student"
    TEACHER = "teacher"
    ADMIN = "admin"
    SERVICE = "service"

    @property
    def is_person(self) -> bool:
        """Whether a human being calls."""
        return self is not Role.SERVICE


class CallClass(StrEnum):
    """Groups of calls that are limited on their own, as in `mastery.v1.CallClass`."""

    READ = "read"
    WRITE = "write"
    INGEST = "ingest"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, as his token says."""

    subject: str
    role: Role
    school_id: str = ""
    """The school that he is confined to. Empty for the default school; an administrator or a service is then
    confined to none."""

    @property
    def is_confined(self) -> bool:
        """Whether he can reach his own school only."""
        return bool(self.school_id) or self.role in (Role.STUDENT, Role.TEACHER)
