"""The only place that spells a Redis key.

The braces make all keys of a student share one Redis Cluster slot, so that one script can write them all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from datetime import date

ANNOUNCEMENTS = "mastery:announcements"
"""The channel on which every committed mastery is published, as its JSON."""

_is_current_mastery = re.compile(
    r"(school:(?P<school>[^:]+):)?student:\{(?P<student>[^}]+)\}:profile:current_mastery"
).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long each kind of key lives after its last write."""

    snapshots: timedelta = timedelta(days=90)
    event_log: timedelta = timedelta(days=90)
    processed: timedelta = timedelta(days=7)
    activity: timedelta = timedelta(days=30)


def current_mastery(student: StudentKey) -> str:
    """Returns the key of the current mastery and the state behind it; it never expires."""
    return f"{_student(student)}:profile:current_mastery"


def current_masteries(school_id: str | None) -> str:
    """Returns the glob of the keys of all current masteries, or of one school's; "" is the default school."""
    school = "*" if school_id is None else f"school:{school_id}:" if school_id else ""
    return f"{school}student:{{*}}:profile:current_mastery"


def student_of(current_mastery_key: bytes) -> StudentKey | None:
    """Returns whose current mastery a key is, None for a key of another kind."""
    found = _is_current_mastery(current_mastery_key.decode(errors="replace"))
    return found and StudentKey(found["student"], found["school"] or "")


def snapshot(student: StudentKey, day: date) -> str:
    """Returns the key of a day's last mastery; with `:completion` and so on, of one component's score."""
    return f"{_student(student)}:mastery:{day.isoformat()}"


def event_log(student: StudentKey) -> str:
    """Returns the key of the stream of events."""
    return f"{_student(student)}:events"


def activity(student: StudentKey) -> str:
    """Returns the key of the recent active days and streaks."""
    return f"{_student(student)}:activity:recent"


def prediction(student: StudentKey) -> str:
    """Returns the key of the cached prediction."""
    return f"{_student(student)}:prediction:7days"


def path(student: StudentKey) -> str:
    """Returns the key of the cached learning path."""
    return f"{_student(student)}:path:adaptive"


def processed(student: StudentKey, event_id: str) -> str:
    """Returns the key of the proof that an event was applied."""
    return f"{_school(student)}processed:{{{student.student_id}}}:{event_id}"


def _student(student: StudentKey) -> str:
    return f"{_school(student)}student:{{{student.student_id}}}"


def _school(student: StudentKey) -> str:
    return f"school:{student.school_id}:" if student.school_id else ""
