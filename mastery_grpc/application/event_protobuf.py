"""The binary shape of a learning event, `mastery.v1.LearningEvent`, by gRPC and in Kafka records."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import protovalidate

from mastery_grpc.domain.errors import InvalidInput, Violation
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
    from datetime import datetime

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from protovalidate import FieldPathPb as FieldPath

    from mastery.v1 import events_pb2, mastery_pb2
    from mastery_grpc.domain.events import Payload

_LAST_SECOND = (LATEST - EARLIEST) // timedelta(seconds=1)

_validator = protovalidate.Validator()


def rule_violations(message: Message) -> list[Violation]:
    """Returns how a message breaks the rules of its proto."""
    return [
        Violation(_field_path(violation.proto.field), violation.proto.message)
        for violation in _validator.collect_violations(message)
    ]


def event_from_proto(message: events_pb2.LearningEvent) -> LearningEvent:
    """Returns the event in a message. Raises InvalidInput if it breaks a rule of its proto."""
    if violations := rule_violations(message):
        raise InvalidInput(violations)
    return LearningEvent(
        event_id=message.event_id.lower(),
        student=StudentKey(message.student_id, message.school_id),
        event_time=time_from_proto(message.event_time, "event_time"),
        payload=_payload(message),
        source=message.source,
        course_id=message.course_id,
    )


def time_from_proto(message: Timestamp, field: str) -> datetime:
    """Returns the time in a message that has been validated, to the microsecond. Raises InvalidInput."""
    if not 0 <= message.nanos < 1_000_000_000:  # a rule that protovalidate cannot state
        raise InvalidInput.of(field, "nanos must be from 0 to 999999999")
    # One that it can state, and does not keep where the time in nanoseconds is more than 64 bits hold.
    if not 0 <= message.seconds <= _LAST_SECOND:
        raise InvalidInput.of(field, OUT_OF_TIME)
    return EARLIEST + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def components_from_proto(message: mastery_pb2.Components) -> Components:
    """Returns the four values of a message."""
    return Components(
        completion=message.completion,
        quiz=message.quiz,
        quality=message.quality,
        consistency=message.consistency,
    )


def _payload(message: events_pb2.LearningEvent) -> Payload:
    match message.WhichOneof("payload"):
        case "exercise_completion_submitted":
            exercise = message.exercise_completion_submitted
            return ExerciseCompletion(
                total_exercises=exercise.total_exercises,
                completed_exercises=exercise.completed_exercises,
                exercise_id=exercise.exercise_id,
                time_spent=exercise.time_spent.seconds,
            )
        case "quiz_performance_submitted":
            quiz = message.quiz_performance_submitted
            return QuizPerformance(
                total_questions=quiz.total_questions,
                correct_answers=quiz.correct_answers,
                quiz_id=quiz.quiz_id,
                time_spent=quiz.time_spent.seconds,
                confidence_score=_given(quiz, "confidence_score"),
            )
        case "quality_assessment_completed":
            quality = message.quality_assessment_completed
            return QualityAssessment(
                code_quality_score=_given(quality, "code_quality_score"),
                correctness_score=_given(quality, "correctness_score"),
                efficiency_score=_given(quality, "efficiency_score"),
                peer_review_score=_given(quality, "peer_review_score"),
                exercise_id=quality.exercise_id,
            )
        case "consistency_activity_recorded":
            activity = message.consistency_activity_recorded
            return ConsistencyActivity(consistency_score=_given(activity, "consistency_score"))
        case "mastery_calculation_requested":
            calculation = message.mastery_calculation_requested
            return MasteryCalculation(components=components_from_proto(calculation.components))
        case _:
            raise InvalidInput.of("payload", "is of a kind that this version does not know")


def _given(message: Message, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _field_path(path: FieldPath | None) -> str:
    """Returns a path such as `events[3].event_id`."""
    text = ""
    for element in path.elements if path else ():
        text += f".{element.field_name}"
        if element.subscript is not None and element.subscript.field == "index":
            text += f"[{element.subscript.value}]"
    return text.removeprefix(".")
