"""What the matcher returns: a pattern with the figures it is seen by, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class PatternKind(StrEnum):
    """The kinds of patterns, as the contract names them."""

    STEADY_IMPROVEMENT = "steady_improvement"
    PLATEAU = "plateau"
    DECLINE = "decline"
    CRAMMING = "cramming"
    IRREGULAR_RHYTHM = "irregular_rhythm"
    FALLING_BEHIND = "falling_behind"
    UNEVEN_COMPONENTS = "uneven_components"
    RECOVERY = "recovery"
    INACTIVITY = "inactivity"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One figure that a pattern is seen by."""

    figure: str
    """Ends in its unit: `_score`, `_share`, `_count`, `_days`, `_per_day` or `_coefficient`."""
    value: float
    days: tuple[date, ...] = ()
    """The UTC days it was taken from, in order; empty for all days of the pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One pattern in a student's history. Its days are UTC days of the last 90."""

    kind: PatternKind
    strength: float
    """How marked it is, above 0, at most 1."""
    start_day: date
    end_day: date
    evidence: tuple[Evidence, ...]
    summary: str
    """What it means, in words for a teacher, without a capital or a full stop."""

    def overlaps(self, other: Pattern) -> bool:
        """Tells whether the two share more than the one day on which one ends and the other begins."""
        return self.start_day < other.end_day and other.start_day < self.end_day


def in_words(day: date) -> str:
    """Returns a day of the last 90 the way a teacher writes it: `4 March`."""
    return f"{day.day} {_MONTHS[day.month - 1]}"


def counted(count: int, noun: str) -> str:
    """Returns `1 day`, `2 days`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
