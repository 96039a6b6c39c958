"""Where a scenario takes place: Kafka, Redis, topics and a group of its own, its workers and its traffic."""

import json
import random
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from tests.chaos.dying_worker import Step
from tests.chaos.ledger import Ledger
from tests.chaos.traffic import EventJson, encoded
from tests.real.kafka_brokers import ApacheKafka, MasteryTopics
from tests.real.kafka_cluster import ApacheKafkaCluster
from tests.real.processes import ServerProcess
from tests.real.redis_servers import RedisServer
from tests.real_learners import REPOSITORY

SESSION_TIMEOUT_MS = 2000
"""Instead of 45 s: how long the group waits for a member that was killed. Rounds last as long."""
TRANSACTION_TIMEOUT_MS = 3000
"""Instead of 30 s: how long the broker waits for a producer that was killed within a transaction."""
KAFKA_PROPERTIES = {
    "session.timeout.ms": SESSION_TIMEOUT_MS,
    "heartbeat.interval.ms": 400,
    "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
}
PATIENCE = 180.0


class NotCaughtUp(Exception):
    """The group has not done what it was sent, long after the fault was over."""


@dataclass(frozen=True)
class Fate:
    """Where a worker is to end once it is armed."""

    step: Step
    nth: int = 1
    is_stop: bool = False

    @property
    def arguments(self) -> list[str]:
        return ["--step", self.step, "--nth", str(self.nth), *(["--stop"] if self.is_stop else [])]


class Worker(ServerProcess):
    """A worker process of the product; with a fate, once it is armed."""

    def __init__(self, settings: Mapping[str, str], directory: Path, fate: Fate | None) -> None:
        directory.mkdir()
        self.fate = fate
        given = [f"MASTERY_{name}={value}" for name, value in settings.items()]
        program = [sys.executable, "-m", "tests.chaos.dying_worker", *(fate.arguments if fate else [])]
        super().__init__(["env", f"PYTHONPATH={REPOSITORY}", *given, *program], directory)

    @property
    def is_stopped(self) -> bool:
        """Whether it has met a fate that stops it."""
        assert self._process is not None
        state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def until_ingesting(self) -> None:
        deadline = time.monotonic() + 60
        while '"ingesting"' not in self.log.read_text():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"no worker: {self.last_words()}")
            time.sleep(0.02)

    def arm(self) -> None:
        self.until_ingesting()
        self.signal(signal.SIGUSR1)

    def log_count(self, text: str) -> int:
        return self.log.read_text(errors="replace").count(text)


@dataclass
class Place:
    """One deployment; leaving it ends its workers."""

    kafka: ApacheKafka | ApacheKafkaCluster
    redis: RedisServer
    directory: Path
    rng: random.Random
    settings_of_its_own: Mapping[str, str] = field(default_factory=dict)
    kafka_properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topics = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
        self.group = f"chaos{self.topics.requests.name.removeprefix('mastery.requests')}"
        self.ledger = Ledger()
        self.workers: list[Worker] = []
        self.kafka.create_topics(*self.topics.all)
        self._sent = 0
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="traffic")
        self._producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 2,
                "log_level": 0,
            }
        )
        self._watcher = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": self.group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
        self._sender.shutdown()
        self._watcher.close()

    def start_worker(self, fate: Fate | None = None) -> Worker:
        settings = {
            "REDIS_URL": self.redis.url,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KAFKA_REQUESTS_TOPIC": self.topics.requests.name,
            "KAFKA_RESULTS_TOPIC": self.topics.results.name,
            "KAFKA_DLQ_TOPIC": self.topics.dead_letters.name,
            "KAFKA_PROPERTIES": json.dumps({**KAFKA_PROPERTIES, **self.kafka_properties}),
            "INGEST_GROUP": self.group,
            "INGEST_HEALTH_PORT": "0",
            "METRICS_PORT": "0",
            "INGEST_BATCH_SIZE": "50",  # several batches a round, so that each step is met several times
            "GRPC_HOST": "127.0.0.1",
            **self.settings_of_its_own,
        }
        worker = Worker(settings, self.directory / f"worker-{len(self.workers)}", fate)
        self.workers.append(worker)
        worker.start()
        return worker

    def stream(self, events: Sequence[EventJson], seconds: float) -> Future[None]:
        """Sends the events evenly over so many seconds, in the background."""
        self.ledger.expect(events)
        return self._sender.submit(self._send, events, seconds)

    def until_caught_up(self) -> None:
        """Returns once the group has committed everything that was sent. Raises NotCaughtUp."""
        deadline = time.monotonic() + PATIENCE
        while (committed := self._committed()) < self._sent:
            if time.monotonic() > deadline:
                words = "\n".join(worker.last_words()[-1500:] for worker in self.workers if worker.running)
                raise NotCaughtUp(f"{committed} of {self._sent} after {PATIENCE:.0f} s\n{words}")
            time.sleep(0.03)

    def _send(self, events: Sequence[EventJson], seconds: float) -> None:
        start = time.monotonic()
        for index, event in enumerate(events):
            time.sleep(max(0.0, start + seconds * index / len(events) - time.monotonic()))
            self._producer.produce(self.topics.requests.name, encoded(event), key=event["student_id"])
            self._producer.poll(0)
        if self._producer.flush(PATIENCE):
            raise NotCaughtUp("the broker did not take the traffic")
        self._sent += len(events)

    def _committed(self) -> int:
        places = [
            TopicPartition(self.topics.requests.name, partition)
            for partition in range(self.topics.requests.partitions)
        ]
        try:
            return sum(max(0, place.offset) for place in self._watcher.committed(places, 5))
        except KafkaException:  # the broker is away, or a transaction is still open
            return 0
