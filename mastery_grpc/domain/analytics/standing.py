"""Where one student stands in a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mastery_grpc.domain.analytics.samples import MEASURES, deviation
from mastery_grpc.domain.scoring import Component

if TYPE_CHECKING:
    from mastery_grpc.domain.analytics.samples import Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where he stands by one value."""

    component: Component | None
    """None for the score."""
    value: float
    percentile_rank: float
    """The share of the group below him, those level with him counted half; 0..100."""
    rank: int
    """1 for the highest value; equal ones share the better rank."""
    standard_score: float | None
    """The distance from the mean in standard deviations; None if the group does not vary."""


def standings(student: Values, group: Values) -> list[Standing]:
    """Returns the standing by each of `MEASURES` in a group of at least one, given as `columns_of` returns it.

    `student`: his own column. If the student is of the group himself, he is one of those level with him.
    """
    return [
        _standing(component, value, values)
        for component, value, values in zip(MEASURES, student.tolist(), group, strict=True)
    ]


def _standing(component: Component | None, value: float, values: Values) -> Standing:
    above, level = int((values > value).sum()), int((values == value).sum())
    below = len(values) - above - level
    spread = deviation(values)
    return Standing(
        component=component,
        value=value,
        percentile_rank=100.0 * (below + level / 2.0) / len(values),
        rank=above + 1,
        standard_score=(value - float(values.mean())) / spread if spread > 0.0 else None,
    )
