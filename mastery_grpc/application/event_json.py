"""The flat JSON shape of a learning event: the value of a Kafka record and the entry of a student's log.

Types are checked here, strictly: a number in quotes is not a number. Ranges are the domain's.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import (
    EARLIEST,
    LATEST,
    OUT_OF_TIME,
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    QualityAssessment,
    QuizPerformance,
    StudentKey,
)
from mastery_grpc.domain.scoring import Components

if TYPE_CHECKING:
    from mastery_grpc.domain.events import Payload

_MILLISECOND = timedelta(milliseconds=1)


class _Envelope(msgspec.Struct, tag_field="event_type", omit_defaults=True, kw_only=True):
    event_id: str
    timestamp: int | str
    student_id: str
    source: str = ""
    school_id: str = ""
    course_id: str = ""

    def payload(self) -> Payload:
        raise NotImplementedError

    def to_event(self) -> LearningEvent:
        return LearningEvent(
            event_id=self.event_id.lower(),
            student=StudentKey(self.student_id, self.school_id),
            event_time=_to_datetime(self.timestamp),
            payload=self.payload(),
            source=self.source,
            course_id=self.course_id,
        )


class _ExerciseCompletion(_Envelope, tag=ExerciseCompletion.event_type):
    total_exercises: int
    completed_exercises: int
    exercise_id: str = ""
    time_spent: int = 0

    def payload(self) -> ExerciseCompletion:
        return ExerciseCompletion(
            total_exercises=self.total_exercises,
            completed_exercises=self.completed_exercises,
            exercise_id=self.exercise_id,
            time_spent=self.time_spent,
        )


class _QuizPerformance(_Envelope, tag=QuizPerformance.event_type):
    total_questions: int
    correct_answers: int
    quiz_id: str = ""
    time_spent: int = 0
    confidence_score: float | None = None

    def payload(self) -> QuizPerformance:
        return QuizPerformance(
            total_questions=self.total_questions,
            correct_answers=self.correct_answers,
            quiz_id=self.quiz_id,
            time_spent=self.time_spent,
            confidence_score=self.confidence_score,
        )


class _QualityAssessment(_Envelope, tag=QualityAssessment.event_type):
    code_quality_score: float | None = None
    correctness_score: float | None = None
    efficiency_score: float | None = None
    peer_review_score: float | None = None
    exercise_id: str = ""

    def payload(self) -> QualityAssessment:
        return QualityAssessment(
            code_quality_score=self.code_quality_score,
            correctness_score=self.correctness_score,
            efficiency_score=self.efficiency_score,
            peer_review_score=self.peer_review_score,
            exercise_id=self.exercise_id,
        )


class _ConsistencyActivity(_Envelope, tag=ConsistencyActivity.event_type):
    consistency_score: float | None = None

    def payload(self) -> ConsistencyActivity:
        return ConsistencyActivity(consistency_score=self.consistency_score)


class _MasteryCalculation(_Envelope, tag=MasteryCalculation.event_type):
    components: Components

    def payload(self) -> MasteryCalculation:
        return MasteryCalculation(components=self.components)


_EventJson = (
    _ExerciseCompletion | _QuizPerformance | _QualityAssessment | _ConsistencyActivity | _MasteryCalculation
)
_SHAPES: dict[type, type[_EventJson]] = {
    ExerciseCompletion: _ExerciseCompletion,
    QuizPerformance: _QuizPerformance,
    QualityAssessment: _QualityAssessment,
    ConsistencyActivity: _ConsistencyActivity,
    MasteryCalculation: _MasteryCalculation,
}
_decoder: msgspec.json.Decoder[_Envelope] = msgspec.json.Decoder(_EventJson)
_encode = msgspec.json.Encoder().encode
_rfc3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,9})?(?:[Zz]|([+-]\d\d:[0-5]\d))", re.ASCII
).fullmatch
_error_path = re.compile(r"^(?P<reason>.*?)(?: - at `(?:\$\.)?(?P<field>[^`]*)`)?$", re.DOTALL).fullmatch
_missing_field = re.compile(r"^Object missing required field `(?P<field>[^`]*)`").match
_unknown_type = re.compile(r"^Invalid value '(?P<value>.*)'$", re.DOTALL).match


def decode_event(value: bytes) -> LearningEvent:
    """Returns the event in a JSON text. Raises InvalidInput with the field and the reason."""
    try:
        decoded = _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput.of("value", f"is not the JSON of an event: {error}") from None
    return decoded.to_event()


def encode_event(event: LearningEvent) -> bytes:
    """Returns the JSON text of an event, its time as epoch milliseconds where that is exact."""
    payload = event.payload
    fields = {name: getattr(payload, name) for name in payload.__dataclass_fields__ if name != "event_type"}
    return _encode(
        _SHAPES[type(payload)](
            event_id=event.event_id,
            timestamp=_to_timestamp(event.event_time),
            student_id=event.student.student_id,
            source=event.source,
            school_id=event.student.school_id,
            course_id=event.course_id,
            **fields,
        )
    )


def _to_timestamp(time: datetime) -> int | str:
    milliseconds, rest = divmod(time - EARLIEST, _MILLISECOND)
    return time.isoformat().replace("+00:00", "Z") if rest else milliseconds


def _to_datetime(timestamp: int | str) -> datetime:
    try:
        time = EARLIEST + timestamp * _MILLISECOND if isinstance(timestamp, int) else _from_rfc3339(timestamp)
    except OverflowError:
        raise InvalidInput.of("timestamp", OUT_OF_TIME) from None
    if not EARLIEST <= time <= LATEST:
        raise InvalidInput.of("timestamp", OUT_OF_TIME)
    return time


def _from_rfc3339(text: str) -> datetime:
    if (match := _rfc3339(text)) is None:
        raise InvalidInput.of("timestamp", "must be epoch milliseconds or an RFC 3339 time")
    day, clock, fraction, offset = match.groups()
    try:
        time = datetime.fromisoformat(f"{day}T{clock}{offset or '+00:00'}")
    except ValueError:
        raise InvalidInput.of("timestamp", "names a date or time in no calendar") from None
    return time.astimezone(UTC).replace(microsecond=int((fraction or ".0")[1:7].ljust(6, "0")))


def _type_error(message: str) -> InvalidInput:
    match = _error_path(message)
    reason, field = (match["reason"], match["field"]) if match else (message, None)
    if missing := _missing_field(reason):
        return InvalidInput.of(".".join(filter(None, [field, missing["field"]])), "is required")
    if unknown := _unknown_type(reason):
        return InvalidInput.of(field or "event_type", f"{unknown['value'][:64]!r} is not known")
    return InvalidInput.of(field or "value", reason[0].lower() + reason[1:])
