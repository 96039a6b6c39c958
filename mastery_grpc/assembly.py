"""What the settings ask for, built: storage, forecaster, use cases and servicers. Nothing here runs yet."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
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
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.audit_log import AuditLog
from mastery_grpc.application.batch_operations import BatchOperations
from mastery_grpc.application.calculate_mastery import CalculateMastery
from mastery_grpc.application.callers import CallClass
from mastery_grpc.application.circuit_breaker import BreakerTerms, CircuitBreaker
from mastery_grpc.application.cohort_members import CohortMembers
from mastery_grpc.application.cohort_memberships import CohortMemberships
from mastery_grpc.application.compare_cohorts import CompareCohorts
from mastery_grpc.application.course_pulse import CountCourses
from mastery_grpc.application.erase_student import EraseStudent
from mastery_grpc.application.export_student import ExportStudent
from mastery_grpc.application.follow_batch import FollowBatch
from mastery_grpc.application.forget_overdue import ForgetOverdue
from mastery_grpc.application.manage_cohorts import ManageCohorts
from mastery_grpc.application.predict_mastery import PredictMastery
from mastery_grpc.application.rate_limits import RateLimiter
from mastery_grpc.application.read_history import ReadHistory
from mastery_grpc.application.read_mastery import ReadMastery
from mastery_grpc.application.rebuild_students import RebuildStudents
from mastery_grpc.application.recommend import Recommend
from mastery_grpc.application.retention import policy
from mastery_grpc.application.submit_batch import SubmitBatch
from mastery_grpc.application.verify_forecasts import VerifyForecasts
from mastery_grpc.application.watch_mastery import WatchMastery
from mastery_grpc.application.work_batches import WorkBatches
from mastery_grpc.domain.audit_chain import AuditKeys
from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster
from mastery_grpc.domain.forecasting.model_file import InvalidModel
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import read_forecaster, shipped_forecaster
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from mastery_grpc.domain.intervention import reasons_for
from mastery_grpc.domain.patterns import detect_patterns
from mastery_grpc.ingest.topics import KafkaAccess, Topics, TopicTerms
from mastery_grpc.rpc.access import AccessRule
from mastery_grpc.rpc.analytics_servicer import AnalyticsServicer
from mastery_grpc.rpc.batch_servicer import BatchServicer
from mastery_grpc.rpc.compliance_servicer import ComplianceServicer
from mastery_grpc.rpc.jwks_source import JwksFile, JwksUrl
from mastery_grpc.rpc.mastery_servicer import MasteryServicer
from mastery_grpc.rpc.prediction_servicer import PredictionServicer
from mastery_grpc.rpc.recommendation_servicer import RecommendationServicer
from mastery_grpc.rpc.server import ServerTerms
from mastery_grpc.rpc.signing_keys import DamagedKeys, JwksSource, RefreshTerms, SigningKeys, VerificationKey
from mastery_grpc.rpc.tls import ServerCertificates, TlsFiles, UnusableTlsFile
from mastery_grpc.settings import PREFIX, Settings, SettingsError
from mastery_grpc.storage.batch_feed import RedisBatchFeed
from mastery_grpc.storage.cache import CachedMasteryReader
from mastery_grpc.storage.connection import Replicas, connect
from mastery_grpc.storage.course_pulse_cache import CachedCoursePulses
from mastery_grpc.storage.feed import RedisMasteryFeed
from mastery_grpc.storage.memory_quotas import MemoryQuotas
from mastery_grpc.storage.redis_advice import RedisAdviceStore
from mastery_grpc.storage.redis_audit_log import RedisAuditStore
from mastery_grpc.storage.redis_batch_work import RedisBatchWork
from mastery_grpc.storage.redis_batches import RedisBatchStore
from mastery_grpc.storage.redis_cohorts import RedisCohortStore
from mastery_grpc.storage.redis_course_pulse import RedisCoursePulses
from mastery_grpc.storage.redis_figures import RedisFigures
from mastery_grpc.storage.redis_held_batches import RedisHeldBatches
from mastery_grpc.storage.redis_issued_forecasts import RedisIssuedForecasts
from mastery_grpc.storage.redis_outlooks import RedisOutlookStore
from mastery_grpc.storage.redis_quotas import RedisQuotas
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.storage.redis_student_records import RedisStudentRecords
from mastery_grpc.storage.redis_upkeep import RedisUpkeepClaims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mastery_grpc.application.audit_store import AuditStore
    from mastery_grpc.application.batch_store import BatchFeed, BatchStore
    from mastery_grpc.application.event_observer import EventObserver
    from mastery_grpc.application.held_data import HeldData
    from mastery_grpc.application.rate_limits import Quotas
    from mastery_grpc.domain.errors import Unavailable
    from mastery_grpc.domain.forecasting.forecast import Forecaster
    from mastery_grpc.ingest.request_log import KafkaRequestLog
    from mastery_grpc.storage.command_observer import CommandObserver

COUNTING_INTERVAL = 5.0
"""Seconds between two writes of what courses did; a crash loses so much of it."""
COURSE_PULSE_LIFETIME = 60.0
COURSE_PULSE_CAPACITY = 1000
TLS_FILES = ("tls_cert", "tls_key", "tls_client_ca")
ANALYTICS_SERVICE = analytics_service_pb2.DESCRIPTOR.services_by_name["AnalyticsService"]
MASTERY_SERVICE = mastery_service_pb2.DESCRIPTOR.services_by_name["MasteryService"]
PREDICTION_SERVICE = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
BATCH_SERVICE = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"]
COMPLIANCE_SERVICE = compliance_service_pb2.DESCRIPTOR.services_by_name["ComplianceService"]
RECOMMENDATION_SERVICE = recommendation_service_pb2.DESCRIPTOR.services_by_name["RecommendationService"]


def utc_now() -> datetime:
    """Returns the current time; the only clock of the service."""
    return datetime.now(UTC)


def kafka_access(settings: Settings) -> KafkaAccess:
    """Returns how Kafka is reached. Raises SettingsError if no broker is set."""
    if not settings.kafka_bootstrap_servers:
        raise SettingsError(f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS: is not set")
    return KafkaAccess(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        topics=Topics(
            requests=settings.kafka_requests_topic,
            results=settings.kafka_results_topic,
            dead_letters=settings.kafka_dlq_topic,
        ),
        properties=settings.kafka_properties,
    )


def topic_terms(settings: Settings) -> TopicTerms:
    """Returns how the topics are to be laid out."""
    return TopicTerms(
        partitions=settings.kafka_partitions,
        dead_letter_partitions=settings.kafka_dlq_partitions,
        replication_factor=settings.kafka_replication_factor,
    )


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
class Storage:
    """Redis, and what both processes do with it."""

    repository: RedisStudentRepository
    apply: ApplyEvents
    feed: RedisMasteryFeed
    reader: CachedMasteryReader
    count_courses: CountCourses
    course_pulses: CachedCoursePulses
    outlooks: RedisOutlookStore
    advice: RedisAdviceStore
    issued: RedisIssuedForecasts
    cohorts: RedisCohortStore
    manage_cohorts: ManageCohorts
    figures: RedisFigures
    audit: RedisAuditStore
    quotas: RedisQuotas
    batches: RedisBatchStore
    batch_work: RedisBatchWork
    batch_feed: RedisBatchFeed
    held_batches: RedisHeldBatches
    records: RedisStudentRecords
    claims: RedisUpkeepClaims

    @property
    def elsewhere(self) -> tuple[HeldData, ...]:
        """Whoever holds data about students outside of their own keys."""
        return (self.issued, CohortMemberships(self.cohorts, self.manage_cohorts), self.held_batches)


@asynccontextmanager
async def opened_storage(
    settings: Settings, breaker: CircuitBreaker | None, observer: CommandObserver | None = None
) -> AsyncIterator[Storage]:
    """Yields the storage; nothing is asked of Redis yet. Raises SettingsError for an address that is none."""
    try:
        client = connect(
            settings.redis_url,
            timeout=settings.redis_timeout,
            max_connections=settings.redis_max_connections,
            observer=observer,
        )
    except ValueError as error:
        raise SettingsError(f"{PREFIX}REDIS_URL: {error}") from None
    retention = settings.retention()
    try:
        # Half the time: whoever waits for replicas must not be cut off by the timeout of his connection.
        replicas = Replicas(settings.redis_min_replicas, settings.redis_timeout / 2)
        repository = RedisStudentRepository(client, retention=retention, replicas=replicas, breaker=breaker)
        course_pulses = RedisCoursePulses(client, lifetime=retention.course_pulse, breaker=breaker)
        count_courses = CountCourses(course_pulses, interval=COUNTING_INTERVAL)
        advice = RedisAdviceStore(client, retention=retention, replicas=replicas, breaker=breaker)
        apply = ApplyEvents(
            repository,
            rules=settings.scoring_rules(),
            log_retention=retention.event_log,
            clock=utc_now,
            advice=settings.advice_config(),
            feedback=advice,
            count_courses=count_courses,
        )
        reader = CachedMasteryReader(
            repository,
            capacity=settings.cache_capacity,
            lifetime=settings.cache_lifetime,
            timer=time.monotonic,
        )
        cached_pulses = CachedCoursePulses(
            course_pulses,
            capacity=COURSE_PULSE_CAPACITY,
            lifetime=COURSE_PULSE_LIFETIME,
            timer=time.monotonic,
        )
        feed = RedisMasteryFeed(client, cache=reader)
        outlooks = RedisOutlookStore(client, lifetime=retention.prediction, breaker=breaker)
        issued = RedisIssuedForecasts(client, retention=retention, clock=utc_now, breaker=breaker)
        cohorts = RedisCohortStore(client, retention=retention, replicas=replicas, breaker=breaker)
        figures = RedisFigures(client, breaker=breaker)
        # No breaker: both go on behind the calls, and their failures are not to be counted with theirs.
        audit = RedisAuditStore(client, retention=retention.audit, replicas=replicas)
        quotas = RedisQuotas(client, period=settings.call_limits().period)
        batches = RedisBatchStore(client, lifetime=retention.batches, replicas=replicas, breaker=breaker)
        records = RedisStudentRecords(client, retention=retention, replicas=replicas, breaker=breaker)
        manage_cohorts = ManageCohorts(cohorts, CohortMembers(repository), records, clock=utc_now)
        yield Storage(
            repository,
            apply,
            feed,
            reader,
            count_courses,
            cached_pulses,
            outlooks,
            advice,
            issued,
            cohorts,
            manage_cohorts,
            figures,
            audit,
            quotas,
            batches,
            RedisBatchWork(client, lifetime=retention.batches, replicas=replicas),
            RedisBatchFeed(client),
            RedisHeldBatches(client, clock=utc_now, breaker=breaker),
            records,
            RedisUpkeepClaims(client),
        )
    finally:
        await client.aclose()


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


def rate_limiter_of(settings: Settings, quotas: Quotas) -> RateLimiter:
    """Returns what keeps callers to their limits, which all processes on these quotas share."""
    limits = settings.call_limits()
    alone = MemoryQuotas(period=limits.period, timer=time.monotonic)
    return RateLimiter(quotas, fallback=alone, limits=limits, timer=time.monotonic)


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


def breaker_of(settings: Settings, unavailable: type[Unavailable]) -> CircuitBreaker:
    """Returns a closed breaker for a dependency that is told to be away by `unavailable`."""
    terms = BreakerTerms(failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds)
    return CircuitBreaker(unavailable, terms=terms, timer=time.monotonic)


async def signing_keys_of(settings: Settings) -> SigningKeys:
    """Returns the keys that tokens are verified with, asked for once; a URL may be away, a file may not.

    Raises SettingsError for a secret, file or URL that cannot be used.
    """
    secret, source = settings.secret(), _jwks_source(settings)
    keys = SigningKeys(
        timer=time.monotonic,
        secret=None if secret is None else VerificationKey(settings.jwt_algorithm, secret.encode()),
        source=source,
        terms=RefreshTerms(
            interval=settings.jwt_jwks_refresh_interval, shortest_interval=settings.jwt_jwks_shortest_interval
        ),
    )
    try:
        await keys.load()
    except DamagedKeys as error:
        raise SettingsError(f"{PREFIX}JWT_JWKS: {source}: {error}") from None
    return keys


def _jwks_source(settings: Settings) -> JwksSource | None:
    if "://" not in settings.jwt_jwks:
        return JwksFile(settings.jwt_jwks) if settings.jwt_jwks else None
    try:
        return JwksUrl(settings.jwt_jwks, timeout=settings.jwt_jwks_timeout)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}JWT_JWKS: {error}") from None


def certificates_of(settings: Settings) -> ServerCertificates | None:
    """Returns what the server shows its clients, None without TLS. Raises SettingsError for files of no use."""
    given = {name: Path(getattr(settings, name)) for name in TLS_FILES if getattr(settings, name)}
    if not given:
        return None
    for name in ("tls_cert", "tls_key"):
        if name not in given:
            others = ", ".join(PREFIX + other.upper() for other in given)
            raise SettingsError(f"{PREFIX}{name.upper()}: is not set, and {others} is of no use without it")
    try:
        return ServerCertificates(TlsFiles(given["tls_cert"], given["tls_key"], given.get("tls_client_ca")))
    except UnusableTlsFile as error:
        [name, *_] = [name for name, file in given.items() if file == error.file]
        raise SettingsError(f"{PREFIX}{name.upper()}: {error}") from None


def server_terms(settings: Settings) -> ServerTerms:
    """Returns on which terms clients are served."""
    return ServerTerms(
        shares_port=settings.grpc_workers > 1,
        max_receive_message_size=settings.grpc_max_receive_message_size,
        max_send_message_size=settings.grpc_max_send_message_size,
        max_concurrent_streams=settings.grpc_max_concurrent_streams,
        keepalive_time=settings.grpc_keepalive_time,
        keepalive_timeout=settings.grpc_keepalive_timeout,
        max_connection_age=settings.grpc_max_connection_age,
        max_connection_age_grace=settings.grpc_max_connection_age_grace,
    )
