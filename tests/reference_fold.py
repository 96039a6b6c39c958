"""The rules of scoring a second time, for tests to hold the engine against.

On purpose it shares no code with the engine and works another way: it keeps all observations and applies the
definition of each method to the list, where the engine carries a running tally. It reads events in the flat
JSON shape, in any order and any number of times.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from typing import Any

EventJson = Mapping[str, Any]
StudentName = tuple[str, str]
"""(school_id, student_id); the default school is empty."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COMPONENTS = ("completion", "quiz", "quality", "consistency")
MARKS = ("code_quality_score", "correctness_score", "efficiency_score", "peer_review_score")
LEVELS = ((0.90, "expert"), (0.75, "proficient"), (0.60, "competent"), (0.40, "developing"))


@dataclass(frozen=True, kw_only=True)
class ReferenceRules:
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"completion": 0.40, "quiz": 0.30, "quality": 0.20, "consistency": 0.10}
    )
    methods: Mapping[str, str] = field(
        default_factory=lambda: {
            "completion": "latest",
            "quiz": "decaying_average",
            "quality": "decaying_average",
        }
    )
    decay_weight: float = 0.65
    n_mastery_count: int = 5
    n_mastery_score: float = 0.75
    window_days: int = 14


@dataclass(frozen=True, kw_only=True)
class ReferenceMastery:
    score: float
    level: str
    components: dict[str, float]
    observed: dict[str, bool]
    update_time: datetime
    version: int


@dataclass(frozen=True, kw_only=True)
class ReferenceStudent:
    mastery: ReferenceMastery
    """The newest."""
    days: dict[date, ReferenceMastery]
    """The last mastery of every active day, oldest first."""


def fold_events(
    events: Iterable[EventJson], rules: ReferenceRules | None = None
) -> dict[StudentName, ReferenceStudent]:
    """Returns what every student's events amount to."""
    by_student: dict[StudentName, dict[str, EventJson]] = {}
    for event in events:
        name = (event.get("school_id", ""), event["student_id"])
        by_student.setdefault(name, {}).setdefault(event["event_id"].lower(), event)
    rules = rules or ReferenceRules()
    return {name: fold_student(distinct, rules) for name, distinct in by_student.items()}


def fold_student(distinct: Mapping[str, EventJson], rules: ReferenceRules) -> ReferenceStudent:
    """Returns what the events of one student, by their ids in lower case, amount to."""
    history = sorted((time_of(event), event_id) for event_id, event in distinct.items())
    # A calculation starts a component's list anew, with the value that it set in front.
    observations: dict[str, list[float]] = {name: [] for name in COMPONENTS}
    was_set = dict.fromkeys(COMPONENTS, False)
    active_days: set[date] = set()
    days: dict[date, ReferenceMastery] = {}
    for index, (time, event_id) in enumerate(history):
        event = distinct[event_id]
        if event["event_type"] == "mastery.calculation.requested":
            observations = {name: [event["components"][name]] for name in COMPONENTS}
            was_set = dict.fromkeys(COMPONENTS, True)
        else:
            for name, value in observations_of(event).items():
                observations[name].append(value)
        today = time.date()
        active_days.add(today)
        is_last_of_day = index + 1 == len(history) or history[index + 1][0].date() != today
        if is_last_of_day:
            days[today] = mastery_of(observations, was_set, active_days, time, index + 1, rules)
    return ReferenceStudent(mastery=days[max(days)], days=days)


def time_of(event: EventJson) -> datetime:
    timestamp = event["timestamp"]
    if isinstance(timestamp, str):
        return datetime.fromisoformat(timestamp).astimezone(UTC)
    return EPOCH + timedelta(milliseconds=timestamp)


def observations_of(event: EventJson) -> dict[str, float]:
    match event["event_type"]:
        case "exercise.completion.submitted":
            return {"completion": event["completed_exercises"] / event["total_exercises"]}
        case "quiz.performance.submitted":
            return {"quiz": event["correct_answers"] / event["total_questions"]}
        case "quality.assessment.completed":
            given = [event[mark] for mark in MARKS if event.get(mark) is not None]
            return {"quality": sum(given) / len(given)}
        case "consistency.activity.recorded":
            given_score = event.get("consistency_score")
            return {} if given_score is None else {"consistency": given_score}
    raise ValueError(f"no such event type: {event['event_type']}")


def mastery_of(
    observations: Mapping[str, list[float]],
    was_set: Mapping[str, bool],
    active_days: set[date],
    time: datetime,
    version: int,
    rules: ReferenceRules,
) -> ReferenceMastery:
    components = {
        name: followed(observations[name], rules.methods[name], rules, was_set=was_set[name])
        for name in ("completion", "quiz", "quality")
    }
    if observations["consistency"]:
        components["consistency"] = observations["consistency"][-1]
    else:
        window = (time.date() - timedelta(days=age) for age in range(rules.window_days))
        components["consistency"] = sum(day in active_days for day in window) / rules.window_days
    score = sum(rules.weights[name] * components[name] for name in COMPONENTS)
    return ReferenceMastery(
        score=score,
        level=level_of(score),
        components=components,
        # Each event makes its day active, so there is always something to say about consistency.
        observed={name: name == "consistency" or bool(observations[name]) for name in COMPONENTS},
        update_time=time,
        version=version,
    )


def followed(values: list[float], method: str, rules: ReferenceRules, *, was_set: bool) -> float:
    """Returns the value of a component after its observations; `was_set`: a calculation set the first."""
    if not values:
        return 0.0
    match method:
        case "latest":
            return values[-1]
        case "highest":
            return max(values)
        case "average":
            return sum(values) / len(values)
        case "n_mastery":
            good = [value for value in values if value >= rules.n_mastery_score]
            if len(good) >= rules.n_mastery_count:
                return sum(good) / len(good)
            return values[0] if was_set else 0.0
        case "decaying_average":
            weight = rules.decay_weight
            return reduce(lambda previous, value: weight * value + (1 - weight) * previous, values)
    raise ValueError(f"no such method: {method}")


def level_of(score: float) -> str:
    """Returns the level; rounded, because 0.1 and its like are not exact in binary."""
    return next((level for bound, level in LEVELS if round(score, 12) >= bound), "beginner")
