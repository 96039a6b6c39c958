"""What a student should do next: which advice there is, what it is worth, and how feedback shifts it.

A component below the threshold gets advice. Together its pieces of advice raise it to the target, which is
proficiency, or the threshold if that is higher; each closes its share of the gap, so that its gain for the
score is `weight * share * (target - value)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.advice_kinds import OBSERVED, UNOBSERVED, Action, Kind
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.forecast import STILL
from mastery_grpc.domain.scoring import SCORE_DIGITS, Component, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecast
    from mastery_grpc.domain.student import Mastery

PROFICIENCY = 0.75
MOST_RECOMMENDATIONS = 10
SHORTEST_EFFORT = 10
"""Minutes."""
FEEDBACK_HALF_LIFE = timedelta(days=30)
FEEDBACK_LIFETIME = timedelta(days=90)
"""After three half-lives feedback may be forgotten."""
FORECAST_SHARE = 0.5
"""How much of what lacks to priority 1 the gloomiest forecast adds."""
_HALF_LIFE_SECONDS = FEEDBACK_HALF_LIFE.total_seconds()
_PRIORITY_DIGITS = 4


class Verdict(StrEnum):
    """What became of a piece of advice."""

    HELPFUL = "helpful"
    DONE = "done"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What became of one piece of advice, once."""

    recommendation_id: str
    verdict: Verdict
    create_time: datetime
    component_score: float
    """The value of its component at that time, 0..1; another one since then means that more was observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceConfig:
    """What an operator may choose about advice."""

    weights: Weights = field(default_factory=Weights)
    component_threshold: float = 0.70
    """A component below it gets advice, 0..1."""
    max_results: int = MOST_RECOMMENDATIONS
    dismissal: timedelta = timedelta(days=14)
    """How long dismissed advice is not repeated; no longer than feedback is remembered."""
    daily_effort: timedelta = timedelta(minutes=30)
    """The time that a student is taken to have on a day, above 0."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.component_threshold <= 1.0:
            raise InvalidInput.of("component_threshold", "must be from 0 to 1")
        if not 1 <= self.max_results <= MOST_RECOMMENDATIONS:
            raise InvalidInput.of("max_results", f"must be from 1 to {MOST_RECOMMENDATIONS}")
        if not timedelta() <= self.dismissal <= FEEDBACK_LIFETIME:
            raise InvalidInput.of("dismissal", f"must be from 0 to {FEEDBACK_LIFETIME.days} days")
        if self.daily_effort <= timedelta():
            raise InvalidInput.of("daily_effort", "must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One piece of advice; the field names are those of the published JSON."""

    recommendation_id: str
    """Action and component: the same advice keeps its id."""
    action: Action
    component: Component
    area: str
    """What to work at, in words for the student."""
    priority: float
    """0..1; 1 matters most."""
    effort_minutes: int
    rationale: str
    """Why, in words for the student."""
    expected_gain: float
    """What the score gains if the advice is followed, 0..1."""


_STRENGTH = {Verdict.HELPFUL: 1.0, Verdict.DONE: -2.0, Verdict.DISMISSED: -1.0}


class Option(NamedTuple):
    """Advice that can be given to a student now, and what following it does."""

    kind: Kind
    value: float
    """Of the component, now."""
    lift: float
    """What the component gains."""
    gain: float
    """What the score gains."""
    impact: float
    """The gain, of the most that any advice can gain: the greatest weight * target."""
    minutes: int
    shift: float
    """What feedback adds, in doublings; 0 without."""

    @property
    def worth(self) -> float:
        """The score gained per minute, as feedback shifts it."""
        doublings: float = 2.0**self.shift
        return self.gain / self.minutes * doublings


def options(
    mastery: Mastery,
    feedback: Sequence[Feedback],
    config: AdviceConfig,
    now: datetime,
    *,
    below: float | None = None,
) -> list[Option]:
    """Returns the advice for components under `below`, in no order of weight; None is the set threshold.

    Dismissed advice is left out for its time, and the others of its component take over its share. So are
    components that do not count.
    """
    threshold = config.component_threshold if below is None else below
    target = max(threshold, PROFICIENCY)
    shares = config.weights
    weights = shares.completion, shares.quiz, shares.quality, shares.consistency
    most = max(weights) * target
    found = []
    for index, part in enumerate(mastery.breakdown):
        value, weight = part.score, weights[index]
        if value >= threshold or not weight:
            continue
        kinds: Sequence[Kind] = (OBSERVED if part.observed else UNOBSERVED)[index]
        total, shift = 1.0, 0.0
        if feedback:
            kinds = [kind for kind in kinds if not _is_dismissed(kind, feedback, config, now)]
            total = sum(kind.share for kind in kinds)
        for kind in kinds:
            lift = (target - value) * kind.share / total
            gain = weight * lift
            if feedback:
                shift = _shift(kind, value, feedback, now)
            found.append(Option(kind, value, lift, gain, gain / most, _effort(lift * kind.minutes), shift))
    return found


def recommend(
    mastery: Mastery,
    *,
    feedback: Sequence[Feedback] = (),
    config: AdviceConfig,
    now: datetime,
    forecast: Forecast | None = None,
) -> tuple[Recommendation, ...]:
    """Returns what to do next, most important first, at most `config.max_results`; empty if nothing needs it."""
    return recommend_among(options(mastery, feedback, config, now), mastery, config, forecast)


def recommend_among(
    found: Sequence[Option], mastery: Mastery, config: AdviceConfig, forecast: Forecast | None = None
) -> tuple[Recommendation, ...]:
    """Returns what to do next of the options, as `recommend` does."""
    advice = [recommendation_of(option, mastery, config.component_threshold, config, forecast) for option in found]
    advice.sort(key=_by_priority)
    return tuple(advice[: config.max_results])


def recommendation_of(
    option: Option,
    mastery: Mastery,
    threshold: float,
    config: AdviceConfig,
    forecast: Forecast | None = None,
    *,
    course_id: str = "",
) -> Recommendation:
    """Returns an option in words; `threshold` is what the component lies below."""
    kind, gain = option.kind, option.gain
    # Whole points that were reached: 69.9 is not told as 70, which would be enough.
    rationale = (
        f"{kind.standing} {int(100 * option.value + 1e-9)} of 100, below the {100 * threshold:.3g} asked for."
        f" This can lift your score by {100 * gain:.1f} points, to {100 * (mastery.mastery_score + gain):.1f}."
    )
    return Recommendation(
        recommendation_id=kind.recommendation_id,
        action=kind.action,
        component=kind.component,
        area=f"{kind.area} of {course_id}" if course_id else kind.area,
        priority=_priority(option, config.weights, forecast),
        effort_minutes=option.minutes,
        rationale=rationale if forecast is None else rationale + _outlook(option, forecast),
        expected_gain=round(gain, SCORE_DIGITS),
    )


def _priority(option: Option, weights: Weights, forecast: Forecast | None) -> float:
    """Returns the priority in 0..1: the impact, raised by the forecast, shifted by feedback.

    urgency = 1 - (1 - intervention probability * impact) * (1 - weight * fall of the component forecast)
    priority = impact + (1 - impact) * FORECAST_SHARE * urgency, without a forecast the impact alone
    With feedback of shift s: priority * 2^s if s < 0, else 1 - (1 - priority) * 2^-s.
    """
    priority = option.impact
    if forecast is not None:
        weight: float = getattr(weights, option.kind.component)
        calm = (1.0 - forecast.intervention_probability * priority) * (1.0 - weight * _fall(option, forecast))
        priority += (1.0 - priority) * FORECAST_SHARE * (1.0 - calm)
    if option.shift < 0.0:
        priority *= 2.0**option.shift
    elif option.shift > 0.0:
        priority = 1.0 - (1.0 - priority) * 2.0**-option.shift
    return round(priority, _PRIORITY_DIGITS)


def _fall(option: Option, forecast: Forecast) -> float:
    predicted: float = getattr(forecast.predicted_components, option.kind.component)
    return max(0.0, option.value - predicted)


def _outlook(option: Option, forecast: Forecast) -> str:
    words = ""
    if (fall := _fall(option, forecast)) >= STILL:
        words = f" It is expected to fall to {100 * (option.value - fall):.0f} in {forecast.horizon_days} days."
    if forecast.intervention_needed:
        chance = 100 * forecast.intervention_probability
        words += f" The chance that your score is too low in {forecast.horizon_days} days is {chance:.0f}%."
    return words


def _is_dismissed(kind: Kind, feedback: Sequence[Feedback], config: AdviceConfig, now: datetime) -> bool:
    """Returns whether advice was dismissed lately, and that was the last word on it."""
    said = [given for given in feedback if given.recommendation_id == kind.recommendation_id]
    if not said:
        return False
    last = max(said, key=_by_time)
    return last.verdict is Verdict.DISMISSED and now - last.create_time < config.dismissal


def _shift(kind: Kind, value: float, feedback: Sequence[Feedback], now: datetime) -> float:
    """Returns what feedback on one piece of advice amounts to, in doublings.

    Each verdict counts once, by its latest time: helpful 1, dismissed -1, done -2 until the component changes;
    halved every 30 days of age.
    """
    said = [given for given in feedback if given.recommendation_id == kind.recommendation_id]
    shift = 0.0
    for verdict, given in {given.verdict: given for given in sorted(said, key=_by_time)}.items():
        if verdict is Verdict.DONE and given.component_score != value:
            continue
        age = max(0.0, (now - given.create_time).total_seconds())
        shift += _STRENGTH[verdict] * 0.5 ** (age / _HALF_LIFE_SECONDS)
    return shift


def _effort(minutes: float) -> int:
    """Returns minutes to plan: in steps of five, rounded up."""
    return max(SHORTEST_EFFORT, 5 * ceil(minutes / 5 - 1e-9))


def _by_priority(recommendation: Recommendation) -> float:
    return -recommendation.priority


def _by_time(feedback: Feedback) -> datetime:
    return feedback.create_time
