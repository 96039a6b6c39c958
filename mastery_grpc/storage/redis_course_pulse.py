"""The counts of courses on Redis.

One hash per course and month, its fields `DAY:count` such as `14:missed`, so that 90 days are read from at most
four keys, and expire without anybody's doing. Students are counted by a HyperLogLog per course and ISO week: it
holds no ids, so there is nothing to erase in it, and is 0.8 % off. A course's students are those of the 13 weeks
that end with today's, 85 to 91 days.

What is counted for each exercise is in another hash per month. Its fields `=ID` number the exercises in the order
in which they came, `ids` is how many there are, and counts are `DAY:count:NUMBER` such as `14:done:3`. So an id
may be any text and is kept once, and when there are too many, the next one gets no number.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from importlib.resources import files
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np

from mastery_grpc.application.course_pulse import MAX_EXERCISES, latest_exercises
from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, CoursePulse, ExerciseCount
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import run_guarded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.course_pulse import Increments
    from mastery_grpc.application.ports import CourseKey
    from mastery_grpc.storage.connection import Command, RedisClient

STUDENT_WEEKS = 13
MARK_SECONDS = 60
"""For so long a write is known to be done: longer than the driver takes to repeat one whose reply was lost."""
PORTION = 200
"""Courses written at a time, so that other work gets its turn in between."""

_NAMES = [kind.name.lower() for kind in Count]
_ROWS = {name.encode(): row for row, name in enumerate(_NAMES)}
_EXERCISE_NAMES = [kind.name.lower() for kind in ExerciseCount]
_MOST = int(np.iinfo(np.int32).max)  # marks, in thousandths, are the only count that could be more
# Sent whole each time: a second trip for a server that does not know it yet would cost more than these bytes.
_ADD = files("mastery_grpc.storage").joinpath("lua", "count.lua").read_text()


class RedisCoursePulses:
    """Implements `CourseCounters` and `CoursePulses`."""

    def __init__(self, client: RedisClient, *, lifetime: timedelta, breaker: CircuitBreaker | None = None) -> None:
        """`lifetime` of the counts after their last write; more than the 91 days that are looked at."""
        self._lifetime = math.ceil(lifetime.total_seconds())
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)

    async def add(self, courses: Mapping[CourseKey, Increments]) -> None:
        token = token_hex(8)
        commands = [("EVAL", _ADD, *self._arguments(*course, token)) for course in courses.items()]
        for start in range(0, len(commands), PORTION):
            await self._run(commands[start : start + PORTION])

    async def until(self, courses: Sequence[CourseKey], today: date) -> dict[CourseKey, CoursePulse]:
        months = _months_until(today)
        places = [_exercise_places(month, today) for month in months]
        commands: list[Command] = []
        for course in courses:
            commands.append(("PFCOUNT", *(keys.course_students(course, day) for day in _weeks_until(today))))
            commands += (("HGETALL", keys.course_counts(course, month)) for month in months)
            commands += (("HGETALL", keys.course_exercises(course, month)) for month in months)
        replies = iter(await self._run(commands))
        pulses: dict[CourseKey, CoursePulse] = {}
        for course in courses:
            students: int = next(replies)
            counts = np.zeros((len(Count), PULSE_DAYS), np.int32)
            for month in months:
                _read_month(next(replies), month, today, counts)
            of_exercises: dict[str, NDArray[np.int32]] = {}
            for of_month in places:
                _read_exercises(next(replies), of_month, of_exercises)
            if students:
                ids, exercise_counts = latest_exercises(of_exercises)
                counts.flags.writeable = exercise_counts.flags.writeable = False  # many forecasts look at them
                pulses[course] = CoursePulse(students, counts, ids, exercise_counts)
        return pulses

    def _arguments(self, course: CourseKey, increments: Increments, token: str) -> list[Any]:
        """Returns the number of keys, the keys and the arguments of the script."""
        months: dict[str, list[Any]] = {}
        for day, amounts in increments.counts.items():
            fields = months.setdefault(keys.course_counts(course, day), [])
            for name, amount in zip(_NAMES, amounts, strict=True):
                if amount:
                    fields += f"{day.day:02d}:{name}", amount
        exercises: dict[str, list[Any]] = {}
        for exercise_id, days in increments.exercises.items():
            for day, amounts in days.items():
                fields = exercises.setdefault(keys.course_exercises(course, day), [])
                for name, amount in zip(_EXERCISE_NAMES, amounts, strict=True):
                    if amount:
                        fields += exercise_id, f"{day.day:02d}:{name}:", amount
        weeks: dict[str, list[Any]] = {}
        for day, student_id in increments.active:
            weeks.setdefault(keys.course_students(course, day), []).append(student_id)
        by_key = months | exercises | weeks
        values = [argument for its in by_key.values() for argument in (len(its), *its)]
        limits = self._lifetime, MARK_SECONDS, MAX_EXERCISES
        script_keys = [keys.course_write(course, token), *by_key]
        return [len(script_keys), *script_keys, *limits, len(months), len(exercises), *values]


def _weeks_until(today: date) -> list[date]:
    """Returns a day of each of the 13 ISO weeks that end with that of `today`."""
    return [today - timedelta(weeks=weeks) for weeks in range(STUDENT_WEEKS)]


def _months_until(today: date) -> list[date]:
    """Returns the first day of each month that the 90 days up to `today` touch."""
    month, first = today.replace(day=1), today - timedelta(days=PULSE_DAYS - 1)
    months = [month]
    while month > first:
        month = (month - timedelta(days=1)).replace(day=1)
        months.append(month)
    return months


def _read_month(reply: Any, month: date, today: date, counts: NDArray[np.int32]) -> None:
    age_of_start = (today - month).days + 1
    for field, value in _fields(reply).items():
        day, _, name = field.partition(b":")
        age = age_of_start - int(day)
        if name in _ROWS and 0 <= age < PULSE_DAYS:
            # Below zero if a count was lost that a late event took back.
            counts[_ROWS[name], age] = max(0, int(value))


def _read_exercises(
    reply: Any, places: Mapping[bytes, tuple[int, int]], counts: dict[str, NDArray[np.int32]]
) -> None:
    """Adds what a month's hash holds of each exercise to `counts`, shape (5, 90) each."""
    fields = _fields(reply)
    ids = {number: field[1:].decode() for field, number in fields.items() if field.startswith(b"=")}
    for field, value in fields.items():
        of_day, _, number = field.rpartition(b":")
        if (place := places.get(of_day)) is not None and (amount := int(value)) > 0:
            exercise_id = ids[number]
            if (its := counts.get(exercise_id)) is None:
                its = counts[exercise_id] = np.zeros((len(ExerciseCount), PULSE_DAYS), np.int32)
            its[place] = min(amount, _MOST)


def _exercise_places(month: date, today: date) -> dict[bytes, tuple[int, int]]:
    """Returns where `DAY:count` of a month belongs in an exercise's counts: its row and its age in days."""
    age_of_start = (today - month).days
    ages = range(max(0, age_of_start - 30), min(age_of_start + 1, PULSE_DAYS))
    return {
        f"{age_of_start - age + 1:02d}:{name}".encode(): (row, age)
        for age in ages
        for row, name in enumerate(_EXERCISE_NAMES)
    }


def _fields(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
