"""AnalyticsService: convert, call the use case, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery.v1 import analytics_service_pb2 as pb
from mastery_grpc.application.cohorts.compare import CONFIDENCE_LEVEL
from mastery_grpc.application.read_history import HistoryRequest
from mastery_grpc.domain.cohorts import CohortChange, CohortKey
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.rpc.convert import date_from_proto
from mastery_grpc.rpc.convert_analytics import (
    cohort_to_proto,
    comparison_to_proto,
    granularity_from_proto,
    history_to_proto,
    listed_cohort_to_proto,
    membership_from_proto,
    standing_to_proto,
)

if TYPE_CHECKING:
    from mastery_grpc.application.cohorts.compare import CompareCohorts
    from mastery_grpc.application.cohorts.manage import ManageCohorts
    from mastery_grpc.application.read_history import ReadHistory
    from mastery_grpc.rpc.access import Call


class AnalyticsServicer:
    """Serves `mastery.v1.AnalyticsService`."""

    def __init__(self, *, history: ReadHistory, cohorts: ManageCohorts, compare: CompareCohorts) -> None:
        self._history = history
        self._cohorts = cohorts
        self._compare = compare

    async def GetHistory(self, request: pb.GetHistoryRequest, call: Call) -> pb.GetHistoryResponse:
        page = await self._history(
            HistoryRequest(
                student=StudentKey(request.student_id, call.school_id),
                first=date_from_proto(request.start_date) if request.HasField("start_date") else None,
                last=date_from_proto(request.end_date) if request.HasField("end_date") else None,
                granularity=granularity_from_proto(request.granularity),
                page_size=request.page_size,
                page_token=request.page_token,
            )
        )
        return history_to_proto(page)

    async def CreateCohort(self, request: pb.CreateCohortRequest, call: Call) -> pb.CreateCohortResponse:
        cohort = await self._cohorts.create(
            CohortKey(request.cohort_id, call.school_id),
            request.display_name,
            membership_from_proto(request) or (),
            request_id=request.request_id.lower(),
        )
        return pb.CreateCohortResponse(cohort=cohort_to_proto(cohort))

    async def GetCohort(self, request: pb.GetCohortRequest, call: Call) -> pb.GetCohortResponse:
        cohort = await self._cohorts.get(CohortKey(request.cohort_id, call.school_id))
        return pb.GetCohortResponse(cohort=cohort_to_proto(cohort))

    async def ListCohorts(self, request: pb.ListCohortsRequest, call: Call) -> pb.ListCohortsResponse:
        page = await self._cohorts.page(call.school_id, page_size=request.page_size, page_token=request.page_token)
        return pb.ListCohortsResponse(
            cohorts=map(listed_cohort_to_proto, page.cohorts), next_page_token=page.next_page_token
        )

    async def UpdateCohort(self, request: pb.UpdateCohortRequest, call: Call) -> pb.UpdateCohortResponse:
        cohort = await self._cohorts.update(
            CohortKey(request.cohort_id, call.school_id),
            CohortChange(
                display_name=request.display_name if request.HasField("display_name") else None,
                replacement=membership_from_proto(request),
                added=tuple(request.add_student_ids),
                removed=tuple(request.remove_student_ids),
            ),
            etag=request.etag,
            request_id=request.request_id.lower(),
        )
        return pb.UpdateCohortResponse(cohort=cohort_to_proto(cohort))

    async def DeleteCohort(self, request: pb.DeleteCohortRequest, call: Call) -> pb.DeleteCohortResponse:
        await self._cohorts.delete(CohortKey(request.cohort_id, call.school_id), etag=request.etag)
        return pb.DeleteCohortResponse()

    async def CompareCohorts(self, request: pb.CompareCohortsRequest, call: Call) -> pb.CompareCohortsResponse:
        compared = await self._compare.cohorts(
            CohortKey(request.first_cohort_id, call.school_id),
            CohortKey(request.second_cohort_id, call.school_id),
            level=request.confidence_level if request.HasField("confidence_level") else CONFIDENCE_LEVEL,
        )
        return comparison_to_proto(compared)

    async def CompareToCohort(self, request: pb.CompareToCohortRequest, call: Call) -> pb.CompareToCohortResponse:
        compared = await self._compare.student(
            StudentKey(request.student_id, call.school_id), CohortKey(request.cohort_id, call.school_id)
        )
        return standing_to_proto(compared)
