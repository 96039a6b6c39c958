"""The composition root: builds the server and the worker from settings, starts them, and stops them in reverse."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import structlog

from mastery_grpc.assembly import (
    breaker_of,
    certificates_of,
    kafka_access,
    opened_storage,
    rate_limiter_of,
    server_terms,
    services_of,
    signing_keys_of,
    utc_now,
)
from mastery_grpc.domain.errors import BrokerUnavailable, StorageUnavailable
from mastery_grpc.ingest.dead_letters import DeadLetterLimit
from mastery_grpc.ingest.request_log import KafkaRequestLog
from mastery_grpc.ingest.worker import IngestWorker
from mastery_grpc.rpc.authentication import TokenVerifier
from mastery_grpc.rpc.health import Health
from mastery_grpc.rpc.pipeline import CallPipeline
from mastery_grpc.rpc.server import build_server, health_server
from mastery_grpc.settings import PREFIX, Settings, SettingsError
from mastery_grpc.telemetry.process import ProcessTelemetry, Sending, running_telemetry
from mastery_grpc.telemetry.states import (
    observe_breakers,
    observe_caches,
    observe_forecasts,
    observe_lag,
    observe_outcomes,
    observe_refusals,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    import grpc

    from mastery_grpc.rpc.tls import ServerCertificates


HEALTH_INTERVAL = 1.0
CHUNK_DRAIN_SECONDS = 3.0
"""How long chunks of batches under way may take when the server stops; another process takes up what is left."""


log = structlog.get_logger(__name__)


@asynccontextmanager
async def running_server(settings: Settings, telemetry: ProcessTelemetry | None = None) -> AsyncIterator[int]:
    """Serves the API while the context is open; yields the port.

    On leaving: NOT_SERVING first, watchers are told, then calls under way get their time, then Redis is closed.
    """
    telemetry = telemetry or ProcessTelemetry()
    certificates, keys = certificates_of(settings), await signing_keys_of(settings)
    verifier = TokenVerifier(
        keys, issuer=settings.jwt_issuer or None, audience=settings.jwt_audience or None, now=time.time
    )
    if settings.jwt_jwks and not settings.jwt_audience:
        log.warning("no audience is set: whatever else the issuer issues tokens for, they are taken here too")
    async with AsyncExitStack() as stack:
        breakers = {"redis": breaker_of(settings, StorageUnavailable)}
        storage = await stack.enter_async_context(opened_storage(settings, breakers["redis"], telemetry.commands))
        request_log = None
        if settings.kafka_bootstrap_servers:
            breakers["kafka"] = breaker_of(settings, BrokerUnavailable)
            request_log = KafkaRequestLog(
                kafka_access(settings),
                timeout=settings.kafka_timeout,
                breaker=breakers["kafka"],
                observer=telemetry.kafka.producer(settings.kafka_requests_topic),
            )
            stack.push_async_callback(asyncio.to_thread, request_log.close)
        else:
            log.warning("no kafka is set: events are applied, but no results are published")
        services = services_of(settings, storage, request_log, telemetry.events.of_door("grpc"))
        if not settings.audit_key:
            log.warning("no audit key is set: with another token secret, the audit log is not authentic any more")
        storage.feed.on_erased(services.audit.drop)
        terms = server_terms(settings)
        limiter = rate_limiter_of(settings, storage.quotas)
        observe_breakers(telemetry.instruments, breakers)
        observe_forecasts(telemetry.instruments, services.forecaster)
        observe_outcomes(telemetry.instruments, services.predict.outcomes)
        observe_refusals(telemetry.instruments, limiter.refusals)
        observe_caches(
            telemetry.instruments,
            {
                ("mastery", "l1"): storage.reader.l1,
                ("mastery", "l2"): storage.reader.l2,
                ("course_pulse", "l1"): storage.course_pulses.l1,
            },
        )

        async def check() -> None:
            keys.check()
            await storage.repository.ping()

        health = Health(
            services=[service.full_name for service in services.servicers],
            check=check,
            interval=HEALTH_INTERVAL,
        )
        server = build_server(
            terms=terms,
            pipeline=CallPipeline(
                verifier,
                limiter=limiter,
                audit=services.audit,
                clock=utc_now,
                default_timeout=settings.grpc_default_timeout,
                slow_reader_timeout=settings.grpc_slow_reader_timeout,
                observer=telemetry.calls,
            ),
            servicers=services.servicers,
            health=health,
            with_reflection=settings.grpc_reflection,
            observer=telemetry.calls,
        )
        port = _bind(
            server,
            settings.grpc_host,
            settings.grpc_port,
            "GRPC_PORT",
            shared=terms.shares_port,
            certificates=certificates,
        )
        stack.push_async_callback(services.audit.close)
        await stack.enter_async_context(
            beside(
                storage.feed.run(),
                storage.batch_feed.run(),
                services.work_batches.run(),
                storage.count_courses.run(),
                services.verify.run(),
                services.audit.run(),
                services.forget.run(),
                health.run(),
                keys.run(),
                limiter.run(),
            )
        )
        probed: dict[str, int] = {}
        if certificates is not None:
            plain = health_server(health, terms=terms)
            probed["health_port"] = _bind(
                plain, settings.grpc_host, settings.grpc_health_port, "GRPC_HEALTH_PORT", shared=terms.shares_port
            )
            await plain.start()
            stack.push_async_callback(plain.stop, 1.0)
        await server.start()
        stack.push_async_callback(server.stop, settings.grpc_drain_timeout)
        stack.push_async_callback(services.work_batches.stop, CHUNK_DRAIN_SECONDS)
        stack.callback(storage.feed.close)
        stack.callback(storage.batch_feed.close)
        stack.push_async_callback(health.shut_down)
        log.info("serving", port=port, tls=certificates is not None, **probed)
        yield port


@asynccontextmanager
async def running_worker(settings: Settings, telemetry: ProcessTelemetry | None = None) -> AsyncIterator[int]:
    """Ingests while the context is open; yields the port of its health service."""
    telemetry = telemetry or ProcessTelemetry()
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(opened_storage(settings, None, telemetry.commands))
        worker = IngestWorker(
            kafka_access(settings),
            storage.apply,
            storage.records,
            group_id=settings.ingest_group,
            transactional=settings.kafka_transactions,
            batch_size=settings.ingest_batch_size,
            dead_letter_limit=DeadLetterLimit(
                in_a_row=settings.ingest_dead_letters_in_a_row,
                share=settings.ingest_dead_letter_share,
                window=settings.ingest_dead_letter_window,
            ),
            clock=utc_now,
            observer=telemetry.kafka.consumer(settings.kafka_requests_topic, settings.ingest_group),
            events=telemetry.events.of_door("kafka"),
        )
        observe_lag(telemetry.instruments, settings.kafka_requests_topic, settings.ingest_group, worker.lags)

        async def check() -> None:
            await storage.repository.ping()
            await worker.check()

        health = Health(services=[], check=check, interval=HEALTH_INTERVAL)
        server = health_server(health, terms=server_terms(settings))
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
    with told_of("server", settings) as (telemetry, _):
        async with running_server(settings, telemetry):
            await until_signalled()


async def ingest(settings: Settings) -> None:
    """Ingests, and serves the metrics of it, until signalled."""
    with told_of("worker", settings) as (telemetry, _):
        async with running_worker(settings, telemetry):
            await until_signalled()


@contextmanager
def told_of(role: str, settings: Settings) -> Iterator[tuple[ProcessTelemetry, int]]:
    """Shows and sends the telemetry of this process while the context is open; yields it and the port of the
    metrics."""
    sending = Sending(
        metrics=settings.sends_metrics(),
        traces=settings.sends_traces(),
        sampler_is_set=bool(settings.otel_traces_sampler),
    )
    _check_port(settings.grpc_host, settings.metrics_port, "METRICS_PORT")
    with running_telemetry(role, sending, host=settings.grpc_host, port=settings.metrics_port) as told:
        yield told


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


def check_ports(settings: Settings) -> None:
    """Raises SettingsError if somebody else listens on a port that the server's processes share, or will take."""
    _check_port(settings.grpc_host, settings.grpc_port, "GRPC_PORT")
    if settings.tls_cert:
        _check_port(settings.grpc_host, settings.grpc_health_port, "GRPC_HEALTH_PORT")
    for index in range(settings.grpc_workers):
        _check_port(settings.grpc_host, metrics_port_of(settings, index), "METRICS_PORT")


def metrics_port_of(settings: Settings, index: int) -> int:
    """Returns where a server process shows its metrics: each on a port of its own, from the one that is set on."""
    return settings.metrics_port and settings.metrics_port + index


def _bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    setting: str,
    *,
    shared: bool,
    certificates: ServerCertificates | None = None,
) -> int:
    if not shared:
        _check_port(host, port, setting)
    if certificates is None:
        return server.add_insecure_port(f"{host}:{port}")
    return server.add_secure_port(f"{host}:{port}", certificates.credentials())


def is_free(host: str, port: int) -> bool:
    """Returns whether nobody listens on a port."""
    try:
        _check_port(host, port, "")
    except SettingsError:
        return False
    return True


def _check_port(host: str, port: int, setting: str) -> None:
    # Asked here, because gRPC has no more to say than that it failed, and logs that in words of its own.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"{PREFIX}{setting}: cannot listen on {host}:{port}: {reason}") from None
