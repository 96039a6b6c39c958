"""The rules of an event stand in the protos and in the domain; both doors judge every event alike."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery.v1 import events_pb2, mastery_pb2
from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.application.event_protobuf import event_from_proto
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import LearningEvent

Flat = dict[str, Any]

properties = settings(deadline=None, derandomize=True, max_examples=300)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_SECOND = 253_402_300_799
LONGEST_TEXT = 255
LONGEST_TIME = 366 * 24 * 3600
GREATEST_COUNT = 2**31 - 1

COMPONENTS = ("completion", "quiz", "quality", "consistency")
PAYLOADS: Mapping[str, str] = {
    "exercise.completion.submitted": "exercise_completion_submitted",
    "quiz.performance.submitted": "quiz_performance_submitted",
    "quality.assessment.completed": "quality_assessment_completed",
    "consistency.activity.recorded": "consistency_activity_recorded",
    "mastery.calculation.requested": "mastery_calculation_requested",
}
ENVELOPE = ("event_id", "student_id", "source", "school_id", "course_id")

VALID: Flat = {
    "event_id": "550e8400-e29b-41d4-a716-446655440000",
    "event_type": "quiz.performance.submitted",
    "timestamp": 1768386600000,
    "student_id": "student_12345",
    "total_questions": 10,
    "correct_answers": 8,
}


# --- one event, said twice --------------------------------------------------------------------------------


def to_json(event: Flat) -> bytes:
    return json.dumps(event).encode()


def to_proto(event: Flat) -> bytes:
    """Returns the event in binary form; a field that is not there is not set."""
    message = events_pb2.LearningEvent(**{name: event[name] for name in ENVELOPE if name in event})
    seconds, milliseconds = divmod(event["timestamp"], 1000)
    message.event_time.seconds = seconds
    message.event_time.nanos = milliseconds * 1_000_000
    if "event_type" in event:
        payload = getattr(message, PAYLOADS[event["event_type"]])
        payload.SetInParent()
        for name, value in event.items():
            if name == "time_spent":
                payload.time_spent.CopyFrom(Duration(seconds=value))
            elif name == "components":
                payload.components.CopyFrom(mastery_pb2.Components(**value))
            elif name not in (*ENVELOPE, "event_type", "timestamp"):
                setattr(payload, name, value)
    return message.SerializeToString()


def by_json(value: bytes) -> LearningEvent | None:
    """Returns the event, None if it was refused."""
    try:
        return decode_event(value)
    except InvalidInput:
        return None


def by_proto(value: bytes) -> LearningEvent | None:
    try:
        return event_from_proto(events_pb2.LearningEvent.FromString(value))
    except InvalidInput:
        return None


def verdict(event: Flat) -> LearningEvent | None:
    """Returns what both doors make of an event; they must agree."""
    from_json, from_proto = by_json(to_json(event)), by_proto(to_proto(event))
    assert from_json == from_proto
    return from_json


# --- values around every boundary -------------------------------------------------------------------------

near = st.sampled_from([-1, 0, 1])
counts = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([-(2**31), GREATEST_COUNT - 1, GREATEST_COUNT]),
    st.integers(-(2**31), GREATEST_COUNT),
)
scores = st.one_of(
    st.floats(0, 1),
    st.sampled_from([0, 1, -0.0, 5e-324, -5e-324, 1 - 2**-53, 1 + 2**-52, -1.0, 2.0, 1e308]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.floats(),
)
times_spent = st.one_of(near, near.map(lambda by: LONGEST_TIME + by), st.integers(-(10**9), 10**9))
words = st.characters(exclude_categories=["Cs"])
texts = st.one_of(
    st.text(words, max_size=5),
    st.builds(lambda letter, by: letter * (LONGEST_TEXT + by), st.sampled_from("aéक🦉\0"), near),
)
ids = st.one_of(
    st.sampled_from(
        ["", "a", "a" * 63, "a" * 64, "a" * 65, "a\n", "\na", "a b", "a.b", "a:b", "{a}", "é", "\u0661", "\uff41"]
    ),
    st.text("azAZ09_-", max_size=66),
    st.text(words, max_size=3),
)
event_ids = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda one: str(one).upper()),
    st.uuids().map(lambda one: one.hex),
    st.uuids().map(lambda one: f"{{{one}}}"),
    st.uuids().map(lambda one: f"urn:uuid:{one}"),
    st.uuids().map(lambda one: f"{one}\n"),
    st.uuids().map(lambda one: f"{str(one)[:-1]}g"),
    st.uuids().map(lambda one: f"{str(one)[:-1]}\uff11"),
    st.uuids().map(lambda one: str(one)[:-1]),
    st.sampled_from(["", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
)
milliseconds = st.one_of(
    near,
    st.sampled_from([-1000, -999, 1000, 1768386600000, 1768386600001]),
    near.map(lambda by: LAST_SECOND * 1000 + by * 1000),
    st.integers(-(10**6), LAST_SECOND * 1000),
)


def optionally(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Flat]:
    return st.fixed_dictionaries({}, optional=fields)


parts = st.tuples(counts, counts) | st.integers(1, 9).flatmap(
    lambda whole: st.tuples(st.just(whole), st.integers(whole - 1, whole + 1))
)
payload_fields = {
    "exercise.completion.submitted": st.builds(
        lambda part, rest: {"total_exercises": part[0], "completed_exercises": part[1], **rest},
        parts,
        optionally(exercise_id=texts, time_spent=times_spent),
    ),
    "quiz.performance.submitted": st.builds(
        lambda part, rest: {"total_questions": part[0], "correct_answers": part[1], **rest},
        parts,
        optionally(quiz_id=texts, time_spent=times_spent, confidence_score=scores),
    ),
    "quality.assessment.completed": optionally(
        code_quality_score=scores,
        correctness_score=scores,
        efficiency_score=scores,
        peer_review_score=scores,
        exercise_id=texts,
    ),
    "consistency.activity.recorded": optionally(consistency_score=scores),
    "mastery.calculation.requested": optionally(components=optionally(**dict.fromkeys(COMPONENTS, scores)))
    | st.fixed_dictionaries({"components": st.fixed_dictionaries(dict.fromkeys(COMPONENTS, scores))}),
}
usual_envelope = st.just({name: VALID[name] for name in ("event_id", "timestamp", "student_id")})
any_envelope = st.builds(
    lambda needed, rest: needed | rest,
    st.fixed_dictionaries({"event_id": event_ids, "timestamp": milliseconds, "student_id": ids}),
    optionally(source=texts, school_id=ids, course_id=texts),
)


@pytest.mark.parametrize("event_type", PAYLOADS)
@properties
@given(data=st.data())
def test_payloads_are_judged_alike(event_type: str, data: st.DataObject) -> None:
    envelope = data.draw(usual_envelope)

    verdict(envelope | {"event_type": event_type} | data.draw(payload_fields[event_type]))


@properties
@given(envelope=any_envelope)
def test_envelopes_are_judged_alike(envelope: Flat) -> None:
    verdict(VALID | envelope)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("event_id", event_ids),
        ("timestamp", milliseconds),
        ("student_id", ids),
        ("school_id", ids),
        ("source", texts),
        ("course_id", texts),
    ],
)
@properties
@given(data=st.data())
def test_each_field_of_the_envelope_is_judged_alike_by_itself(
    name: str, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    verdict(VALID | {name: data.draw(values)})


@properties
@given(
    seconds=st.sampled_from([-1, 0, 1, 1768386600, LAST_SECOND - 1]),
    nanos=st.sampled_from([0, 1, 999, 1000, 1001, 123_456_789, 999_999_000, 999_999_999]),
)
def test_times_are_cut_to_microseconds_alike(seconds: int, nanos: int) -> None:
    message = events_pb2.LearningEvent.FromString(to_proto(VALID))
    message.event_time.seconds, message.event_time.nanos = seconds, nanos
    written = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S") + f".{nanos:09}Z"

    assert by_proto(message.SerializeToString()) == by_json(to_json(VALID | {"timestamp": written}))


@pytest.mark.parametrize("after_the_last_second", [1, 999])
def test_the_last_second_ends_alike(after_the_last_second: int) -> None:
    verdict(VALID | {"timestamp": LAST_SECOND * 1000 + after_the_last_second})


@pytest.mark.parametrize("seconds", [-(2**63), 2**63 - 1, -(2**55), 2**55, 253_402_300_800])
def test_seconds_of_which_the_nanoseconds_overflow_are_no_time(seconds: int) -> None:
    message = events_pb2.LearningEvent.FromString(to_proto(VALID))
    message.event_time.seconds = seconds
    assert by_proto(message.SerializeToString()) is None


# --- the verdicts themselves, so that the doors cannot agree on a wrong one -------------------------------

QUIZ = VALID
EXERCISE = {name: VALID[name] for name in ("event_id", "timestamp", "student_id")} | {
    "event_type": "exercise.completion.submitted",
    "total_exercises": 4,
    "completed_exercises": 4,
}
QUALITY = EXERCISE | {"event_type": "quality.assessment.completed", "correctness_score": 0.5}
for _name in ("total_exercises", "completed_exercises"):
    del QUALITY[_name]
ACTIVITY = {name: VALID[name] for name in ("event_id", "timestamp", "student_id")} | {
    "event_type": "consistency.activity.recorded"
}
CALCULATION = ACTIVITY | {
    "event_type": "mastery.calculation.requested",
    "components": dict.fromkeys(COMPONENTS, 0.5),
}


def without(event: Flat, name: str) -> Flat:
    return {key: value for key, value in event.items() if key != name}


@pytest.mark.parametrize(
    "event",
    [
        QUIZ,
        QUIZ | {"total_questions": 1, "correct_answers": 0},
        QUIZ | {"total_questions": GREATEST_COUNT, "correct_answers": GREATEST_COUNT},
        QUIZ | {"confidence_score": 0.0, "time_spent": LONGEST_TIME, "quiz_id": "é" * LONGEST_TEXT},
        QUIZ | {"confidence_score": 1, "time_spent": 0},
        QUIZ | {"event_id": "550E8400-E29B-41D4-A716-446655440000"},
        QUIZ | {"student_id": "-" * 64, "school_id": "_" * 64},
        QUIZ | {"source": "🦉" * LONGEST_TEXT, "course_id": "x" * LONGEST_TEXT},
        QUIZ | {"timestamp": 0},
        QUIZ | {"timestamp": LAST_SECOND * 1000},
        EXERCISE,
        QUALITY,
        QUALITY | {"code_quality_score": 0.0, "efficiency_score": 1.0, "peer_review_score": 0.5},
        ACTIVITY,
        ACTIVITY | {"consistency_score": 0.0},
        CALCULATION,
        CALCULATION | {"components": {"completion": 0, "quiz": 1, "quality": 0.0, "consistency": 1.0}},
    ],
)
def test_both_doors_accept(event: Flat) -> None:
    accepted = verdict(event)

    assert accepted is not None
    assert accepted.event_id == event["event_id"].lower()
    assert by_json(encode_event(accepted)) == accepted


@pytest.mark.parametrize(
    "event",
    [
        QUIZ | {"total_questions": 0, "correct_answers": 0},
        QUIZ | {"correct_answers": -1},
        QUIZ | {"correct_answers": 11},
        QUIZ | {"confidence_score": float("nan")},
        QUIZ | {"confidence_score": float("inf")},
        QUIZ | {"confidence_score": 1 + 2**-52},
        QUIZ | {"confidence_score": -5e-324},
        QUIZ | {"time_spent": -1},
        QUIZ | {"time_spent": LONGEST_TIME + 1},
        QUIZ | {"quiz_id": "é" * (LONGEST_TEXT + 1)},
        QUIZ | {"event_id": "550e8400e29b41d4a716446655440000"},
        QUIZ | {"event_id": ""},
        QUIZ | {"student_id": ""},
        QUIZ | {"student_id": "a" * 65},
        QUIZ | {"student_id": "a\n"},
        QUIZ | {"student_id": "é"},
        QUIZ | {"school_id": "a" * 65},
        QUIZ | {"school_id": "a:b"},
        QUIZ | {"source": "x" * (LONGEST_TEXT + 1)},
        QUIZ | {"course_id": "x" * (LONGEST_TEXT + 1)},
        QUIZ | {"timestamp": -1},
        QUIZ | {"timestamp": LAST_SECOND * 1000 + 1000},
        without(QUIZ, "total_questions"),
        without(QUIZ, "event_type"),
        without(QUIZ, "event_id"),
        without(QUIZ, "student_id"),
        EXERCISE | {"total_exercises": 0, "completed_exercises": 0},
        EXERCISE | {"completed_exercises": 5},
        EXERCISE | {"time_spent": LONGEST_TIME + 1},
        EXERCISE | {"exercise_id": "x" * (LONGEST_TEXT + 1)},
        without(QUALITY, "correctness_score"),
        *(
            QUALITY | {name: 1.1}
            for name in ("code_quality_score", "correctness_score", "efficiency_score", "peer_review_score")
        ),
        QUALITY | {"exercise_id": "x" * (LONGEST_TEXT + 1)},
        ACTIVITY | {"consistency_score": -0.1},
        without(CALCULATION, "components"),
        *(CALCULATION | {"components": without(CALCULATION["components"], name)} for name in COMPONENTS),
        *(CALCULATION | {"components": CALCULATION["components"] | {name: 1.1}} for name in COMPONENTS),
    ],
)
def test_both_doors_refuse(event: Flat) -> None:
    assert verdict(event) is None
