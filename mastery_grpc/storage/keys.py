"""The only place that spells a Redis key.

The braces make all keys of a student share one Redis Cluster slot, so that one script can write them all.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from mastery_grpc.application.compliance.retention import Retention as Retention
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from datetime import date

    from mastery_grpc.application.callers import CallClass, Caller
    from mastery_grpc.application.ports import CourseKey
    from mastery_grpc.domain.batch import BatchKey, BatchPriority
    from mastery_grpc.domain.cohorts import CohortKey

ANNOUNCEMENTS = "mastery:announcements"
"""The channel on which every committed mastery is published, as its JSON."""
BATCH_ANNOUNCEMENTS = "mastery:batches"
"""The channel on which `school/batch` is published after every change of a batch, and "" when work is queued."""

CURRENT_MASTERIES = "*student:{*}:profile:current_mastery"
"""The glob of the keys of all current masteries."""
_is_current_mastery = re.compile(
    r"(school:(?P<school>[^:]+):)?student:\{(?P<student>[^}]+)\}:profile:current_mastery"
).fullmatch


def current_mastery(student: StudentKey) -> str:
    """Returns the key of the current mastery and the state behind it; it never expires."""
    return f"{_student(student)}:profile:current_mastery"


def student_of(current_mastery_key: bytes) -> StudentKey | None:
    """Returns whose current mastery a key is, None for a key of another kind."""
    found = _is_current_mastery(current_mastery_key.decode(errors="replace"))
    return found and StudentKey(found["student"], found["school"] or "")


def snapshot(student: StudentKey, day: date) -> str:
    """Returns the key of a day's last mastery; with `:completion` and so on, of one component's score."""
    return f"{snapshot_prefix(student)}{day.isoformat()}"


def day_keys(student: StudentKey, day: date) -> tuple[str, ...]:
    """Returns the keys of a day's snapshot and of its four scores."""
    key = snapshot(student, day)
    return key, f"{key}:completion", f"{key}:quiz", f"{key}:quality", f"{key}:consistency"


def snapshot_prefix(student: StudentKey) -> str:
    """Returns what the keys of a student's snapshots begin with; the day follows."""
    return f"{_student(student)}:mastery:"


def snapshot_days(student: StudentKey) -> str:
    """Returns the key of the days that have a snapshot, a sorted set by when it was written."""
    return f"{_student(student)}:mastery:days"


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


def feedback(student: StudentKey) -> str:
    """Returns the key of what became of advice, and of the requests that told it."""
    return f"{_student(student)}:feedback"


def audit_salt(student: StudentKey) -> str:
    """Returns the key of the salt that links a student to his entries in the audit log."""
    return f"{_student(student)}:audit"


def processed(student: StudentKey, event_id: str) -> str:
    """Returns the key of the proof that an event was applied."""
    return f"{_school(student.school_id)}processed:{{{student.student_id}}}:{event_id}"


def erased(student: StudentKey) -> str:
    """Returns the key of the mark that a student was erased."""
    return f"{_school(student.school_id)}erased:{{{student.student_id}}}"


def school_students(school_id: str) -> str:
    """Returns the key of the set of a school's students, those with a mastery and perhaps some without."""
    return f"{_school(school_id)}students"


def forecasts_due(day: date) -> str:
    """Returns the key of the forecasts for a day, a hash by `school/student`."""
    return f"forecast:due:{day.isoformat()}"


def forecast_score(day: date) -> str:
    """Returns the key of what became of the forecasts for a day."""
    return f"forecast:score:{day.isoformat()}"


def forecast_claim(day: date) -> str:
    """Returns the key by which one process tells the others that it scores a day."""
    return f"forecast:claim:{day.isoformat()}"


def course_counts(course: CourseKey, day: date) -> str:
    """Returns the key of what a course's students did in the month of `day`; all keys of a course share a slot."""
    return f"{_course(course)}:pulse:{day.year:04d}-{day.month:02d}"


def course_exercises(course: CourseKey, day: date) -> str:
    """Returns the key of what was done about each exercise of a course in the month of `day`."""
    return f"{_course(course)}:exercises:{day.year:04d}-{day.month:02d}"


def course_students(course: CourseKey, day: date) -> str:
    """Returns the key of how many students were active in the ISO week of `day`."""
    year, week, _ = day.isocalendar()
    return f"{_course(course)}:students:{year:04d}-W{week:02d}"


def course_write(course: CourseKey, token: str) -> str:
    """Returns the key by which a write that the driver repeats is known for one that was done."""
    return f"{_course(course)}:written:{token}"


def cohort(its: CohortKey) -> str:
    """Returns the key of a cohort but for its members; its keys share a slot."""
    return f"{_cohort(its)}:profile"


def cohort_members(its: CohortKey) -> str:
    """Returns the key of the set of students listed in a cohort."""
    return f"{_cohort(its)}:members"


def cohort_requests(its: CohortKey) -> str:
    """Returns the key of the requests to change a cohort that were carried out lately."""
    return f"{_cohort(its)}:requests"


def cohort_index(school_id: str) -> str:
    """Returns the key of the ids of the cohorts of a school, in order; some may be gone."""
    return f"{_school(school_id)}cohort:index"


def audit_log(school_id: str) -> str:
    """Returns the key of the audit log of a school; its keys share a slot."""
    return f"{_audit(school_id)}:log"


def audit_head(school_id: str) -> str:
    """Returns the key of the signed end of the audit log of a school."""
    return f"{_audit(school_id)}:head"


def audit_anchor(school_id: str) -> str:
    """Returns the key of the signed beginning of an audit log of which the oldest part was forgotten."""
    return f"{_audit(school_id)}:anchor"


AUDIT_SCHOOLS = "audit:schools"
"""The key of the set of schools that have an audit log."""
AUDIT_UPKEEP = "audit:upkeep"
"""The key by which one process tells the others that it does the upkeep of the audit logs."""


def upkeep(work: str) -> str:
    """Returns the key by which one process tells the others that it does some upkeep."""
    return f"upkeep:{work}"


def quota(caller: Caller, call_class: CallClass) -> str:
    """Returns the key of how many calls of a class a caller made lately; who he is cannot be read from it."""
    who = f"{caller.school_id}/{caller.role}/{caller.subject}"
    return f"limit:{{{hashlib.sha256(who.encode()).hexdigest()[:32]}}}:{call_class}"


def batch_state(batch: BatchKey) -> str:
    """Returns the key of how far a batch is; all keys of a batch share a slot."""
    return f"{_batch(batch)}:state"


def batch_items(batch: BatchKey) -> str:
    """Returns the key of the items of a batch, a hash by place."""
    return f"{_batch(batch)}:items"


def batch_results(batch: BatchKey) -> str:
    """Returns the key of what became of the items, a hash by place."""
    return f"{_batch(batch)}:results"


def batch_scores(batch: BatchKey) -> str:
    """Returns the key of the scores that the results tell, a sorted set of places."""
    return f"{_batch(batch)}:scores"


def student_batches(student: StudentKey) -> str:
    """Returns the key of where a student stands in batches, a sorted set of `batch/place` by the end of life."""
    return f"{_student(student)}:batches"


def batch_queue(priority: BatchPriority) -> str:
    """Returns the key of the queue of chunks, a stream; all queues and who waits in them share a slot."""
    return f"{_BATCH_WORK}:{priority}"


# No id of a batch has a dot.
_BATCH_WORK = "batch:{.work}"
BATCHES_OPEN = f"{_BATCH_WORK}:open"
"""The key of the batches that have not ended, a sorted set of `school/batch/owner` by creation."""
BATCH_UPKEEP = f"{_BATCH_WORK}:upkeep"
"""The key by which one process tells the others that it looks for lost chunks."""


def batches_open_of(owner: str) -> str:
    """Returns the key of those of one owner."""
    return f"{BATCHES_OPEN}:{owner}"


def _batch(batch: BatchKey) -> str:
    return f"{_school(batch.school_id)}batch:{{{batch.batch_id}}}"


def _audit(school_id: str) -> str:
    # No id of a school has a dot; empty braces would give each key a slot of its own.
    return f"audit:{{{school_id or '.default'}}}"


def _cohort(its: CohortKey) -> str:
    return f"{_school(its.school_id)}cohort:{{{its.cohort_id}}}"


def _course(course: CourseKey) -> str:
    # Quoted, because a course's id may be any text: a brace in it would move some of its keys to other slots.
    return f"{_school(course.school_id)}course:{{{quote(course.course_id, safe='')}}}"


def _student(student: StudentKey) -> str:
    return f"{_school(student.school_id)}student:{{{student.student_id}}}"


def _school(school_id: str) -> str:
    return f"school:{school_id}:" if school_id else ""
