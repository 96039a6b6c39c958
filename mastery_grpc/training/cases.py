"""Cases to learn from and to be measured on: what was known of a student on a day, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.forecasting.features import (
    COURSE,
    FEATURES,
    HORIZON,
    course_features,
    own_features,
    score_values,
)
from mastery_grpc.domain.forecasting.features.fellows import FELLOWS, NO_FELLOWS
from mastery_grpc.domain.forecasting.features.recent import Recent
from mastery_grpc.domain.forecasting.forecast import MAX_HORIZON_DAYS, History
from mastery_grpc.domain.forecasting.pulse import CourseDays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mastery_grpc.domain.events import LearningEvent, StudentKey
    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.scoring import ScoringRules

FIRST_ORIGIN = 14
"""Days after the first event day."""
ORIGIN_STEP = 7
MAIN_HORIZON = 7
SOON_SHARE = 0.4
"""Of the cases that ask for any horizon, how many ask for one below the main one."""
MISSING_SHARE = 0.3
"""Of the cases, how many are learned once more without their course."""
NO_TABLE_SHARE = 0.2
"""Of the cases, how many are learned once more with their course, but not its single exercises."""
TABLE = slice(HORIZON - len(FELLOWS), HORIZON)
"""The features that need the single exercises of the course."""


def histories_of(events: Iterable[LearningEvent], rules: ScoringRules) -> dict[StudentKey, History]:
    """Returns each student's history, in order of his key."""
    students: dict[StudentKey, list[LearningEvent]] = {}
    for event in events:
        students.setdefault(event.student, []).append(event)
    keys = sorted(students, key=lambda key: (key.school_id, key.student_id))
    return {key: History(students[key], rules) for key in keys}


def origins_of(history: History) -> list[date]:
    """Returns every 7th day from the first event day + 14 to the last event day, inclusive."""
    days = history.days
    span = (days[-1] - days[0]).days
    return [days[0] + timedelta(days=ahead) for ahead in range(FIRST_ORIGIN, span + 1, ORIGIN_STEP)]


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Rows to learn from."""

    rows: NDArray[np.float32]
    """Shape (n, features)."""
    changes: NDArray[np.float64]
    """Shape (n, 5): the change of the score and of the four components until the horizon."""
    importance: NDArray[np.float64]


class _Known:
    """A student's values at the end of any day."""

    def __init__(self, history: History) -> None:
        days = history.days
        self.first = days[0].toordinal()
        length = days[-1].toordinal() - self.first + MAX_HORIZON_DAYS + 1
        self._values = np.empty((length, 5))
        for day, following in zip(days, [*days[1:], None], strict=True):
            past = history.until(day)
            if past is None:
                continue
            end = length if following is None else following.toordinal() - self.first
            self._values[day.toordinal() - self.first : end] = score_values(past.state, past.rules)

    def change(self, today: date, horizon: int) -> NDArray[np.float64]:
        place = today.toordinal() - self.first
        change: NDArray[np.float64] = self._values[place + horizon] - self._values[place]
        return change


def training_cases(
    histories: Mapping[StudentKey, History], *, seed: int, progress: Callable[[str, int, int], None]
) -> Cases:
    """Returns the regular origins, and one early one of each student, several times over.

    Each time the students are parted into courses of another size, because what fellow students did must be read
    as a rhythm: the same course looks a little different from within each part, so that it cannot be learned by
    heart. Most repetitions ask for the main horizon, one for any; in some cases the course is not known, or its
    exercises are not.
    """
    random = np.random.default_rng(seed)
    students = list(histories.values())
    origins: list[tuple[int, date]] = []
    for place, history in enumerate(students):
        early = history.days[0] + timedelta(days=int(random.integers(0, FIRST_ORIGIN)))
        if early <= history.days[-1]:
            origins.append((place, early))
        origins.extend((place, origin) for origin in origins_of(history))
    known = [_Known(history) for history in students]
    base = np.empty((len(origins), len(FEATURES)), np.float32)
    pasts: list[tuple[Past, Recent]] = []
    for number, (place, origin) in enumerate(origins):
        past = students[place].until(origin)
        if past is None:
            raise ValueError("an origin precedes the first event")
        pasts.append((past, Recent(past)))
        base[number, : COURSE.start] = own_features(*pasts[-1])
        base[number, COURSE] = course_features(*pasts[-1], None)
        if number % 1000 == 0:
            progress("features", number, len(origins))
    whole = np.full(len(origins), MAIN_HORIZON)
    any_horizon = random.integers(1, MAX_HORIZON_DAYS + 1, len(origins))
    soon = random.random(len(origins)) < SOON_SHARE
    any_horizon[soon] = random.integers(1, MAIN_HORIZON, int(soon.sum()))
    parts: list[Cases] = []
    repetitions = ((whole, 1, 1.0), (whole, 2, 1.0), (whole, 3, 1.0), (whole, 6, 1.0), (any_horizon, 3, 0.7))
    rows = base
    for horizons, groups, importance in repetitions:
        progress("courses", len(parts), len(repetitions))
        rows = base.copy()
        rows[:, COURSE] = _courses(students, origins, pasts, random.integers(0, groups, len(students)))
        parts.append(_with_targets(rows, known, origins, horizons, importance))
    rows[:, TABLE] = NO_FELLOWS
    for without, share in ((base, MISSING_SHARE), (rows, NO_TABLE_SHARE)):
        some = np.flatnonzero(random.random(len(origins)) < share)
        horizons = np.where(random.random(len(origins)) < 0.5, whole, any_horizon)[some]
        parts.append(_with_targets(without[some], known, [origins[number] for number in some], horizons, 0.7))
    return Cases(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.changes for part in parts]),
        np.concatenate([part.importance for part in parts]),
    )


def _courses(
    students: Sequence[History],
    origins: Sequence[tuple[int, date]],
    pasts: Sequence[tuple[Past, Recent]],
    group: NDArray[np.int64],
) -> NDArray[np.float32]:
    courses = [
        CourseDays(
            student.events for student, its_group in zip(students, group, strict=True) if its_group == number
        )
        for number in range(int(group.max()) + 1)
    ]
    values = np.empty((len(origins), COURSE.stop - COURSE.start), np.float32)
    keys = [
        (int(group[place]), past.events[-1].course_id, origin)
        for (place, origin), (past, _) in zip(origins, pasts, strict=True)
    ]
    # Those who share a pulse one after another: it is looked up once.
    in_order = sorted(range(len(keys)), key=keys.__getitem__)
    for (number, course_id, origin), cases in groupby(in_order, keys.__getitem__):
        pulse = courses[number].until(course_id, origin)
        for case in cases:
            values[case] = course_features(*pasts[case], pulse)
    return values


def _with_targets(
    rows: NDArray[np.float32],
    known: Sequence[_Known],
    origins: Sequence[tuple[int, date]],
    horizons: NDArray[np.int64],
    importance: float,
) -> Cases:
    rows = rows.copy()
    rows[:, HORIZON] = horizons
    changes = [
        known[place].change(origin, int(horizon))
        for (place, origin), horizon in zip(origins, horizons, strict=True)
    ]
    return Cases(rows, np.array(changes), np.full(len(rows), importance))
