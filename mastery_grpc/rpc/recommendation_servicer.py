"""RecommendationService: convert, call the use case, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery.v1 import recommendation_service_pb2 as pb
from mastery_grpc.application.recommend import PathRequest
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.rpc.convert import time_to_proto
from mastery_grpc.rpc.convert_advice import (
    config_to_proto,
    goal_from_proto,
    path_to_proto,
    recommendation_to_proto,
    verdict_from_proto,
)

if TYPE_CHECKING:
    from mastery_grpc.application.recommend import Recommend
    from mastery_grpc.rpc.access import Call


class RecommendationServicer:
    """Serves `mastery.v1.RecommendationService`."""

    def __init__(self, recommend: Recommend) -> None:
        self._recommend = recommend

    async def GetRecommendations(
        self, request: pb.GetRecommendationsRequest, call: Call
    ) -> pb.GetRecommendationsResponse:
        advice = await self._recommend.next_steps(
            StudentKey(request.student_id, call.school_id),
            request.max_results if request.HasField("max_results") else None,
        )
        return pb.GetRecommendationsResponse(recommendations=map(recommendation_to_proto, advice))

    async def GetLearningPath(self, request: pb.GetLearningPathRequest, call: Call) -> pb.GetLearningPathResponse:
        path, from_cache = await self._recommend.path(
            PathRequest(
                student=StudentKey(request.student_id, call.school_id),
                goal=goal_from_proto(request.goal),
                course_id=request.course_id,
                daily_effort=request.daily_effort.ToTimedelta() if request.HasField("daily_effort") else None,
            )
        )
        return pb.GetLearningPathResponse(path=path_to_proto(request.student_id, path, from_cache=from_cache))

    async def GetRecommendationConfig(
        self, request: pb.GetRecommendationConfigRequest, call: Call
    ) -> pb.GetRecommendationConfigResponse:
        return config_to_proto(self._recommend.config)

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, call: Call) -> pb.RecordFeedbackResponse:
        recorded = await self._recommend.record(
            StudentKey(request.student_id, call.school_id),
            request.recommendation_id,
            verdict_from_proto(request.feedback),
            request_id=request.request_id.lower(),
        )
        return pb.RecordFeedbackResponse(create_time=time_to_proto(recorded))
