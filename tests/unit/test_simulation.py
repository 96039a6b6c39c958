import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.simulation.learners import LearningEventJson, simulate_class, student_ids

FIRST_DAY = date(2026, 1, 12)
LEVELS = (
    (0.90, "expert"),
    (0.75, "proficient"),
    (0.60, "competent"),
    (0.40, "developing"),
    (0.0, "beginner"),
)
QUALITY_RATINGS = ("code_quality_score", "correctness_score", "efficiency_score", "peer_review_score")
DAY_MS = 86_400_000


def as_bytes(events: Iterable[LearningEventJson]) -> bytes:
    return "\n".join(json.dumps(event) for event in events).encode()


def scores_along_the_way(events: Iterable[LearningEventJson]) -> dict[str, list[float]]:
    """Score after every event: the rules of scoring once more, on purpose not taken from the engine."""
    quiz: dict[str, float] = {}
    quality: dict[str, float] = {}
    completion: dict[str, float] = {}
    active_days: dict[str, set[int]] = defaultdict(set)
    scores: dict[str, list[float]] = defaultdict(list)
    for event in sorted(events, key=lambda event: (event["timestamp"], event["event_id"])):
        student, day = event["student_id"], event["timestamp"] // DAY_MS
        active_days[student].add(day)
        match event["event_type"]:
            case "exercise.completion.submitted":
                completion[student] = event["completed_exercises"] / event["total_exercises"]
            case "quiz.performance.submitted":
                share = event["correct_answers"] / event["total_questions"]
                quiz[student] = 0.65 * share + 0.35 * quiz.get(student, share)
            case "quality.assessment.completed":
                ratings = [event[name] for name in QUALITY_RATINGS if name in event]
                mean = sum(ratings) / len(ratings)
                quality[student] = 0.65 * mean + 0.35 * quality.get(student, mean)
        consistency = sum(day - 14 < active <= day for active in active_days[student]) / 14
        scores[student].append(
            0.40 * completion.get(student, 0.0)
            + 0.30 * quiz.get(student, 0.0)
            + 0.20 * quality.get(student, 0.0)
            + 0.10 * consistency
        )
    return scores


def level_of(score: float) -> str:
    return next(name for lowest, name in LEVELS if score >= lowest)


def assert_valid(event: LearningEventJson) -> None:
    assert str(uuid.UUID(event["event_id"])) == event["event_id"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", event["student_id"])
    assert isinstance(event["timestamp"], int)
    assert event["source"]
    match event["event_type"]:
        case "exercise.completion.submitted":
            assert event["total_exercises"] >= 1
            assert 0 <= event["completed_exercises"] <= event["total_exercises"]
        case "quiz.performance.submitted":
            assert event["total_questions"] >= 1
            assert 0 <= event["correct_answers"] <= event["total_questions"]
            assert 0.0 <= event["confidence_score"] <= 1.0
        case "quality.assessment.completed":
            ratings = [event[name] for name in QUALITY_RATINGS if name in event]
            assert ratings
            assert all(0.0 <= rating <= 1.0 for rating in ratings)
        case other:
            assert other == "consistency.activity.recorded"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(),
    learners=st.integers(min_value=0, max_value=8),
    days=st.integers(min_value=0, max_value=40),
    first_day=st.dates(min_value=date(1971, 1, 1), max_value=date(2100, 1, 1)),
    late_share=st.floats(min_value=0.0, max_value=1.0),
)
def test_every_event_is_valid_and_lies_within_the_simulated_days(
    seed: int, learners: int, days: int, first_day: date, late_share: float
) -> None:
    events = list(
        simulate_class(seed=seed, learners=learners, first_day=first_day, days=days, late_share=late_share)
    )
    for event in events:
        assert_valid(event)
        day = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).date()
        assert first_day <= day < first_day + timedelta(days=days)
    assert len({event["event_id"] for event in events}) == len(events)
    assert {event["student_id"] for event in events} <= set(student_ids(learners))


def test_the_same_arguments_give_the_same_events_byte_for_byte() -> None:
    first = simulate_class(seed=7, learners=5, first_day=FIRST_DAY, days=30, late_share=0.2)
    second = simulate_class(seed=7, learners=5, first_day=FIRST_DAY, days=30, late_share=0.2)
    assert as_bytes(first) == as_bytes(second)


def test_another_seed_gives_other_events() -> None:
    first = simulate_class(seed=7, learners=5, first_day=FIRST_DAY, days=30)
    second = simulate_class(seed=8, learners=5, first_day=FIRST_DAY, days=30)
    assert as_bytes(first) != as_bytes(second)


def test_events_come_in_order_of_time_and_a_student_never_has_two_at_once() -> None:
    events = list(simulate_class(seed=7, learners=12, first_day=FIRST_DAY, days=56))
    assert all(earlier["timestamp"] <= later["timestamp"] for earlier, later in pairwise(events))
    moments = Counter((event["student_id"], event["timestamp"]) for event in events)
    assert set(moments.values()) == {1}


def test_more_days_only_append_events() -> None:
    month = list(simulate_class(seed=7, learners=4, first_day=FIRST_DAY, days=30))
    longer = list(simulate_class(seed=7, learners=4, first_day=FIRST_DAY, days=45))
    assert longer[: len(month)] == month
    assert len(longer) > len(month)


def test_more_learners_leave_the_others_as_they_are() -> None:
    few = list(simulate_class(seed=7, learners=4, first_day=FIRST_DAY, days=30))
    many = simulate_class(seed=7, learners=9, first_day=FIRST_DAY, days=30)
    assert [event for event in many if event["student_id"] in student_ids(4)] == few


def test_another_first_day_shares_no_event_id() -> None:
    this = simulate_class(seed=7, learners=3, first_day=FIRST_DAY, days=20)
    next_day = simulate_class(seed=7, learners=3, first_day=FIRST_DAY + timedelta(days=1), days=20)
    assert not {event["event_id"] for event in this} & {event["event_id"] for event in next_day}


def test_a_class_sends_every_kind_of_event_that_students_cause() -> None:
    events = simulate_class(seed=7, learners=3, first_day=FIRST_DAY, days=21)
    assert {event["event_type"] for event in events} == {
        "exercise.completion.submitted",
        "quiz.performance.submitted",
        "quality.assessment.completed",
        "consistency.activity.recorded",
    }


def test_source_course_and_school_are_carried_by_every_event() -> None:
    events = list(
        simulate_class(
            seed=7,
            learners=2,
            first_day=FIRST_DAY,
            days=7,
            source="demo",
            course_id="maths",
            school_id="north",
        )
    )
    assert {(event["source"], event["course_id"], event["school_id"]) for event in events} == {
        ("demo", "maths", "north")
    }


def test_without_a_school_no_event_names_one() -> None:
    events = simulate_class(seed=7, learners=2, first_day=FIRST_DAY, days=7)
    assert all("school_id" not in event for event in events)


@pytest.mark.parametrize("seed", [1, 7, 42, 2026])
def test_a_class_spreads_over_the_levels_as_real_classes_do(seed: int) -> None:
    scores = scores_along_the_way(simulate_class(seed=seed, learners=24, first_day=FIRST_DAY, days=56))
    final = [scores_of_one[-1] for scores_of_one in scores.values()]
    assert len(final) == 24
    assert sum(score >= 0.75 for score in final) >= 12
    assert 2 <= sum(score < 0.60 for score in final) <= 8
    assert any(score >= 0.90 for score in final)


@pytest.mark.parametrize("seed", [1, 7, 42, 2026])
def test_somebody_passes_every_level_on_the_way_up(seed: int) -> None:
    scores = scores_along_the_way(simulate_class(seed=seed, learners=24, first_day=FIRST_DAY, days=56))
    ways = [list(dict.fromkeys(level_of(score) for score in way)) for way in scores.values()]
    assert ["beginner", "developing", "competent", "proficient", "expert"] in ways


@pytest.mark.parametrize("seed", [1, 7, 42, 2026])
def test_a_class_grows_over_weeks_and_not_over_night(seed: int) -> None:
    events = list(simulate_class(seed=seed, learners=24, first_day=FIRST_DAY, days=56))
    start = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC).timestamp() * 1000

    def mean_score_after(weeks: int) -> float:
        end = start + weeks * 7 * DAY_MS
        ways = scores_along_the_way(event for event in events if event["timestamp"] < end)
        return sum(way[-1] for way in ways.values()) / len(ways)

    means = [mean_score_after(weeks) for weeks in (1, 2, 4, 6, 8)]
    assert means == sorted(means)
    assert means[1] < 0.60
    assert means[-1] - means[0] > 0.3


def test_somebody_falls_silent_for_days_and_comes_back() -> None:
    days_of: dict[str, set[int]] = defaultdict(set)
    for event in simulate_class(seed=7, learners=24, first_day=FIRST_DAY, days=56):
        days_of[event["student_id"]].add(event["timestamp"] // DAY_MS)
    gaps = [later - earlier for days in days_of.values() for earlier, later in pairwise(sorted(days))]
    assert max(gaps) >= 7


def test_lateness_changes_the_order_and_not_the_events() -> None:
    on_time = list(simulate_class(seed=7, learners=6, first_day=FIRST_DAY, days=40))
    late = list(simulate_class(seed=7, learners=6, first_day=FIRST_DAY, days=40, late_share=0.1))
    assert late != on_time
    assert sorted(as_bytes([event]) for event in late) == sorted(as_bytes([event]) for event in on_time)


def test_about_the_given_share_of_events_is_overtaken_by_newer_events_of_the_same_student() -> None:
    events = list(simulate_class(seed=7, learners=12, first_day=FIRST_DAY, days=56, late_share=0.1))
    newest: dict[str, int] = {}
    overtaken = 0
    for event in events:
        overtaken += event["timestamp"] < newest.get(event["student_id"], 0)
        newest[event["student_id"]] = max(newest.get(event["student_id"], 0), event["timestamp"])
    assert 0.05 <= overtaken / len(events) <= 0.13


@pytest.mark.parametrize(
    ("learners", "days", "late_share"),
    [(-1, 7, 0.0), (3, -7, 0.0), (3, 7, -0.1), (3, 7, 1.5), (3, 7, float("nan"))],
)
def test_arguments_out_of_range_are_refused_at_once(learners: int, days: int, late_share: float) -> None:
    with pytest.raises(ValueError, match="must"):
        simulate_class(seed=7, learners=learners, first_day=FIRST_DAY, days=days, late_share=late_share)
