"""The counts of courses in a process's memory: the fake, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, CoursePulse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mastery_grpc.application.course_pulse import Increments
    from mastery_grpc.application.ports import CourseKey

STUDENT_WEEKS = 13


class MemoryCoursePulses:
    """Implements `CourseCounters` and `CoursePulses`; nothing expires, and students are counted exactly."""

    def __init__(self) -> None:
        self._counts: defaultdict[CourseKey, defaultdict[date, NDArray[np.int32]]] = defaultdict(
            lambda: defaultdict(lambda: np.zeros(len(Count), np.int32))
        )
        self._active: defaultdict[CourseKey, set[tuple[date, str]]] = defaultdict(set)

    async def add(self, courses: Mapping[CourseKey, Increments]) -> None:
        for course, increments in courses.items():
            self._active[course] |= increments.active
            for day, amounts in increments.counts.items():
                self._counts[course][day] += np.array(amounts, np.int32)

    async def until(self, courses: Sequence[CourseKey], today: date) -> dict[CourseKey, CoursePulse]:
        pulses = {course: self._until(course, today) for course in courses}
        return {course: pulse for course, pulse in pulses.items() if pulse is not None}

    def _until(self, course: CourseKey, today: date) -> CoursePulse | None:
        monday = today - timedelta(days=today.weekday())
        first, end = monday - timedelta(weeks=STUDENT_WEEKS - 1), monday + timedelta(weeks=1)
        students = {student for day, student in self._active[course] if first <= day < end}
        if not students:
            return None
        counts = np.zeros((len(Count), PULSE_DAYS), np.int32)
        for day, numbers in self._counts[course].items():
            if 0 <= (age := (today - day).days) < PULSE_DAYS:
                counts[:, age] = numbers.clip(0)
        return CoursePulse(len(students), counts)
