"""The composition root: builds the server and the worker from settings, starts them, and stops them in reverse."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mastery.v1 import mastery_service_pb2, prediction_service_pb2, recommendation_service_pb2
from mastery_grpc.application.accept_events import AcceptEvents
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.calculate_mastery import CalculateMastery
from mastery_grpc.application.circuit_breaker import BreakerTerms, CircuitBreaker
from mastery_grpc.application.course_pulse import CountCourses
from mastery_grpc.application.predict_mastery import PredictMastery
from mastery_grpc.application.read_mastery import ReadMastery
from mastery_grpc.application.recommend import Recommend
from mastery_grpc.application.verify_forecasts import VerifyForecasts
from mastery_grpc.application.watch_mastery import WatchMastery
from mastery_grpc.domain.errors import BrokerUnavailable, StorageUnavailable, Unavailable
from mastery_grpc.domain.forecasting.forecast import ForecastTerms
from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster
from mastery_grpc.domain.forecasting.model_file import InvalidModel
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import read_forecaster, shipped_forecaster
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from mastery_grpc.domain.intervention import reasons_for
from mastery_grpc.domain.patterns import detect_patterns
from mastery_grpc.ingest.dead_letters import DeadLetterLimit
from mastery_grpc.ingest.request_log import KafkaRequestLog
from mastery_grpc.ingest.topics import KafkaAccess, Topics
from mastery_grpc.ingest.worker import IngestWorker
from mastery_grpc.rpc.authentication import TokenVerifier
from mastery_grpc.rpc.health import Health
from mastery_grpc.rpc.mastery_servicer import MasteryServicer
from mastery_grpc.rpc.pipeline import CallPipeline
from mastery_grpc.rpc.prediction_servicer import PredictionServicer
from mastery_grpc.rpc.recommendation_servicer import RecommendationServicer
from mastery_grpc.rpc.server import ServerTerms, build_server, health_server
from mastery_grpc.settings import PREFIX, Settings, SettingsError
from mastery_grpc.storage.cache import CachedMasteryReader
from mastery_grpc.storage.connection import Replicas, connect
from mastery_grpc.storage.course_pulse_cache import CachedCoursePulses
from mastery_grpc.storage.feed import RedisMasteryFeed
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_advice import RedisAdviceStore
from mastery_grpc.storage.redis_course_pulse import RedisCoursePulses
from mastery_grpc.storage.redis_issued_forecasts import RedisIssuedForecasts
from mastery_grpc.storage.redis_outlooks import RedisOutlookStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.telemetry import observe_breakers, observe_forecasts, served_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    import grpc
    from google.protobuf.descriptor import ServiceDescriptor

    from mastery_grpc.domain.forecasting.forecast import Forecaster

HEALTH_INTERVAL = 1.0
RETENTION = Retention()
COUNTING_INTERVAL = 5.0
"""Seconds between two writes of what courses did; a crash loses so much of it."""
COURSE_PULSE_LIFETIME = 60.0
COURSE_PULSE_CAPACITY = 1000
MASTERY_SERVICE = mastery_service_pb2.DESCRIPTOR.services_by_name["MasteryService"]
PREDICTION_SERVICE = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
RECOMMENDATION_SERVICE = recommendation_service_pb2.DESCRIPTOR.services_by_name["RecommendationService"]

log = structlog.get_logger(__name__)


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
class _Storage:
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


@asynccontextmanager
async def _storage(settings: Settings, breaker: CircuitBreaker | None) -> AsyncIterator[_Storage]:
    try:
        client = connect(settings.redis_url, timeout=settings.redis_timeout)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}REDIS_URL: {error}") from None
    try:
        # Half the time: whoever waits for replicas must not be cut off by the timeout of his connection.
        replicas = Replicas(settings.redis_min_replicas, settings.redis_timeout / 2)
        repository = RedisStudentRepository(client, retention=RETENTION, replicas=replicas, breaker=breaker)
        course_pulses = RedisCoursePulses(client, lifetime=RETENTION.course_pulse, breaker=breaker)
        count_courses = CountCourses(course_pulses, interval=COUNTING_INTERVAL)
        advice = RedisAdviceStore(client, retention=RETENTION, replicas=replicas, breaker=breaker)
        apply = ApplyEvents(
            repository,
            rules=settings.scoring_rules(),
            log_retention=RETENTION.event_log,
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
        outlooks = RedisOutlookStore(client, lifetime=RETENTION.prediction, breaker=breaker)
        issued = RedisIssuedForecasts(client, retention=RETENTION, breaker=breaker)
        yield _Storage(repository, apply, feed, reader, count_courses, cached_pulses, outlooks, advice, issued)
    finally:
        await client.aclose()


@asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[int]:
    """Serves the API while the context is open; yields the port.

    On leaving: NOT_SERVING first, watchers are told, then calls under way get their time, then Redis is closed.
    """
    verifier = TokenVerifier(
        secret=settings.secret(),
        algorithm=settings.jwt_algorithm,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        now=time.time,
    )
    rules = settings.scoring_rules()
    terms = _forecast_terms(settings)
    forecaster = WatchedForecaster(
        forecaster_of(settings), PersistenceForecaster(), interval_level=terms.interval_level
    )
    async with AsyncExitStack() as stack:
        breakers = {"redis": _breaker(settings, StorageUnavailable)}
        storage = await stack.enter_async_context(_storage(settings, breakers["redis"]))
        request_log = None
        if settings.kafka_bootstrap_servers:
            breakers["kafka"] = _breaker(settings, BrokerUnavailable)
            request_log = KafkaRequestLog(
                kafka_access(settings), timeout=settings.kafka_timeout, breaker=breakers["kafka"]
            )
            stack.push_async_callback(asyncio.to_thread, request_log.close)
        else:
            log.warning("no kafka is set: events are applied, but no results are published")
        observe_breakers(breakers)
        observe_forecasts(forecaster)
        accept = AcceptEvents(storage.apply, request_log)
        servicer = MasteryServicer(
            read=ReadMastery(storage.reader, storage.repository),
            calculate=CalculateMastery(
                accept, storage.repository, rules=rules, log_retention=RETENTION.event_log, clock=utc_now
            ),
            accept=accept,
            watch=WatchMastery(storage.feed, storage.repository),
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
        servicers: dict[ServiceDescriptor, object] = {
            MASTERY_SERVICE: servicer,
            PREDICTION_SERVICE: PredictionServicer(predict),
            RECOMMENDATION_SERVICE: RecommendationServicer(recommend),
        }
        health = Health(
            services=[service.full_name for service in servicers],
            check=storage.repository.ping,
            interval=HEALTH_INTERVAL,
        )
        server = build_server(
            terms=_terms(settings),
            pipeline=CallPipeline(verifier, default_timeout=settings.grpc_default_timeout),
            servicers=servicers,
            health=health,
            with_reflection=settings.grpc_reflection,
        )
        port = _bind(server, settings.grpc_host, settings.grpc_port, "GRPC_PORT", shared=settings.grpc_workers > 1)
        await stack.enter_async_context(
            beside(storage.feed.run(), storage.count_courses.run(), verify.run(), health.run())
        )
        await server.start()
        stack.push_async_callback(server.stop, settings.grpc_drain_timeout)
        stack.callback(storage.feed.close)
        stack.push_async_callback(health.shut_down)
        log.info("serving", port=port)
        yield port


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[int]:
    """Ingests while the context is open; yields the port of its health service."""
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(_storage(settings, None))
        worker = IngestWorker(
            kafka_access(settings),
            storage.apply,
            group_id=settings.ingest_group,
            transactional=settings.kafka_transactions,
            batch_size=settings.ingest_batch_size,
            dead_letter_limit=DeadLetterLimit(
                in_a_row=settings.ingest_dead_letters_in_a_row,
                share=settings.ingest_dead_letter_share,
                window=settings.ingest_dead_letter_window,
            ),
            clock=utc_now,
        )

        async def check() -> None:
            await storage.repository.ping()
            await worker.check()

        health = Health(services=[], check=check, interval=HEALTH_INTERVAL)
        server = health_server(health, terms=_terms(settings))
        port = _bind(server, settings.grpc_host, settings.ingest_health_port, "INGEST_HEALTH_PORT", shared=False)
        await stack.enter_async_context(beside(storage.count_courses.run(), health.run()))
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        running = asyncio.create_task(worker.run())
        stack.push_async_callback(asyncio.wait_for, running, settings.grpc_drain_timeout)
        stack.callback(worker.stop)
        stack.push_async_callback(health.shut_down)
        log.info("ingesting", group=settings.ingest_group, health_port=port)
        yield port


async def until_signalled() -> None:
    """Returns on SIGTERM or SIGINT."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    await signalled.wait()
    log.info("stopping")


async def serve(settings: Settings) -> None:
    """Serves the API, and the metrics of it, until signalled."""
    _check_port(settings.grpc_host, settings.metrics_port, "METRICS_PORT")
    with served_metrics(settings.grpc_host, settings.metrics_port):
        async with running_server(settings):
            await until_signalled()


async def ingest(settings: Settings) -> None:
    """Ingests until signalled."""
    async with running_worker(settings):
        await until_signalled()


@asynccontextmanager
async def beside(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs coroutines beside the context's body; one that fails takes the body down with it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield
        finally:
            # Again and again: a cancellation that meets a reply of the storage can be lost in the driver.
            while pending := [task for task in tasks if not task.done()]:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=1.0)


def check_port(settings: Settings) -> None:
    """Raises SettingsError if somebody else listens on the server's port."""
    _check_port(settings.grpc_host, settings.grpc_port, "GRPC_PORT")


def _bind(server: grpc.aio.Server, host: str, port: int, setting: str, *, shared: bool) -> int:
    if not shared:
        _check_port(host, port, setting)
    return server.add_insecure_port(f"{host}:{port}")


def _check_port(host: str, port: int, setting: str) -> None:
    # Asked here, because gRPC has no more to say than that it failed, and logs that in words of its own.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"{PREFIX}{setting}: cannot listen on {host}:{port}: {reason}") from None


def _breaker(settings: Settings, unavailable: type[Unavailable]) -> CircuitBreaker:
    terms = BreakerTerms(failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds)
    return CircuitBreaker(unavailable, terms=terms, timer=time.monotonic)


def _forecast_terms(settings: Settings) -> ForecastTerms:
    return ForecastTerms(
        interval_level=settings.forecast_interval_level, intervention_threshold=settings.intervention_threshold
    )


def _terms(settings: Settings) -> ServerTerms:
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
