"""What a forecast looks at: numbers from a Past, none of which depends on anything after its `today`.

Only events of the last 90 days count, as if older ones were no longer kept; the state stands for the rest.
Ages are days before `today`; what never happened has age 100. A mark that there is none of is -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.features.course import PULSE, pulse_features
from mastery_grpc.domain.forecasting.features.fellows import FELLOWS, fellow_features
from mastery_grpc.domain.forecasting.features.recent import Recent, score_values
from mastery_grpc.domain.forecasting.features.rhythm import RHYTHM, SHAPE, rhythm, shape
from mastery_grpc.domain.forecasting.features.standing import (
    EXERCISES,
    MARKS,
    STANDING,
    exercises,
    marks,
    standing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.forecasting.pulse import CoursePulse

__all__ = [
    "COURSE",
    "FEATURES",
    "GROUPS",
    "HORIZON",
    "course_features",
    "feature_rows",
    "features_of",
    "own_features",
    "score_values",
]

GROUPS = (
    ("standing", STANDING, standing),
    ("exercises", EXERCISES, exercises),
    ("rhythm", RHYTHM, rhythm),
    ("marks", MARKS, marks),
    ("shape", SHAPE, shape),
)
"""Name, features and source of each group that needs nothing but the student's own past."""
FEATURES: tuple[str, ...] = (
    *(name for _, names, _ in GROUPS for name in names),
    *PULSE,
    *FELLOWS,
    "horizon",
)
HORIZON = len(FEATURES) - 1
COURSE = slice(HORIZON - len(PULSE) - len(FELLOWS), HORIZON)
"""The features that need the course."""


def own_features(past: Past, recent: Recent) -> list[float]:
    """Returns the values of the GROUPS."""
    return [float(value) for _, _, source in GROUPS for value in source(past, recent)]


def course_features(past: Past, recent: Recent, course: CoursePulse | None) -> list[float]:
    """Returns the values of what fellow students did."""
    return [*pulse_features(course), *fellow_features(past, recent, course)]


def features_of(past: Past) -> list[float]:
    """Returns the values of FEATURES but the horizon."""
    recent = Recent(past)
    return own_features(past, recent) + course_features(past, recent, past.course)


def feature_rows(pasts: Sequence[Past], horizons: Sequence[int]) -> NDArray[np.float32]:
    """Returns a row for each past and horizon, those of a past together; shape (pasts * horizons, features)."""
    rows = np.empty((len(pasts), len(horizons), len(FEATURES)), np.float32)
    for place, past in enumerate(pasts):
        rows[place, :, :HORIZON] = features_of(past)
    rows[:, :, HORIZON] = horizons
    return rows.reshape(-1, len(FEATURES))
