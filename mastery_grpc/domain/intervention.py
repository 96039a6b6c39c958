"""Why someone should step in for a student, in words for a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.patterns import Pattern, PatternKind
from mastery_grpc.domain.patterns.pattern import counted
from mastery_grpc.domain.scoring import Component
from mastery_grpc.domain.student import Mastery, mastery_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, Past

_CONCERN = {
    PatternKind.FALLING_BEHIND: 1.0,
    PatternKind.INACTIVITY: 1.0,
    PatternKind.DECLINE: 0.9,
    PatternKind.UNEVEN_COMPONENTS: 0.7,
    PatternKind.PLATEAU: 0.5,
    PatternKind.CRAMMING: 0.5,
    PatternKind.IRREGULAR_RHYTHM: 0.4,
}
"""How much a pattern at full strength calls for someone to step in; kinds left out do not."""
_NAMES = {
    Component.COMPLETION: "exercises",
    Component.QUIZ: "quizzes",
    Component.QUALITY: "quality of work",
    Component.CONSISTENCY: "regularity",
}


def reasons_for(
    patterns: Sequence[Pattern], past: Past, forecasts: Sequence[Forecast], terms: ForecastTerms
) -> tuple[str, ...]:
    """Returns why someone should step in, weightiest first; empty if nobody should.

    Someone should if the score is below the threshold now, or a forecast expects it to be. Where the score stands
    or is going comes first, then the patterns that call for it, by strength times how much their kind does, then
    the component that takes most from a score that is low already.
    """
    mastery = mastery_of(past.events[-1].student, past.state, past.rules)
    threshold = terms.intervention_threshold
    below = mastery.mastery_score < threshold
    first = min(
        (one for one in forecasts if one.intervention_needed), key=lambda one: one.horizon_days, default=None
    )
    if below:
        standing = f"the score is {_short_of(mastery.mastery_score, threshold)}, below {threshold:.2f}"
    elif first:
        standing = (
            f"expected to fall below {threshold:.2f} in about {counted(first.horizon_days, 'day')}"
            f" (probability {first.intervention_probability:.0%})"
        )
    else:
        return ()
    concerns = sorted(
        (pattern for pattern in patterns if pattern.kind in _CONCERN),
        key=lambda pattern: (-pattern.strength * _CONCERN[pattern.kind], pattern.kind),
    )
    reasons = [standing, *(pattern.summary for pattern in concerns)]
    if below:
        reasons.append(_weakest(mastery))
    return tuple(reasons)


def _weakest(mastery: Mastery) -> str:
    part = max(mastery.breakdown, key=lambda part: part.weight - part.contribution)
    stands = f"at {part.score:.0%}" if part.observed else "nothing seen yet"
    lost = part.weight - part.contribution
    return f"most is lost by {_NAMES[part.component]}: {stands}, which takes {lost:.2f} from the score"


def _short_of(score: float, threshold: float) -> str:
    """Returns the score in two digits, or in as many as it takes to look lower than the threshold."""
    digits = 2
    while digits < 12 and round(score, digits) >= round(threshold, digits):
        digits += 1
    return f"{score:.{digits}f}"
