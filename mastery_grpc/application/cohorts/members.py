"""Who belongs to a cohort at the time of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.cohorts import MOST_MEMBERS
from mastery_grpc.domain.errors import CohortTooLarge

if TYPE_CHECKING:
    from collections.abc import Set

    from mastery_grpc.application.ports import StudentRepository
    from mastery_grpc.domain.cohorts import Cohort


class CohortMembers:
    """Finds the members, of whom a whole school has those that are known to the repository."""

    def __init__(self, repository: StudentRepository) -> None:
        self._repository = repository

    async def of(self, cohort: Cohort) -> Set[str]:
        """Returns the ids of the members. Raises CohortTooLarge for a school of more than 10,000."""
        if not cohort.profile.whole_school:
            return cohort.members
        students = await self._some_of(cohort.profile.school_id)
        if len(students) > MOST_MEMBERS:
            raise CohortTooLarge(cohort.profile.cohort_id, size=len(students), limit=MOST_MEMBERS)
        return students

    async def count_school(self, school_id: str) -> int:
        """Returns how many students a school has, counted no further than 10,001."""
        return len(await self._some_of(school_id))

    async def _some_of(self, school_id: str) -> set[str]:
        """Returns the students of a school, or 10,001 of them: what is done for a cohort is bounded."""
        found: set[str] = set()
        async for portion in self._repository.walk(school_id):
            for student in portion:
                found.add(student.student_id)
                if len(found) > MOST_MEMBERS:
                    return found
        return found
