"""Between the messages of advice and the domain; no rule lives here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.type.date_pb2 import Date

from mastery.v1 import mastery_pb2
from mastery.v1 import recommendation_service_pb2 as pb
from mastery_grpc.domain.advice_kinds import Action
from mastery_grpc.domain.learning_path import LearningGoal
from mastery_grpc.domain.recommendations import Verdict
from mastery_grpc.domain.scoring import Component
from mastery_grpc.rpc.convert import time_to_proto

if TYPE_CHECKING:
    from datetime import date, timedelta

    from mastery_grpc.domain.learning_path import LearningPath, LearningStep, StudyDay
    from mastery_grpc.domain.recommendations import AdviceConfig, Recommendation

_ACTIONS = {action: mastery_pb2.Action.Value(f"ACTION_{action.name}") for action in Action}
_COMPONENTS = {component: mastery_pb2.Component.Value(f"COMPONENT_{component.name}") for component in Component}
_GOALS = {goal: pb.LearningGoal.Value(f"LEARNING_GOAL_{goal.name}") for goal in LearningGoal}
_GOAL_OF = {number: goal for goal, number in _GOALS.items()}
_GOAL_OF[pb.LEARNING_GOAL_UNSPECIFIED] = LearningGoal.IMPROVE_MASTERY
_VERDICT_OF = {pb.Feedback.Value(f"FEEDBACK_{verdict.name}"): verdict for verdict in Verdict}


def goal_from_proto(value: pb.LearningGoal.ValueType) -> LearningGoal:
    """Returns the goal meant by a value that has been validated."""
    return _GOAL_OF[value]


def verdict_from_proto(value: pb.Feedback.ValueType) -> Verdict:
    """Returns the verdict in a value that has been validated."""
    return _VERDICT_OF[value]


def recommendation_to_proto(recommendation: Recommendation) -> mastery_pb2.Recommendation:
    """Returns advice as the contract shapes it."""
    return mastery_pb2.Recommendation(
        recommendation_id=recommendation.recommendation_id,
        action=_ACTIONS[recommendation.action],
        component=_COMPONENTS[recommendation.component],
        area=recommendation.area,
        priority=recommendation.priority,
        effort=Duration(seconds=60 * recommendation.effort_minutes),
        rationale=recommendation.rationale,
        expected_gain=recommendation.expected_gain,
    )


def path_to_proto(student_id: str, path: LearningPath, *, from_cache: bool) -> pb.LearningPath:
    """Returns a path as the contract shapes it."""
    return pb.LearningPath(
        student_id=student_id,
        goal=_GOALS[path.goal],
        steps=map(_step_to_proto, path.steps),
        completion_date=None if path.completion_date is None else _date_to_proto(path.completion_date),
        schedule=map(_day_to_proto, path.schedule),
        create_time=time_to_proto(path.create_time),
        from_cache=from_cache,
    )


def config_to_proto(config: AdviceConfig) -> pb.GetRecommendationConfigResponse:
    """Returns the settings of advice as the contract shapes them."""
    weights = config.weights
    return pb.GetRecommendationConfigResponse(
        component_threshold=config.component_threshold,
        weights=mastery_pb2.Weights(
            completion=weights.completion,
            quiz=weights.quiz,
            quality=weights.quality,
            consistency=weights.consistency,
        ),
        max_recommendations=config.max_results,
        dismissal_duration=_duration_to_proto(config.dismissal),
        daily_effort=_duration_to_proto(config.daily_effort),
    )


def _step_to_proto(step: LearningStep) -> pb.LearningStep:
    return pb.LearningStep(
        position=step.position,
        recommendation=recommendation_to_proto(step.recommendation),
        expected_score=step.expected_score,
    )


def _day_to_proto(day: StudyDay) -> pb.StudyDay:
    return pb.StudyDay(
        date=_date_to_proto(day.date),
        blocks=[
            pb.StudyBlock(position=block.position, effort=_duration_to_proto(block.effort)) for block in day.blocks
        ],
    )


def _date_to_proto(day: date) -> Date:
    return Date(year=day.year, month=day.month, day=day.day)


def _duration_to_proto(duration: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(duration)
    return message
