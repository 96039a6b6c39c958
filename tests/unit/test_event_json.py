import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import (
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    Payload,
    QualityAssessment,
    QuizPerformance,
    StudentKey,
)
from tests.builders import components, identifiers, payloads, quiz, texts

EVENT_ID = "550e8400-e29b-41d4-a716-446655440000"
TIME = datetime(2026, 1, 14, 10, 30, tzinfo=UTC)
EXERCISE = {"event_type": "exercise.completion.submitted", "total_exercises": 10, "completed_exercises": 8}
QUIZ = {"event_type": "quiz.performance.submitted", "total_questions": 10, "correct_answers": 8}
QUALITY = {"event_type": "quality.assessment.completed", "correctness_score": 0.8}
ZERO_OF_ZERO = QUIZ | {"total_questions": 0, "correct_answers": 0}
ACTIVITY = {"event_type": "consistency.activity.recorded"}
ALL_FOUR = {"completion": 0.1, "quiz": 0.2, "quality": 0.3, "consistency": 0.4}
CALCULATION = {"event_type": "mastery.calculation.requested", "components": ALL_FOUR}

Fields = dict[str, Any]
properties = settings(deadline=None, derandomize=True, max_examples=100)


def fields(payload: Fields = QUIZ, **changes: Any) -> Fields:
    return {"event_id": EVENT_ID, "timestamp": 1768386600000, "student_id": "student_12345"} | payload | changes


def record(payload: Fields = QUIZ, **changes: Any) -> bytes:
    return json.dumps(fields(payload, **changes)).encode()


def record_with(name: str, json_text: str, payload: Fields = QUIZ) -> bytes:
    """Returns a record with the given text, JSON or not, as the value of a field."""
    return json.dumps(fields(payload, **{name: "<here>"})).replace('"<here>"', json_text).encode()


def without(name: str, payload: Fields = QUIZ) -> bytes:
    return json.dumps({key: value for key, value in fields(payload).items() if key != name}).encode()


def refusal_of(value: bytes) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as refused:
        decode_event(value)
    (violation,) = refused.value.violations
    return violation.field, violation.reason


# --- what is accepted -------------------------------------------------------------------------------------


def test_every_field_of_the_envelope_is_read() -> None:
    event = decode_event(record(source="quiz-agent", school_id="north", course_id="algebra 1"))

    assert event == LearningEvent(
        event_id=EVENT_ID,
        student=StudentKey("student_12345", "north"),
        event_time=TIME,
        payload=QuizPerformance(total_questions=10, correct_answers=8),
        source="quiz-agent",
        course_id="algebra 1",
    )


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            EXERCISE | {"exercise_id": "e1", "time_spent": 300},
            ExerciseCompletion(total_exercises=10, completed_exercises=8, exercise_id="e1", time_spent=300),
        ),
        (
            QUIZ | {"quiz_id": "q1", "time_spent": 300, "confidence_score": 0.7},
            QuizPerformance(
                total_questions=10, correct_answers=8, quiz_id="q1", time_spent=300, confidence_score=0.7
            ),
        ),
        (
            QUALITY
            | {
                "code_quality_score": 0.1,
                "efficiency_score": 0.3,
                "peer_review_score": 0.4,
                "exercise_id": "e1",
            },
            QualityAssessment(
                code_quality_score=0.1,
                correctness_score=0.8,
                efficiency_score=0.3,
                peer_review_score=0.4,
                exercise_id="e1",
            ),
        ),
        (ACTIVITY, ConsistencyActivity()),
        (ACTIVITY | {"consistency_score": 0.0}, ConsistencyActivity(consistency_score=0.0)),
        (CALCULATION, MasteryCalculation(components=components(**ALL_FOUR))),
        # Whole numbers are numbers, and null is how many producers spell "not given".
        (ACTIVITY | {"consistency_score": 1}, ConsistencyActivity(consistency_score=1.0)),
        (ACTIVITY | {"consistency_score": None}, ConsistencyActivity()),
        (QUALITY | {"peer_review_score": None}, QualityAssessment(correctness_score=0.8)),
    ],
)
def test_every_field_of_every_type_is_read(payload: Fields, expected: Payload) -> None:
    assert decode_event(record(payload)).payload == expected


@pytest.mark.parametrize("unknown", ["null", "1e400", '"x"', "[[], {}]", '{"event_id": 5}', "[" * 100 + "]" * 100])
def test_unknown_fields_are_ignored(unknown: str) -> None:
    known = decode_event(record())

    assert decode_event(record_with("unknown", unknown)) == known
    # Another type's field is an unknown one here.
    assert decode_event(record_with("total_exercises", unknown)) == known


def test_the_id_of_an_event_is_read_in_either_case_and_kept_in_lower_case() -> None:
    assert decode_event(record(event_id=EVENT_ID.upper())) == decode_event(record())


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1768386600000, TIME),
        (1768386600001, TIME + timedelta(milliseconds=1)),
        (253402300799000, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2026-01-14T10:30:00Z", TIME),
        ("2026-01-14t10:30:00z", TIME),
        ("2026-01-14T10:30:00+00:00", TIME),
        ("2026-01-14T10:30:00-00:00", TIME),
        ("2026-01-14T16:00:00+05:30", TIME),
        ("2026-01-13T23:00:00-11:30", TIME),
        ("2026-01-15T00:30:00+14:00", TIME),
        ("2026-01-14T10:30:00.5Z", TIME + timedelta(milliseconds=500)),
        ("2026-01-14T10:30:00.05Z", TIME + timedelta(milliseconds=50)),
        ("2026-01-14T10:30:00.123456Z", TIME + timedelta(microseconds=123456)),
        ("2026-01-14T16:00:00.000001+05:30", TIME + timedelta(microseconds=1)),
        # Microseconds are what is kept.
        ("2026-01-14T10:30:00.123456789Z", TIME + timedelta(microseconds=123456)),
        ("2026-01-14T10:30:00.999999999Z", TIME + timedelta(microseconds=999999)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("1970-01-01T01:00:00+01:00", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_timestamp_is_epoch_milliseconds_or_rfc_3339(timestamp: int | str, expected: datetime) -> None:
    event_time = decode_event(record(timestamp=timestamp)).event_time

    assert event_time == expected
    assert event_time.tzinfo is UTC


def test_the_day_of_an_event_is_its_day_in_utc() -> None:
    assert decode_event(record(timestamp="2026-01-15T00:30:00+14:00")).event_time.date() == TIME.date()


# --- what is written --------------------------------------------------------------------------------------


def test_what_is_written_is_the_shape_that_producers_send() -> None:
    sent = fields(QUIZ | {"quiz_id": "q1", "time_spent": 300, "confidence_score": 0.7}, source="quiz-agent")

    assert json.loads(encode_event(decode_event(json.dumps(sent).encode()))) == sent


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        ("2026-01-14T10:30:00.001Z", 1768386600001),
        ("2026-01-14T10:30:00.000001+00:00", "2026-01-14T10:30:00.000001Z"),
    ],
)
def test_a_time_is_written_in_milliseconds_where_that_is_exact(sent: str, written: int | str) -> None:
    assert json.loads(encode_event(decode_event(record(timestamp=sent))))["timestamp"] == written


@st.composite
def events(draw: st.DrawFn) -> LearningEvent:
    return LearningEvent(
        event_id=str(draw(st.uuids())),
        student=StudentKey(draw(identifiers), draw(st.just("") | identifiers)),
        event_time=draw(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))),  # noqa: DTZ001
        payload=draw(payloads(texts)),
        source=draw(texts),
        course_id=draw(texts),
    )


@properties
@given(events())
def test_an_event_comes_back_as_it_was_written(event: LearningEvent) -> None:
    assert decode_event(encode_event(event)) == event


@properties
@given(st.floats(0, 1))
def test_a_fraction_comes_back_to_its_last_digit(value: float) -> None:
    event = LearningEvent(
        event_id=EVENT_ID,
        student=StudentKey("s"),
        event_time=TIME,
        payload=MasteryCalculation(components=components(value)),
    )

    assert decode_event(encode_event(event)) == event


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"\x00",
        b"\x00" * 64,
        b"\x89PNG\r\n\x1a\n",
        b"{",
        b"}",
        b"{'event_id': 1}",
        b"event_id=1",
        record()[:-1],
        record() + b"x",
        record() + record(),
        b"\xef\xbb\xbf" + record(),
        record().decode().encode("utf-16"),
        record_with("unknown", "NaN"),
        record_with("confidence_score", "NaN"),
        record_with("confidence_score", "Infinity"),
        record_with("confidence_score", "-Infinity"),
        record_with("confidence_score", ".5"),
        record_with("correct_answers", "08"),
        record_with("correct_answers", "+8"),
        record_with("correct_answers", "0x8"),
        record_with("source", r'"\ud800"'),
        record_with("source", r'"\ud800x"'),
        record_with("source", '"\n"'),
        record_with("source", '"<bad>"').replace(b"<bad>", b"\xff"),
        record_with("source", '"<bad>"').replace(b"<bad>", b"\xc0\xaf"),
        record_with("source", '"<bad>"').replace(b"<bad>", b"\xed\xa0\x80"),
        record_with("student_id", '"<bad>"').replace(b"<bad>", b"\xe9"),
        record_with("unknown", "[" * 100_000),
        record_with("unknown", "[" * 100_000 + "]" * 100_000),
        record_with("unknown", '{"a":' * 100_000 + "1" + "}" * 100_000),
    ],
)
def test_what_is_no_json_is_refused_as_a_whole(value: bytes) -> None:
    field, reason = refusal_of(value)

    assert field == "value"
    assert reason.startswith("is not the JSON of an event: ")


@pytest.mark.parametrize("value", [b"null", b"true", b"5", b"0.5", b'"x"', b"[]", b"[" + record() + b"]"])
def test_json_that_is_no_object_is_refused_as_a_whole(value: bytes) -> None:
    field, reason = refusal_of(value)

    assert field == "value"
    assert reason.startswith("expected `object`")


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        *[(name, QUIZ) for name in ("event_id", "event_type", "timestamp", "student_id")],
        ("total_exercises", EXERCISE),
        ("completed_exercises", EXERCISE),
        ("total_questions", QUIZ),
        ("correct_answers", QUIZ),
        ("components", CALCULATION),
    ],
)
def test_a_missing_field_is_refused_by_name(name: str, payload: Fields) -> None:
    assert refusal_of(without(name, payload)) == (name, "is required")


def test_an_empty_object_is_refused_for_what_it_lacks() -> None:
    assert refusal_of(b"{}") == ("event_type", "is required")


@pytest.mark.parametrize("name", list(ALL_FOUR))
def test_a_missing_component_is_refused_by_name(name: str) -> None:
    three = {key: value for key, value in ALL_FOUR.items() if key != name}

    assert refusal_of(record(CALCULATION, components=three)) == (f"components.{name}", "is required")


def test_a_quality_assessment_without_any_mark_is_refused() -> None:
    assert refusal_of(record(QUALITY, correctness_score=None)) == (
        "code_quality_score",
        "at least one of the four scores is required",
    )


@pytest.mark.parametrize("event_type", ["", "quiz", "Quiz.Performance.Submitted", "mastery.updated", "it's", "\n"])
def test_an_unknown_type_is_refused_with_its_name(event_type: str) -> None:
    assert refusal_of(record(event_type=event_type)) == ("event_type", f"{event_type!r} is not known")


def test_an_unknown_type_cannot_name_another_field_as_the_culprit() -> None:
    field, _ = refusal_of(record(event_type="x' - at `$.student_id`"))

    assert field == "event_type"


def test_a_long_unknown_type_is_cut() -> None:
    assert refusal_of(record(event_type="x" * 100_000)) == ("event_type", f"'{'x' * 64}' is not known")


NOT_TEXT = ["null", "5", "0.5", "true", "[]", "{}"]
NOT_AN_INTEGER = ["null", "8.0", "8.5", "1e1", "true", "false", '"8"', '""', "[]", "[8]", "{}"]
NOT_A_NUMBER = ["true", "false", '"0.5"', '""', "[]", "[0.5]", "{}"]
NOT_AN_OBJECT = ["null", "5", "true", '"x"', "[]", "[0.1, 0.2, 0.3, 0.4]"]


@pytest.mark.parametrize(
    ("payload", "name", "json_text"),
    [
        *[
            (QUIZ, name, text)
            for name in (
                "event_id",
                "event_type",
                "student_id",
                "source",
                "school_id",
                "course_id",
                "quiz_id",
            )
            for text in NOT_TEXT
        ],
        *[(EXERCISE, "exercise_id", text) for text in NOT_TEXT],
        *[(QUALITY, "exercise_id", text) for text in NOT_TEXT],
        *[
            (EXERCISE, name, text)
            for name in ("total_exercises", "completed_exercises", "time_spent")
            for text in NOT_AN_INTEGER
        ],
        *[
            (QUIZ, name, text)
            for name in ("total_questions", "correct_answers", "time_spent")
            for text in NOT_AN_INTEGER
        ],
        *[(QUIZ, "confidence_score", text) for text in NOT_A_NUMBER],
        *[
            (QUALITY, name, text)
            for name in ("code_quality_score", "correctness_score", "efficiency_score", "peer_review_score")
            for text in NOT_A_NUMBER
        ],
        *[(ACTIVITY, "consistency_score", text) for text in NOT_A_NUMBER],
        *[(CALCULATION, "components", text) for text in NOT_AN_OBJECT],
        *[(QUIZ, "timestamp", text) for text in ("null", "true", "1.0", "1768386600000.0", "1e12", "[]", "{}")],
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(payload: Fields, name: str, json_text: str) -> None:
    field, reason = refusal_of(record_with(name, json_text, payload))

    assert field == name
    assert reason.startswith("expected `")


@pytest.mark.parametrize("name", list(ALL_FOUR))
@pytest.mark.parametrize("value", [None, True, "0.5", [], {}])
def test_a_component_of_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    field, reason = refusal_of(record(CALCULATION, components=ALL_FOUR | {name: value}))

    assert field == f"components.{name}"
    assert reason.startswith("expected `float`")


@pytest.mark.parametrize(
    ("payload", "name", "json_text"),
    [
        (QUIZ, "correct_answers", "-1"),
        (QUIZ, "correct_answers", "11"),
        (ZERO_OF_ZERO, "total_questions", "0"),
        (QUIZ, "total_questions", "2147483648"),
        (QUIZ, "total_questions", "9223372036854775808"),
        (QUIZ, "total_questions", "1" + "0" * 30),
        (QUIZ, "total_questions", "1" + "0" * 5000),
        (QUIZ, "total_questions", "1e400"),
        (QUIZ, "time_spent", "1" + "0" * 5000),
        (QUIZ, "confidence_score", "1.0000001"),
        (QUIZ, "confidence_score", "-1e-9"),
        (QUIZ, "confidence_score", "1e400"),
        (QUIZ, "confidence_score", "-1e400"),
        (QUIZ, "confidence_score", "1" + "0" * 5000),
        (QUALITY, "peer_review_score", "1e308"),
        (ACTIVITY, "consistency_score", "2"),
        (QUIZ, "event_id", '"1"'),
        (QUIZ, "event_id", '""'),
        (QUIZ, "student_id", '""'),
        (QUIZ, "student_id", '"a b"'),
        (QUIZ, "student_id", '"a:b"'),
        (QUIZ, "student_id", r'"a\u0000b"'),
        (QUIZ, "student_id", f'"{"x" * 65}"'),
        (QUIZ, "school_id", '"a:b"'),
        (QUIZ, "source", f'"{"x" * 256}"'),
        (QUIZ, "course_id", f'"{"x" * 256}"'),
        (QUIZ, "timestamp", "-1"),
        (QUIZ, "timestamp", "-1768386600000"),
        (QUIZ, "timestamp", "253402300800000"),
        (QUIZ, "timestamp", "9223372036854775808"),
        (QUIZ, "timestamp", "1" + "0" * 30),
        (QUIZ, "timestamp", "1" + "0" * 5000),
        (QUIZ, "timestamp", "1e400"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(payload: Fields, name: str, json_text: str) -> None:
    field, reason = refusal_of(record_with(name, json_text, payload))

    assert field == name
    assert reason


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "now",
        "1768386600000",
        "2026-01-14",
        "2026-01-14T10:30:00",
        "2026-01-14 10:30:00Z",
        "2026-01-14T10:30Z",
        "20260114T103000Z",
        "2026-W03-3T10:30:00Z",
        "2026-01-14T10:30:00.Z",
        "2026-01-14T10:30:00,5Z",
        "2026-01-14T10:30:00.1234567890Z",
        "2026-01-14T10:30:00+0530",
        "2026-01-14T10:30:00+05",
        "2026-01-14T10:30:00 Z",
        "2026-01-14T10:30:00Z\n",
        " 2026-01-14T10:30:00Z",
        "٢٠٢٦-01-14T10:30:00Z",
        "2026-01-14T10:30:00.\u0665Z",
        "-2026-01-14T10:30:00Z",
        "12026-01-14T10:30:00Z",
        "2026-02-30T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-14T24:00:00Z",
        "2026-01-14T10:60:00Z",
        "2026-01-14T10:30:61Z",
        "2026-01-14T10:30:00+24:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
def test_a_text_that_is_no_rfc_3339_time_is_refused(timestamp: str) -> None:
    field, reason = refusal_of(record(timestamp=timestamp))

    assert field == "timestamp"
    assert reason in {
        "must be epoch milliseconds or an RFC 3339 time",
        "names a date or time in no calendar",
        "must be from 1970-01-01T00:00:00Z to 9999-12-31T23:59:59Z",
    }


@pytest.mark.parametrize(
    "timestamp", ["1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01", "0001-01-01T00:00:00Z"]
)
def test_a_time_before_1970_is_refused(timestamp: str) -> None:
    field, reason = refusal_of(record(timestamp=timestamp))

    assert field == "timestamp"
    assert "1970" in reason


def test_all_ranges_that_are_broken_are_named_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_event(record(event_id="?", student_id="?", total_questions=0, confidence_score=2))

    assert [violation.field for violation in refused.value.violations] == [
        "event_id",
        "student_id",
        "total_questions",
        "confidence_score",
        "correct_answers",
    ]


# --- nothing else ever happens ----------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
near_misses = st.sampled_from(
    [
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**400,
        0.5,
        -0.0,
        1.0 + 2**-52,
        math.inf,
        math.nan,
        "",
        "x" * 300,
        "\ud800",
    ]
)
payload_fields = st.sampled_from([EXERCISE, QUIZ, QUALITY, ACTIVITY, CALCULATION])


def decodes_or_is_refused(value: bytes) -> bool:
    """Returns whether the value is an event that comes back as it was written, or is refused by name."""
    try:
        event = decode_event(value)
    except InvalidInput as refused:
        return bool(refused.violations) and all(broken.field and broken.reason for broken in refused.violations)
    return decode_event(encode_event(event)) == event


@properties
@given(st.binary(max_size=200))
@example(b"")
def test_arbitrary_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_event(value)


@properties
@given(json_values)
def test_arbitrary_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        decode_event(json.dumps(value).encode())


@settings(properties, max_examples=400)
@given(st.data(), payload_fields, json_values | near_misses)
def test_a_record_with_any_value_in_any_field_decodes_or_is_refused(
    data: st.DataObject, payload: Fields, value: object
) -> None:
    name = data.draw(st.sampled_from(sorted({*fields(payload), "source", "school_id", "time_spent", "quiz_id"})))

    assert decodes_or_is_refused(json.dumps(fields(payload, **{name: value})).encode())


def _flip(value: bytes, place: int, byte: int) -> bytes:
    return value[:place] + bytes([byte]) + value[place + 1 :]


def _cut(value: bytes, place: int, byte: int) -> bytes:
    return value[:place] + value[place + 1 + byte :]


def _insert(value: bytes, place: int, byte: int) -> bytes:
    return value[:place] + bytes([byte]) + value[place:]


def _repeat(value: bytes, place: int, byte: int) -> bytes:
    return value[: place + byte] + value[place:]


mutations: st.SearchStrategy[list[tuple[Callable[[bytes, int, int], bytes], int, int]]] = st.lists(
    st.tuples(
        st.sampled_from([_flip, _cut, _insert, _repeat]),
        st.integers(0, 250),
        st.sampled_from(b'"{}[],:\\-+.eE0123456789 \x00\x80\xc3\xff') | st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


@settings(properties, max_examples=400)
@given(payload_fields, mutations)
def test_a_damaged_record_decodes_or_is_refused(
    payload: Fields, damage: list[tuple[Callable[[bytes, int, int], bytes], int, int]]
) -> None:
    value = record(payload)
    for mutate, place, byte in damage:
        value = mutate(value, place, byte)

    assert decodes_or_is_refused(value)


def test_the_encoding_of_an_event_never_depends_on_how_it_was_sent() -> None:
    as_milliseconds, as_text = record(), record(timestamp="2026-01-14T16:00:00+05:30", unknown=5)

    assert encode_event(decode_event(as_milliseconds)) == encode_event(decode_event(as_text))
    assert encode_event(quiz()) == encode_event(decode_event(encode_event(quiz())))
