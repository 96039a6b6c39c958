"""The six services of `mastery.v1`. What each method takes, returns and fails with is said in the protos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from mastery.v1 import analytics_service_pb2 as analytics
from mastery.v1 import batch_service_pb2 as batch
from mastery.v1 import compliance_service_pb2 as compliance
from mastery.v1 import mastery_service_pb2 as mastery
from mastery.v1 import prediction_service_pb2 as prediction
from mastery.v1 import recommendation_service_pb2 as recommendation
from mastery_client.event_stream import EventSender
from mastery_client.methods import Async, Face, Paged, Service, Stream, Sync, Unary, streaming
from mastery_client.reconnecting import BatchReader, MasteryReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable

    from mastery.v1.events_pb2 import LearningEvent


class MasteryService(Service[Face]):
    """Takes learning events and answers how well a student has mastered what was taught."""

    descriptor = mastery.DESCRIPTOR.services_by_name["MasteryService"]

    get_mastery = Unary(mastery.GetMasteryRequest, mastery.GetMasteryResponse)
    batch_get_mastery = Unary(mastery.BatchGetMasteryRequest, mastery.BatchGetMasteryResponse)
    calculate_mastery = Unary(mastery.CalculateMasteryRequest, mastery.CalculateMasteryResponse)
    ingest_events = Unary(mastery.IngestEventsRequest, mastery.IngestEventsResponse, timeout=30, idempotent=True)
    watch_mastery = Stream(mastery.WatchMasteryRequest, mastery.WatchMasteryResponse, reader=MasteryReader)
    """First the state of each student that has one, then every change, for as long as somebody reads. Goes on
    through broken connections: each state is told once at most, the newest always."""

    @overload
    def stream_events(
        self: MasteryService[Async], events: AsyncIterable[LearningEvent] | Iterable[LearningEvent]
    ) -> AsyncGenerator[mastery.StreamEventsResponse]: ...
    @overload
    def stream_events(
        self: MasteryService[Sync], events: Iterable[LearningEvent]
    ) -> Generator[mastery.StreamEventsResponse]: ...
    def stream_events(self: MasteryService[Any], events: Any) -> Any:
        """Sends any number of events and yields one acknowledgement for each, in order.

        What was not acknowledged when a connection broke is sent again; it may then be told to be a `duplicate`.
        An event that could not be stored just now is sent again too. All others are refused for good.
        """
        call = streaming(self.descriptor.methods_by_name["StreamEvents"], self, timeout=self.options.timeout)
        patience = self.options.stream_patience
        if self.loop is None:
            return EventSender(events, call, patience=patience).acknowledgements()
        sender = EventSender(self.loop.unblocked(events), call, patience=patience)
        return self.loop.iterate(sender.acknowledgements())


class PredictionService(Service[Face]):
    """Forecasts, and tells who needs somebody to step in."""

    descriptor = prediction.DESCRIPTOR.services_by_name["PredictionService"]

    predict_next_week = Unary(prediction.PredictNextWeekRequest, prediction.PredictNextWeekResponse)
    predict_trajectory = Unary(prediction.PredictTrajectoryRequest, prediction.PredictTrajectoryResponse)
    check_intervention = Unary(
        prediction.CheckInterventionRequest, prediction.CheckInterventionResponse, timeout=30
    )
    detect_patterns = Unary(prediction.DetectPatternsRequest, prediction.DetectPatternsResponse)


class RecommendationService(Service[Face]):
    """Advises what to do next, and learns from what became of the advice."""

    descriptor = recommendation.DESCRIPTOR.services_by_name["RecommendationService"]

    get_recommendations = Unary(
        recommendation.GetRecommendationsRequest, recommendation.GetRecommendationsResponse
    )
    get_learning_path = Unary(recommendation.GetLearningPathRequest, recommendation.GetLearningPathResponse)
    get_recommendation_config = Unary(
        recommendation.GetRecommendationConfigRequest, recommendation.GetRecommendationConfigResponse
    )
    record_feedback = Unary(recommendation.RecordFeedbackRequest, recommendation.RecordFeedbackResponse)


class AnalyticsService(Service[Face]):
    """Looks back at a student's history and compares groups of students."""

    descriptor = analytics.DESCRIPTOR.services_by_name["AnalyticsService"]

    get_history = Paged(analytics.GetHistoryRequest, analytics.GetHistoryResponse, lambda page: page.buckets)
    create_cohort = Unary(analytics.CreateCohortRequest, analytics.CreateCohortResponse)
    get_cohort = Unary(analytics.GetCohortRequest, analytics.GetCohortResponse)
    list_cohorts = Paged(analytics.ListCohortsRequest, analytics.ListCohortsResponse, lambda page: page.cohorts)
    update_cohort = Unary(analytics.UpdateCohortRequest, analytics.UpdateCohortResponse)
    delete_cohort = Unary(analytics.DeleteCohortRequest, analytics.DeleteCohortResponse)
    compare_cohorts = Unary(analytics.CompareCohortsRequest, analytics.CompareCohortsResponse, timeout=30)
    compare_to_cohort = Unary(analytics.CompareToCohortRequest, analytics.CompareToCohortResponse, timeout=30)


class BatchService(Service[Face]):
    """Works through many students in the background."""

    descriptor = batch.DESCRIPTOR.services_by_name["BatchService"]

    submit_batch = Unary(batch.SubmitBatchRequest, batch.SubmitBatchResponse)
    get_batch = Unary(batch.GetBatchRequest, batch.GetBatchResponse)
    list_batch_results = Paged(
        batch.ListBatchResultsRequest, batch.ListBatchResultsResponse, lambda page: page.results
    )
    cancel_batch = Unary(batch.CancelBatchRequest, batch.CancelBatchResponse, idempotent=True)
    watch_batch = Stream(batch.WatchBatchRequest, batch.WatchBatchResponse, reader=BatchReader)
    """The state of a batch, then every change until it has ended. Goes on through broken connections."""


class ComplianceService(Service[Face]):
    """Tells what is held about a student, forgets it on demand, and shows who has looked at it."""

    descriptor = compliance.DESCRIPTOR.services_by_name["ComplianceService"]

    export_student_data = Stream(
        compliance.ExportStudentDataRequest, compliance.ExportStudentDataResponse, timeout=300
    )
    """Everything held about a student, then the manifest; an export without it is not whole."""
    erase_student_data = Unary(compliance.EraseStudentDataRequest, compliance.EraseStudentDataResponse, timeout=60)
    list_audit_entries = Paged(
        compliance.ListAuditEntriesRequest, compliance.ListAuditEntriesResponse, lambda page: page.entries
    )
    verify_audit_log = Unary(compliance.VerifyAuditLogRequest, compliance.VerifyAuditLogResponse, timeout=300)
    get_retention_policy = Unary(compliance.GetRetentionPolicyRequest, compliance.GetRetentionPolicyResponse)


SERVICES: tuple[type[Service[Any]], ...] = (
    MasteryService,
    PredictionService,
    RecommendationService,
    AnalyticsService,
    BatchService,
    ComplianceService,
)
