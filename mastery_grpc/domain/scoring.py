"""The formula: components, the methods that follow each of them, the weighted score and its level."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from mastery_grpc.domain.errors import InvalidInput, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WEIGHT_TOLERANCE = 1e-9
# Weighted sums carry errors of about 1e-16. Without rounding, four components of 0.9 could miss EXPERT.
SCORE_DIGITS = 12
RECENT_DAYS = 30
"""How many days back an activity is remembered; the consistency window cannot be longer."""


class Component(StrEnum):
    """The four parts of a mastery score, in the order in which they are reported."""

    COMPLETION = "completion"
    QUIZ = "quiz"
    QUALITY = "quality"
    CONSISTENCY = "consistency"


class Level(StrEnum):
    """A mastery score in words."""

    BEGINNER = "beginner"
    DEVELOPING = "developing"
    COMPETENT = "competent"
    PROFICIENT = "proficient"
    EXPERT = "expert"


LEVEL_LOWER_BOUNDS = (
    (0.90, Level.EXPERT),
    (0.75, Level.PROFICIENT),
    (0.60, Level.COMPETENT),
    (0.40, Level.DEVELOPING),
    (0.0, Level.BEGINNER),
)
"""Lower bounds are inclusive."""


def level_of(score: float) -> Level:
    """Returns the level of a score in 0..1."""
    for lower_bound, level in LEVEL_LOWER_BOUNDS:
        if score >= lower_bound:
            return level
    return Level.BEGINNER


def fraction_violations(name: str, value: float | None) -> Iterator[Violation]:
    """Yields a violation for what is not a number in 0..1, NaN included; None is no value and fine."""
    if value is not None and not 0.0 <= value <= 1.0:  # a NaN compares false
        yield Violation(name, "must be a number from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """One value in 0..1 for each component."""

    completion: float
    quiz: float
    quality: float
    consistency: float

    def violations(self, name: str) -> Iterator[Violation]:
        """Yields what is outside 0..1; `name` is the field that holds the components."""
        for component in Component:
            yield from fraction_violations(f"{name}.{component}", getattr(self, component))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each component counts: each in 0..1, together 1."""

    completion: float = 0.40
    quiz: float = 0.30
    quality: float = 0.20
    consistency: float = 0.10

    def __post_init__(self) -> None:
        violations = [
            violation
            for component in Component
            for violation in fraction_violations(f"weights.{component}", getattr(self, component))
        ]
        total = self.completion + self.quiz + self.quality + self.consistency
        if not violations and abs(total - 1.0) > WEIGHT_TOLERANCE:
            violations.append(Violation("weights", f"must sum to 1, not {total:.12g}"))
        if violations:
            raise InvalidInput(violations)


class Method(StrEnum):
    """How a component follows its observations (the names are those of Canvas outcomes)."""

    LATEST = "latest"
    HIGHEST = "highest"
    AVERAGE = "average"
    N_MASTERY = "n_mastery"
    DECAYING_AVERAGE = "decaying_average"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRules:
    """Everything in the formula that an operator may choose."""

    weights: Weights = field(default_factory=Weights)
    completion: Method = Method.LATEST
    quiz: Method = Method.DECAYING_AVERAGE
    quality: Method = Method.DECAYING_AVERAGE
    decay_weight: float = 0.65
    """The share of the newest observation in a decaying average, above 0, at most 1."""
    n_mastery_count: int = 5
    """`n_mastery`: how many observations at or above `n_mastery_score` it takes."""
    n_mastery_score: float = 0.75
    consistency_window_days: int = 14

    def __post_init__(self) -> None:
        if not 0.0 < self.decay_weight <= 1.0:
            raise InvalidInput.of("decay_weight", "must be above 0 and at most 1")
        if self.n_mastery_count < 1:
            raise InvalidInput.of("n_mastery_count", "must be at least 1")
        if not 0.0 <= self.n_mastery_score <= 1.0:
            raise InvalidInput.of("n_mastery_score", "must be from 0 to 1")
        if not 1 <= self.consistency_window_days <= RECENT_DAYS:
            raise InvalidInput.of("consistency_window_days", f"must be from 1 to {RECENT_DAYS}")


@dataclass(frozen=True, slots=True)
class Tally:
    """What a component remembers of its observations: enough for every method to go on."""

    value: float = 0.0
    observed: bool = False
    total: float = 0.0
    """The sum of the observations that count: all for `average`, the good ones for `n_mastery`."""
    count: int = 0
    """How many observations `total` sums up."""


UNOBSERVED = Tally()


def set_value(value: float, rules: ScoringRules, method: Method) -> Tally:
    """Returns the tally of a component that was set to `value`: the single observation that others follow."""
    counts = method is not Method.N_MASTERY or value >= rules.n_mastery_score
    return Tally(value, True, value if counts else 0.0, 1 if counts else 0)


def _latest(tally: Tally, value: float, rules: ScoringRules) -> Tally:
    return Tally(value, True, value, 1)


def _highest(tally: Tally, value: float, rules: ScoringRules) -> Tally:
    return Tally(max(tally.value, value), True, value, 1)


def _average(tally: Tally, value: float, rules: ScoringRules) -> Tally:
    total, count = tally.total + value, tally.count + 1
    return Tally(total / count, True, total, count)


def _n_mastery(tally: Tally, value: float, rules: ScoringRules) -> Tally:
    """Follows Canvas: the mean of the good observations once there are enough; until then, as before."""
    if value < rules.n_mastery_score:
        return Tally(tally.value, True, tally.total, tally.count)
    total, count = tally.total + value, tally.count + 1
    return Tally(total / count if count >= rules.n_mastery_count else tally.value, True, total, count)


def _decaying_average(tally: Tally, value: float, rules: ScoringRules) -> Tally:
    """Follows Canvas' standard decaying average: D1 = s1, Dk = w*sk + (1-w)*D(k-1)."""
    if tally.observed:
        value = rules.decay_weight * value + (1.0 - rules.decay_weight) * tally.value
    return Tally(value, True, value, 1)


_METHODS: dict[Method, Callable[[Tally, float, ScoringRules], Tally]] = {
    Method.LATEST: _latest,
    Method.HIGHEST: _highest,
    Method.AVERAGE: _average,
    Method.N_MASTERY: _n_mastery,
    Method.DECAYING_AVERAGE: _decaying_average,
}


def observe(tally: Tally, value: float, rules: ScoringRules, method: Method) -> Tally:
    """Returns the tally after one more observation in 0..1."""
    return _METHODS[method](tally, value, rules)


@dataclass(frozen=True, slots=True)
class ComponentScore:
    """What one component adds to the score; `contribution` = weight * score."""

    component: Component
    score: float
    weight: float
    contribution: float
    observed: bool


Observed = tuple[bool, bool, bool, bool]
"""Which components were ever observed, in the order of Component."""


def score_breakdown(
    components: Components, observed: Observed, weights: Weights
) -> tuple[float, tuple[ComponentScore, ...]]:
    """Returns the weighted score in 0..1 and what each component adds to it."""
    completion = weights.completion * components.completion
    quiz = weights.quiz * components.quiz
    quality = weights.quality * components.quality
    consistency = weights.consistency * components.consistency
    # Spelled out rather than looped over: this runs once for every event ingested.
    breakdown = (
        ComponentScore(Component.COMPLETION, components.completion, weights.completion, completion, observed[0]),
        ComponentScore(Component.QUIZ, components.quiz, weights.quiz, quiz, observed[1]),
        ComponentScore(Component.QUALITY, components.quality, weights.quality, quality, observed[2]),
        ComponentScore(
            Component.CONSISTENCY, components.consistency, weights.consistency, consistency, observed[3]
        ),
    )
    total = completion + quiz + quality + consistency
    return min(round(total, SCORE_DIGITS), 1.0), breakdown
