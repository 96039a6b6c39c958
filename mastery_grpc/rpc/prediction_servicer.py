"""PredictionService: convert, call the use case, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery.v1 import prediction_service_pb2 as pb
from mastery_grpc.application.predict_mastery import WEEK
from mastery_grpc.domain.errors import MasteryError
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.rpc.convert_prediction import (
    intervention_to_proto,
    pattern_to_proto,
    prediction_to_proto,
    trajectory_to_proto,
)
from mastery_grpc.rpc.status import status_of

if TYPE_CHECKING:
    from mastery_grpc.application.predict_mastery import PredictMastery
    from mastery_grpc.rpc.access import Call

TRAJECTORY_DAYS = 14


class PredictionServicer:
    """Serves `mastery.v1.PredictionService`."""

    def __init__(self, predict: PredictMastery) -> None:
        self._predict = predict

    async def PredictNextWeek(self, request: pb.PredictNextWeekRequest, call: Call) -> pb.PredictNextWeekResponse:
        sighted = await self._predict.outlook(StudentKey(request.student_id, call.school_id))
        return pb.PredictNextWeekResponse(prediction=prediction_to_proto(sighted, WEEK))

    async def PredictTrajectory(
        self, request: pb.PredictTrajectoryRequest, call: Call
    ) -> pb.PredictTrajectoryResponse:
        sighted = await self._predict.outlook(StudentKey(request.student_id, call.school_id))
        days = request.horizon_days if request.HasField("horizon_days") else TRAJECTORY_DAYS
        return trajectory_to_proto(sighted, days)

    async def CheckIntervention(
        self, request: pb.CheckInterventionRequest, call: Call
    ) -> pb.CheckInterventionResponse:
        students = [StudentKey(student_id, call.school_id) for student_id in request.student_ids]
        found = await self._predict.interventions(students)
        return pb.CheckInterventionResponse(
            results=[
                pb.InterventionResult(student_id=student.student_id, error=status_of(each))
                if isinstance(each, MasteryError)
                else pb.InterventionResult(student_id=student.student_id, intervention=intervention_to_proto(each))
                for student, each in zip(students, found, strict=True)
            ],
            intervention_threshold=self._predict.terms.intervention_threshold,
        )

    async def DetectPatterns(self, request: pb.DetectPatternsRequest, call: Call) -> pb.DetectPatternsResponse:
        patterns, history_days = await self._predict.patterns(StudentKey(request.student_id, call.school_id))
        return pb.DetectPatternsResponse(patterns=map(pattern_to_proto, patterns), history_days=history_days)
