"""Between the messages of the contract and the domain; no rule lives here."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from mastery.v1 import mastery_pb2
from mastery_grpc.domain.scoring import Component, Level, Weights

if TYPE_CHECKING:
    from datetime import datetime

    from google.type.date_pb2 import Date

    from mastery_grpc.domain.student import Mastery

_LEVELS = {level: mastery_pb2.Level.Value(f"LEVEL_{level.name}") for level in Level}
_COMPONENTS = {component: mastery_pb2.Component.Value(f"COMPONENT_{component.name}") for component in Component}


def mastery_to_proto(mastery: Mastery) -> mastery_pb2.Mastery:
    """Returns a mastery as the contract shapes it."""
    components = mastery.components
    message = mastery_pb2.Mastery(
        student_id=mastery.student_id,
        school_id=mastery.school_id,
        mastery_score=mastery.mastery_score,
        level=_LEVELS[mastery.level],
        components=mastery_pb2.Components(
            completion=components.completion,
            quiz=components.quiz,
            quality=components.quality,
            consistency=components.consistency,
        ),
        breakdown=[
            mastery_pb2.ComponentScore(
                component=_COMPONENTS[part.component],
                score=part.score,
                weight=part.weight,
                contribution=part.contribution,
                observed=part.observed,
            )
            for part in mastery.breakdown
        ],
        version=mastery.version,
    )
    message.update_time.FromDatetime(mastery.update_time)
    return message


def weights_from_proto(message: mastery_pb2.Weights) -> Weights:
    """Returns the weights in a message."""
    return Weights(
        completion=message.completion,
        quiz=message.quiz,
        quality=message.quality,
        consistency=message.consistency,
    )


def date_from_proto(message: Date) -> date:
    """Returns the day in a message that has been validated."""
    return date(message.year, message.month, message.day)


def time_to_proto(time: datetime) -> Timestamp:
    """Returns an aware time as a message."""
    message = Timestamp()
    message.FromDatetime(time)
    return message
