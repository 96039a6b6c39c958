"""The counts of courses in a process's memory for a while: all students of a course ask for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import TTLCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from mastery_grpc.application.ports import CourseKey, CoursePulses
    from mastery_grpc.domain.forecasting.pulse import CoursePulse


class CachedCoursePulses:
    """Implements `CoursePulses`, through an LRU cache that also remembers of which courses nothing is known."""

    def __init__(
        self, pulses: CoursePulses, *, capacity: int, lifetime: float, timer: Callable[[], float]
    ) -> None:
        """`lifetime` in seconds, by the monotonic `timer`: by so much an answer may be behind."""
        self._pulses = pulses
        self._entries: TTLCache[tuple[CourseKey, date], CoursePulse | None] = TTLCache(capacity, lifetime, timer)

    async def until(self, courses: Sequence[CourseKey], today: date) -> dict[CourseKey, CoursePulse]:
        found: dict[CourseKey, CoursePulse | None] = {}
        missing = []
        for course in courses:
            try:
                found[course] = self._entries[course, today]
            except KeyError:
                missing.append(course)
        if missing:
            read = await self._pulses.until(missing, today)
            for course in missing:
                found[course] = self._entries[course, today] = read.get(course)
        return {course: pulse for course, pulse in found.items() if pulse is not None}
