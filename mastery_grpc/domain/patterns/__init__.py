"""Patterns in a student's last 90 days, each with its evidence; each kind is defined where it is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.patterns.balance import detect_balance
from mastery_grpc.domain.patterns.pattern import Evidence, Pattern, PatternKind
from mastery_grpc.domain.patterns.rhythm import detect_rhythm
from mastery_grpc.domain.patterns.trend import detect_course
from mastery_grpc.domain.patterns.window import Window

if TYPE_CHECKING:
    from mastery_grpc.domain.forecasting.forecast import Past

__all__ = ["Evidence", "Pattern", "PatternKind", "detect_patterns"]


def detect_patterns(past: Past) -> list[Pattern]:
    """Returns the patterns of the last 90 days, strongest first, at most one of each kind.

    Too few data make no pattern rather than a weak one.
    """
    window = Window(past)
    found = [*detect_course(window), *detect_rhythm(window), *detect_balance(window)]
    return sorted(found, key=lambda pattern: (-pattern.strength, pattern.kind))
