"""Cohorts: named groups of the students of one school, and how they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from mastery_grpc.domain.errors import CohortByRule, CohortTooLarge

MOST_MEMBERS = 10_000


class CohortKey(NamedTuple):
    """One cohort of one school; an empty `school_id` is the default school."""

    cohort_id: str
    school_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortProfile:
    """A cohort but for its members; the field names are those of the stored JSON.

    `etag` leads so that a script can read it without parsing the rest.
    """

    etag: str
    """Another one after every change, and in every cohort that ever had the id."""
    cohort_id: str
    school_id: str
    display_name: str
    whole_school: bool
    """Whether all students of the school belong to it, rather than those listed."""
    member_count: int
    """Of those listed; 0 for a whole school."""
    create_time: datetime
    update_time: datetime

    @property
    def key(self) -> CohortKey:
        return CohortKey(self.cohort_id, self.school_id)


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort with the ids of the students listed in it, none for a whole school."""

    profile: CohortProfile
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class WholeSchool:
    """Stands for all students of a school."""


Membership = Sequence[str] | WholeSchool
"""Students listed by their ids, or all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortChange:
    """What is to become of a cohort; what is not given stays."""

    display_name: str | None = None
    replacement: Membership | None = None
    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    """Removed after the others were added."""


def created(key: CohortKey, display_name: str, membership: Membership, *, etag: str, now: datetime) -> Cohort:
    """Returns a new cohort. Raises CohortTooLarge."""
    profile = CohortProfile(
        etag=etag,
        cohort_id=key.cohort_id,
        school_id=key.school_id,
        display_name=display_name,
        whole_school=False,
        member_count=0,
        create_time=now,
        update_time=now,
    )
    return _with_membership(Cohort(profile, frozenset()), membership)


def changed(cohort: Cohort, change: CohortChange, *, etag: str, now: datetime) -> Cohort:
    """Returns a cohort after a change. Raises CohortTooLarge, CohortByRule."""
    profile = replace(cohort.profile, etag=etag, update_time=now)
    if change.display_name is not None:
        profile = replace(profile, display_name=change.display_name)
    cohort = Cohort(profile, cohort.members)
    if change.replacement is not None:
        cohort = _with_membership(cohort, change.replacement)
    if not change.added and not change.removed:
        return cohort
    if cohort.profile.whole_school:
        raise CohortByRule(profile.cohort_id)
    return _with_membership(cohort, tuple((cohort.members | set(change.added)) - set(change.removed)))


def _with_membership(cohort: Cohort, membership: Membership) -> Cohort:
    if isinstance(membership, WholeSchool):
        return Cohort(replace(cohort.profile, whole_school=True, member_count=0), frozenset())
    members = frozenset(membership)
    if len(members) > MOST_MEMBERS:
        raise CohortTooLarge(cohort.profile.cohort_id, size=len(members), limit=MOST_MEMBERS)
    return Cohort(replace(cohort.profile, whole_school=False, member_count=len(members)), members)
