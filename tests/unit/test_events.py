import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import (
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    Payload,
    QualityAssessment,
    QuizPerformance,
)
from mastery_grpc.domain.scoring import Component
from tests.builders import at, components, event_id, event_of, quiz, student

EXERCISE = ExerciseCompletion(total_exercises=10, completed_exercises=8)
QUIZ = QuizPerformance(total_questions=10, correct_answers=8)
QUALITY = QualityAssessment(correctness_score=0.8)
ACTIVITY = ConsistencyActivity(consistency_score=0.8)
FRACTION = "must be a number from 0 to 1"
IDENTIFIER = "must be 1 to 64 characters of A-Z a-z 0-9 _ -"
TOO_LONG = "must be at most 255 characters"
AT_LEAST_ONE = "must be from 1 to 2147483647"
AT_LEAST_ZERO = "must be from 0 to 2147483647"
SECONDS = "must be from 0 to 31622400"
MOST = 2**31 - 1
LEAP_YEAR = 366 * 24 * 3600
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
OUT_OF_TIME = "must be from 1970-01-01T00:00:00Z to 9999-12-31T23:59:59Z"


def violations_of(payload: Payload) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refused:
        event_of(payload)
    return [(violation.field, violation.reason) for violation in refused.value.violations]


@pytest.mark.parametrize(
    ("payload", "changes", "field", "reason"),
    [
        (EXERCISE, {"total_exercises": 0, "completed_exercises": 0}, "total_exercises", AT_LEAST_ONE),
        (EXERCISE, {"completed_exercises": -1}, "completed_exercises", AT_LEAST_ZERO),
        (EXERCISE, {"completed_exercises": 11}, "completed_exercises", "must not exceed total_exercises"),
        (EXERCISE, {"time_spent": -1}, "time_spent", SECONDS),
        (EXERCISE, {"time_spent": LEAP_YEAR + 1}, "time_spent", SECONDS),
        (EXERCISE, {"total_exercises": MOST + 1}, "total_exercises", AT_LEAST_ONE),
        (EXERCISE, {"exercise_id": "x" * 256}, "exercise_id", TOO_LONG),
        (QUIZ, {"total_questions": 0, "correct_answers": 0}, "total_questions", AT_LEAST_ONE),
        (QUIZ, {"correct_answers": -1}, "correct_answers", AT_LEAST_ZERO),
        (QUIZ, {"correct_answers": 11}, "correct_answers", "must not exceed total_questions"),
        (QUIZ, {"time_spent": -1}, "time_spent", SECONDS),
        (QUIZ, {"time_spent": LEAP_YEAR + 1}, "time_spent", SECONDS),
        (QUIZ, {"total_questions": MOST + 1}, "total_questions", AT_LEAST_ONE),
        (QUIZ, {"quiz_id": "x" * 256}, "quiz_id", TOO_LONG),
        (QUIZ, {"confidence_score": 1.01}, "confidence_score", FRACTION),
        (QUIZ, {"confidence_score": -0.01}, "confidence_score", FRACTION),
        (QUIZ, {"confidence_score": math.nan}, "confidence_score", FRACTION),
        (
            QUALITY,
            {"correctness_score": None},
            "code_quality_score",
            "at least one of the four scores is required",
        ),
        (QUALITY, {"code_quality_score": 1.01}, "code_quality_score", FRACTION),
        (QUALITY, {"correctness_score": -0.01}, "correctness_score", FRACTION),
        (QUALITY, {"efficiency_score": math.inf}, "efficiency_score", FRACTION),
        (QUALITY, {"peer_review_score": math.nan}, "peer_review_score", FRACTION),
        (QUALITY, {"exercise_id": "x" * 256}, "exercise_id", TOO_LONG),
        (ACTIVITY, {"consistency_score": 1.01}, "consistency_score", FRACTION),
        (ACTIVITY, {"consistency_score": -0.01}, "consistency_score", FRACTION),
        (ACTIVITY, {"consistency_score": math.nan}, "consistency_score", FRACTION),
    ],
)
def test_a_payload_that_breaks_a_rule_is_refused(
    payload: Payload, changes: dict[str, Any], field: str, reason: str
) -> None:
    assert violations_of(replace(payload, **changes)) == [(field, reason)]


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_components_outside_their_range_are_refused_by_name(component: str, value: float) -> None:
    calculation = MasteryCalculation(components=components(0.5, **{component: value}))

    assert violations_of(calculation) == [(f"components.{component}", FRACTION)]


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"event_id": ""}, "event_id", "must be a UUID"),
        ({"event_id": "1"}, "event_id", "must be a UUID"),
        ({"event_id": event_id(1).replace("-", "")}, "event_id", "must be a UUID"),
        ({"event_id": event_id(1) + "\n"}, "event_id", "must be a UUID"),
        ({"event_id": "{" + event_id(1) + "}"}, "event_id", "must be a UUID"),
        ({"event_id": event_id(1).replace("4", "g")}, "event_id", "must be a UUID"),
        # Made from upper case it would be another event than in lower case; doors spell ids in lower case.
        ({"event_id": event_id(0xABCDEF).upper()}, "event_id", "must be a UUID"),
        ({"student": student("")}, "student_id", IDENTIFIER),
        ({"student": student("x" * 65)}, "student_id", IDENTIFIER),
        ({"student": student("a b")}, "student_id", IDENTIFIER),
        ({"student": student("a:b")}, "student_id", IDENTIFIER),
        ({"student": student("{a}")}, "student_id", IDENTIFIER),
        ({"student": student("é")}, "student_id", IDENTIFIER),
        ({"student": student("٣")}, "student_id", IDENTIFIER),
        ({"student": student("a\n")}, "student_id", IDENTIFIER),
        ({"student": student(school_id="x" * 65)}, "school_id", IDENTIFIER),
        ({"student": student(school_id="a:b")}, "school_id", IDENTIFIER),
        ({"event_time": EARLIEST - timedelta(microseconds=1)}, "event_time", OUT_OF_TIME),
        ({"source": "x" * 256}, "source", TOO_LONG),
        ({"course_id": "x" * 256}, "course_id", TOO_LONG),
    ],
)
def test_an_envelope_that_breaks_a_rule_is_refused(changes: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        replace(quiz(), **changes)

    assert [(broken.field, broken.reason) for broken in refused.value.violations] == [(field, reason)]


def test_all_broken_rules_are_named_at_once() -> None:
    payload = QuizPerformance(total_questions=0, correct_answers=-1, time_spent=-1, confidence_score=2)
    with pytest.raises(InvalidInput) as refused:
        LearningEvent(event_id="?", student=student("?", school_id="?"), event_time=at(), payload=payload)

    assert [violation.field for violation in refused.value.violations] == [
        "event_id",
        "student_id",
        "school_id",
        "total_questions",
        "correct_answers",
        "time_spent",
        "confidence_score",
    ]
    assert str(refused.value).startswith("event_id: must be a UUID; student_id: must be 1 to 64")


@pytest.mark.parametrize(
    "payload",
    [
        ExerciseCompletion(total_exercises=1, completed_exercises=0),
        ExerciseCompletion(total_exercises=1, completed_exercises=1, exercise_id="é" * 255, time_spent=0),
        QuizPerformance(total_questions=1, correct_answers=0, quiz_id="x" * 255, confidence_score=0.0),
        QuizPerformance(total_questions=1, correct_answers=1, confidence_score=1.0),
        QuizPerformance(total_questions=MOST, correct_answers=MOST, time_spent=LEAP_YEAR),
        ExerciseCompletion(total_exercises=MOST, completed_exercises=MOST, time_spent=LEAP_YEAR),
        QualityAssessment(code_quality_score=0.0, exercise_id="x" * 255),
        QualityAssessment(correctness_score=1.0),
        QualityAssessment(efficiency_score=0.0),
        QualityAssessment(peer_review_score=1.0),
        ConsistencyActivity(),
        ConsistencyActivity(consistency_score=0.0),
        ConsistencyActivity(consistency_score=1.0),
        MasteryCalculation(components=components(0.0)),
        MasteryCalculation(components=components(1.0)),
    ],
)
def test_a_payload_may_go_to_the_bounds_of_its_rules(payload: Payload) -> None:
    assert event_of(payload).payload == payload


@pytest.mark.parametrize(
    "changes",
    [
        {"student": student("x" * 64, school_id="y" * 64)},
        {"student": student("-")},
        {"student": student("A-Z_a-z_0-9")},
        {"event_time": EARLIEST},
        {"source": "x" * 255, "course_id": "é" * 255},
    ],
)
def test_an_envelope_may_go_to_the_bounds_of_its_rules(changes: dict[str, Any]) -> None:
    event = replace(quiz(), **changes)

    assert {name: getattr(event, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("payload", "observation"),
    [
        (ExerciseCompletion(total_exercises=8, completed_exercises=2), (Component.COMPLETION, 0.25)),
        (QuizPerformance(total_questions=10, correct_answers=8, confidence_score=0.1), (Component.QUIZ, 0.8)),
        (QualityAssessment(efficiency_score=0.3), (Component.QUALITY, 0.3)),
        # A mark of zero is a mark; one that is not given is not.
        (QualityAssessment(code_quality_score=0.0, peer_review_score=1.0), (Component.QUALITY, 0.5)),
        (
            QualityAssessment(
                code_quality_score=0.1, correctness_score=0.2, efficiency_score=0.3, peer_review_score=0.6
            ),
            (Component.QUALITY, pytest.approx(0.3)),
        ),
        (ConsistencyActivity(consistency_score=0.0), (Component.CONSISTENCY, 0.0)),
        (ConsistencyActivity(), None),
    ],
)
def test_an_observation_follows_from_a_payload(
    payload: ExerciseCompletion | QuizPerformance | QualityAssessment | ConsistencyActivity,
    observation: tuple[Component, float] | None,
) -> None:
    assert payload.observation() == observation


def test_events_are_placed_by_time_and_then_by_id() -> None:
    early_b, early_a, late = (
        quiz(number=2, time=at(0)),
        quiz(number=1, time=at(0)),
        quiz(number=0, time=at(1)),
    )

    assert sorted([late, early_b, early_a], key=lambda event: event.position) == [early_a, early_b, late]
