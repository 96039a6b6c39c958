"""Stores of cohorts, two at a time, and the use cases on them."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from mastery_grpc.application.cohorts.manage import CountedCohort, ManageCohorts
from mastery_grpc.application.cohorts.members import CohortMembers
from mastery_grpc.application.cohorts.store import CohortStore, StoredCohort
from mastery_grpc.application.compliance.erasure_mark import ErasureMark, erase_millis
from mastery_grpc.domain.cohorts import CohortKey
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage.connection import RedisClient
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import at, event_id

CLASS = CohortKey("class-7b")
REQUEST, ANOTHER = event_id(7), event_id(8)
IN_NORTH = CohortKey("class-7b", "north")


class Stores(NamedTuple):
    """Two stores on one empty storage, as two processes have them."""

    one: CohortStore
    other: CohortStore
    client: RedisClient | None = None


class Erasures:
    """Implements `ErasureMarks`."""

    def __init__(self, **times: datetime) -> None:
        self._marks = {
            student_id: ErasureMark(rebuilds=1, erase_millis=erase_millis(time), receipt_id="", pseudonym="")
            for student_id, time in times.items()
        }

    async def marks_of(self, students: Sequence[StudentKey]) -> list[ErasureMark | None]:
        return [self._marks.get(student.student_id) for student in students]


def managing(store: CohortStore, *, erasures: Erasures | None = None) -> ManageCohorts:
    members = CohortMembers(MemoryStudentRepository(clock=at))
    return ManageCohorts(store, members, erasures or Erasures(), clock=at)


def members_of(stored: StoredCohort | CountedCohort) -> set[str]:
    assert stored.cohort is not None
    return set(stored.cohort.members)


def many(count: int) -> list[str]:
    return [f"student_{number:05}" for number in range(count)]
