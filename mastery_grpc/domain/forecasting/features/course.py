"""What fellow students of the course did: on the whole, with or without a look at the student himself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.features.recent import NEVER
from mastery_grpc.domain.forecasting.pulse import Count

if TYPE_CHECKING:
    from mastery_grpc.domain.forecasting.pulse import CoursePulse

_PULSE_DAYS = (1, 3, 7, 14, 28)
_DEADLINE_SHARES = (0.04, 0.15)
PULSE = (
    *(f"course_{count.name.lower()}_{days}" for count in Count for days in _PULSE_DAYS),
    *(f"course_deadline_{share:.2f}" for share in _DEADLINE_SHARES),
)
_NO_PULSE = [-1.0] * len(PULSE)


def pulse_features(pulse: CoursePulse | None) -> list[float]:
    """What fellow students did: events a student over some spans, and the age of the last deadline many missed.

    -1 throughout if the course is not known.
    """
    if pulse is None:
        return _NO_PULSE
    # Three students more keep a course of a few from looking like a stampede.
    students = pulse.students + 3
    sums = np.cumsum(pulse.counts, axis=1)[:, [days - 1 for days in _PULSE_DAYS]]
    values: list[float] = (sums / students).ravel().tolist()
    missed = pulse.counts[Count.MISSED]
    for share in _DEADLINE_SHARES:
        days = np.flatnonzero(missed >= share * students)
        values.append(float(days[0]) if days.size else NEVER)
    return values
