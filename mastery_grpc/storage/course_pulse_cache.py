"""The counts of courses in a process's memory for a while: all students of a course ask for the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cachetools import TTLCache

from mastery_grpc.application.cache_tally import CacheTally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from mastery_grpc.application.ports import CourseKey, CoursePulses
    from mastery_grpc.domain.forecasting.pulse import CoursePulse

EXERCISES = 50
"""With so many, which are 90 kB, a course counts as one."""


class CachedCoursePulses:
    """Implements `CoursePulses`, through an LRU cache that also remembers of which courses nothing is known."""

    def __init__(
        self, pulses: CoursePulses, *, capacity: int, lifetime: float, timer: Callable[[], float]
    ) -> None:
        """`capacity` in courses of up to 50 exercises, at least 10: one of more takes the place of up to ten.

        `lifetime` in seconds, by the monotonic `timer`: by so much an answer may be behind.
        """
        self._pulses = pulses
        self._entries: TTLCache[tuple[CourseKey, date], CoursePulse | None] = TTLCache(
            capacity, lifetime, timer, getsizeof=_size
        )
        self.l1 = CacheTally()

    async def until(self, courses: Sequence[CourseKey], today: date) -> dict[CourseKey, CoursePulse]:
        found: dict[CourseKey, CoursePulse | None] = {}
        missing = []
        for course in courses:
            try:
                found[course] = self._entries[course, today]
            except KeyError:
                missing.append(course)
        self.l1.take(asked=len(courses), missing=len(missing))
        if missing:
            read = await self._pulses.until(missing, today)
            for course in missing:
                found[course] = self._entries[course, today] = read.get(course)
        return {course: pulse for course, pulse in found.items() if pulse is not None}


def _size(pulse: CoursePulse | None) -> int:
    return max(1, math.ceil(len(pulse.exercises) / EXERCISES)) if pulse else 1
