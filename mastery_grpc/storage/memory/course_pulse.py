"""The counts of courses in a process's memory: the fake, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.application.course_pulse import MAX_EXERCISES, latest_exercises
from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, CoursePulse, ExerciseCount

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
        self._exercises: defaultdict[tuple[CourseKey, int, int], dict[str, dict[date, NDArray[np.int32]]]] = (
            defaultdict(dict)
        )
        """By course, year and month."""
        self._active: defaultdict[CourseKey, set[tuple[date, str]]] = defaultdict(set)

    async def add(self, courses: Mapping[CourseKey, Increments]) -> None:
        for course, increments in courses.items():
            self._active[course] |= increments.active
            for day, amounts in increments.counts.items():
                self._counts[course][day] += np.array(amounts, np.int32)
            for exercise_id, days in increments.exercises.items():
                for day, amounts in days.items():
                    self._add_to_exercise(course, exercise_id, day, amounts)

    async def until(self, courses: Sequence[CourseKey], today: date) -> dict[CourseKey, CoursePulse]:
        pulses = {course: self._until(course, today) for course in courses}
        return {course: pulse for course, pulse in pulses.items() if pulse is not None}

    def _add_to_exercise(self, course: CourseKey, exercise_id: str, day: date, amounts: list[int]) -> None:
        month = self._exercises[course, day.year, day.month]
        if any(amounts) and (exercise_id in month or len(month) < MAX_EXERCISES):
            numbers = month.setdefault(exercise_id, {})
            numbers[day] = numbers.get(day, 0) + np.array(amounts, np.int32)

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
        return CoursePulse(len(students), counts, *latest_exercises(self._exercises_until(course, today)))

    def _exercises_until(self, course: CourseKey, today: date) -> dict[str, NDArray[np.int32]]:
        found: defaultdict[str, NDArray[np.int32]] = defaultdict(
            lambda: np.zeros((len(ExerciseCount), PULSE_DAYS), np.int32)
        )
        for (its_course, _, _), month in self._exercises.items():
            for exercise_id, days in month.items() if its_course == course else ():
                for day, numbers in days.items():
                    if 0 <= (age := (today - day).days) < PULSE_DAYS:
                        found[exercise_id][:, age] = numbers.clip(0)
        return found
