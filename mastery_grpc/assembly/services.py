"""The use cases behind the servicers, and what goes on beside them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor import ServiceDescriptor

from mastery.v1 import (
    analytics_service_pb2,
    batch_service_pb2,
    compliance_service_pb2,
    mastery_service_pb2,
    prediction_service_pb2,
    recommendation_service_pb2,
)
from mastery_grpc.application.accept_events import AcceptEvents
from mastery_grpc.application.audit.log import AuditLog
from mastery_grpc.application.batches.follow import FollowBatch
from mastery_grpc.application.batches.operations import BatchOperations
from mastery_grpc.application.batches.submit import SubmitBatch
from mastery_grpc.application.batches.work import WorkBatches
from mastery_grpc.application.calculate_mastery import CalculateMastery
from mastery_grpc.application.callers import CallClass
from mastery_grpc.application.cohorts.compare import CompareCohorts
from mastery_grpc.application.cohorts.members import CohortMembers
from mastery_grpc.application.compliance.erase_student import EraseStudent
from mastery_grpc.application.compliance.export_student import ExportStudent
from mastery_grpc.application.compliance.forget_overdue import ForgetOverdue
from mastery_grpc.application.compliance.retention import policy
from mastery_grpc.application.predict_mastery import PredictMastery
from mastery_grpc.application.read_history import ReadHistory
from mastery_grpc.application.read_mastery import ReadMastery
from mastery_grpc.application.rebuild_students import RebuildStudents
from mastery_grpc.application.recommend import Recommend
from mastery_grpc.application.verify_forecasts import VerifyForecasts
from mastery_grpc.application.watch_mastery import WatchMastery
from mastery_grpc.assembly.storage import Storage, utc_now
from mastery_grpc.domain.audit_chain import AuditKeys
from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster
from mastery_grpc.domain.forecasting.model_file import InvalidModel
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import read_forecaster, shipped_forecaster
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from mastery_grpc.domain.intervention import reasons_for
from mastery_grpc.domain.patterns import detect_patterns
from mastery_grpc.rpc.access import AccessRule
from mastery_grpc.rpc.analytics_servicer import AnalyticsServicer
from mastery_grpc.rpc.batch_servicer import BatchServicer
from mastery_grpc.rpc.compliance_servicer import ComplianceServicer
from mastery_grpc.rpc.mastery_servicer import MasteryServicer
from mastery_grpc.rpc.prediction_servicer import PredictionServicer
from mastery_grpc.rpc.recommendation_servicer import RecommendationServicer
from mastery_grpc.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from mastery_grpc.application.audit.store import AuditStore
    from mastery_grpc.application.batches.store import BatchFeed, BatchStore
    from mastery_grpc.application.event_observer import EventObserver
    from mastery_grpc.domain.forecasting.forecast import Forecaster
    from mastery_grpc.ingest.request_log import KafkaRequestLog

ANALYTICS_SERVICE = analytics_service_pb2.DESCRIPTOR.services_by_name["AnalyticsService"]
MASTERY_SERVICE = mastery_service_pb2.DESCRIPTOR.services_by_name["MasteryService"]
PREDICTION_SERVICE = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
BATCH_SERVICE = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"]
COMPLIANCE_SERVICE = compliance_service_pb2.DESCRIPTOR.services_by_name["ComplianceService"]
RECOMMENDATION_SERVICE = recommendation_service_pb2.DESCRIPTOR.services_by_name["RecommendationService"]


def forecaster_of(settings: Settings) -> Forecaster:
    """Returns the forecaster as set. Raises SettingsError for a model file that cannot be used."""
    match settings.forecaster:
        case "persistence":
            return PersistenceForecaster()
        case "linear_regression":
            return LinearRegressionForecaster()
    if not settings.forecast_model:
        return shipped_forecaster()
    try:
        return read_forecaster(Path(settings.forecast_model).read_bytes())
    except (OSError, InvalidModel) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SettingsError(f"{PREFIX}FORECAST_MODEL: {settings.forecast_model}: {reason}") from None


@dataclass(frozen=True, slots=True)
class Services:
    """What the server serves, and what goes on beside it."""

    servicers: dict[ServiceDescriptor, object]
    forecaster: WatchedForecaster
    predict: PredictMastery
    verify: VerifyForecasts
    audit: AuditLog
    work_batches: WorkBatches
    forget: ForgetOverdue


def services_of(
    settings: Settings,
    storage: Storage,
    request_log: KafkaRequestLog | None,
    observer: EventObserver | None = None,
) -> Services:
    """Returns the services on a storage; without a request log, events are applied but not published."""
    rules, terms = settings.scoring_rules(), settings.forecast_terms()
    forecaster = WatchedForecaster(
        forecaster_of(settings), PersistenceForecaster(), interval_level=terms.interval_level
    )
    accept = AcceptEvents(storage.apply, request_log, clock=utc_now, observer=observer)
    calculate = CalculateMastery(
        accept, storage.repository, rules=rules, log_retention=settings.retention().event_log, clock=utc_now
    )
    servicer = MasteryServicer(
        read=ReadMastery(storage.reader, storage.repository),
        calculate=calculate,
        accept=accept,
        watch=WatchMastery(storage.feed, storage.repository, storage.records),
    )
    verify = VerifyForecasts(
        storage.issued,
        storage.repository,
        forecaster,
        terms=terms,
        rules=rules,
        clock=utc_now,
        course_pulses=storage.course_pulses,
    )
    predict = PredictMastery(
        storage.repository,
        storage.outlooks,
        forecaster=forecaster,
        terms=terms,
        rules=rules,
        detect_patterns=detect_patterns,
        reasons_for=reasons_for,
        clock=utc_now,
        course_pulses=storage.course_pulses,
        on_issued=verify.on_issued,
    )
    recommend = Recommend(storage.advice, config=settings.advice_config(), clock=utc_now, forecasts=predict)
    work_batches = WorkBatches(
        storage.batch_work,
        BatchOperations(
            calculate=calculate,
            rebuild=RebuildStudents(
                storage.repository,
                rules=rules,
                snapshot_retention=settings.retention().snapshots,
                clock=utc_now,
            ),
            repository=storage.repository,
            predict=predict,
            recommend=recommend,
        ),
        storage.batch_feed,
        at_once=settings.batch_chunks_at_once,
        clock=utc_now,
    )
    audit = audit_log_of(settings, storage.audit)
    erase = EraseStudent(
        storage.records,
        storage.repository,
        storage.elsewhere,
        audit,
        request_log,
        mark_lifetime=settings.retention().erasure_mark,
        clock=utc_now,
    )
    compliance = ComplianceServicer(
        export=ExportStudent(storage.records, storage.elsewhere, audit, clock=utc_now),
        erase=erase,
        audit=audit,
        policy=policy(settings.retention()),
    )
    servicers: dict[ServiceDescriptor, object] = {
        MASTERY_SERVICE: servicer,
        PREDICTION_SERVICE: PredictionServicer(predict),
        RECOMMENDATION_SERVICE: RecommendationServicer(recommend),
        BATCH_SERVICE: batch_servicer_of(settings, storage.batches, storage.batch_feed),
        ANALYTICS_SERVICE: AnalyticsServicer(
            history=ReadHistory(storage.repository, clock=utc_now),
            cohorts=storage.manage_cohorts,
            compare=CompareCohorts(storage.cohorts, CohortMembers(storage.repository), storage.figures),
        ),
        COMPLIANCE_SERVICE: compliance,
    }
    forget = ForgetOverdue(
        storage.repository,
        storage.advice,
        storage.claims,
        rules=rules,
        log_retention=settings.retention().event_log,
        clock=utc_now,
    )
    return Services(servicers, forecaster, predict, verify, audit, work_batches, forget)


def batch_servicer_of(settings: Settings, store: BatchStore, feed: BatchFeed) -> BatchServicer:
    """Returns what hands batches in and tells about them; who works on them is set for each process."""
    return BatchServicer(
        submit=SubmitBatch(
            store, limits=settings.batch_limits(), lifetime=settings.retention().batches, clock=utc_now
        ),
        follow=FollowBatch(store, feed, clock=utc_now),
        clock=utc_now,
    )


def audit_log_of(settings: Settings, store: AuditStore) -> AuditLog:
    """Returns the audit log on a store. Raises SettingsError if there is no secret to derive its keys from."""
    rules = map(AccessRule, (*MASTERY_SERVICE.methods, BATCH_SERVICE.methods_by_name["SubmitBatch"]))
    return AuditLog(
        store,
        AuditKeys.derived_from(settings.audit_secret()),
        retention=settings.retention().audit,
        writers=[rule.method for rule in rules if rule.call_class is not CallClass.READ],
        clock=utc_now,
        timer=time.monotonic,
    )
