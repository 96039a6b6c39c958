"""The use cases of comparing: two cohorts with each other, and one student with a cohort."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mastery_grpc.domain.analytics.comparison import LEAST_SIZE, Comparison, compare
from mastery_grpc.domain.analytics.samples import SampleStatistics, Values, describe, in_one_order
from mastery_grpc.domain.analytics.standing import Standing, standings
from mastery_grpc.domain.analytics.verdict import GroupNames, verdict
from mastery_grpc.domain.errors import CohortNotFound, CohortTooSmall, StudentNotFound

if TYPE_CHECKING:
    from mastery_grpc.application.cohorts.members import CohortMembers
    from mastery_grpc.application.cohorts.store import CohortStore
    from mastery_grpc.domain.cohorts import Cohort, CohortKey
    from mastery_grpc.domain.events import StudentKey

CONFIDENCE_LEVEL = 0.95


class GroupFigures(NamedTuple):
    """The figures of those of some students who have a score."""

    student_ids: Sequence[str]
    columns: Values
    """One row for each of `MEASURES`, one column for each of these students: no object for each, of thousands."""


class FigureReader(Protocol):
    """The figures that students have now, many at a time."""

    async def read_figures(self, school_id: str, student_ids: Collection[str]) -> GroupFigures:
        """Returns the figures of students of a school. Raises StorageUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCohorts:
    """What the comparison of two cohorts comes to."""

    score: Comparison
    components: Sequence[Comparison]
    """In the order of `Component`."""
    level: float
    common_count: int
    """How many students with a score belong to both."""
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedStudent:
    """Where a student stands in a cohort."""

    score: Standing
    components: Sequence[Standing]
    """In the order of `Component`."""
    cohort: SampleStatistics
    """Of the scores."""


class CompareCohorts:
    """Compares by the figures of now. Members without a score are left out. Raises StorageUnavailable."""

    def __init__(self, store: CohortStore, members: CohortMembers, figures: FigureReader) -> None:
        self._store = store
        self._members = members
        self._figures = figures

    async def cohorts(
        self, first: CohortKey, second: CohortKey, *, level: float = CONFIDENCE_LEVEL
    ) -> ComparedCohorts:
        """Compares two cohorts; `level` is that of the intervals.

        Raises CohortNotFound, CohortTooSmall for fewer than 2 members with a score, CohortTooLarge.
        """
        cohorts = [await self._load(key) for key in (first, second)]
        # Side by side: while one waits for the storage, the other is decoded.
        ours, theirs = await asyncio.gather(*(self._figures_of(cohort, LEAST_SIZE) for cohort in cohorts))
        compared = await asyncio.to_thread(compare, ours.columns, theirs.columns, level=level)
        score, *components = compared
        common_count = len(set(ours.student_ids).intersection(theirs.student_ids))
        names = _names(*cohorts)
        return ComparedCohorts(
            score=score,
            components=components,
            level=level,
            common_count=common_count,
            verdict=verdict(compared, names, level=level, common_count=common_count),
        )

    async def student(self, student: StudentKey, key: CohortKey) -> ComparedStudent:
        """Tells where a student stands in a cohort, of which he need not be a member.

        Raises StudentNotFound, CohortNotFound, CohortTooSmall if no member has a score, CohortTooLarge.
        """
        cohort = await self._load(key)
        own = await self._figures.read_figures(student.school_id, [student.student_id])
        if not own.student_ids:
            raise StudentNotFound(student.student_id)
        group = await self._figures_of(cohort, 1)
        columns = in_one_order(group.columns)
        score, *components = standings(own.columns[:, 0], columns)
        return ComparedStudent(score=score, components=components, cohort=describe(columns[0]))

    async def _load(self, key: CohortKey) -> Cohort:
        cohort = (await self._store.load(key)).cohort
        if cohort is None:
            raise CohortNotFound(key.cohort_id)
        return cohort

    async def _figures_of(self, cohort: Cohort, least: int) -> GroupFigures:
        members = await self._members.of(cohort)
        found = await self._figures.read_figures(cohort.profile.school_id, members)
        size = len(found.student_ids)
        if size < least:
            raise CohortTooSmall(cohort.profile.cohort_id, size=size, required_size=least)
        return found


def _names(first: Cohort, second: Cohort) -> GroupNames:
    """Returns the names of two cohorts that are shown, or their ids if those are the same."""
    names = GroupNames(first.profile.display_name, second.profile.display_name)
    return names if names.first != names.second else GroupNames(first.profile.cohort_id, second.profile.cohort_id)
