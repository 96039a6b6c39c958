"""Real Kafka-protocol brokers on loopback: Apache Kafka where one can be had, else librdkafka's own."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.real.kafka_installation import (
    NODE_ID,
    KafkaInstallation,
    KafkaUnavailableError,
    fetch,
    planned_installation,
)
from tests.real.kafka_node import Node, server_properties
from tests.real.processes import ServerProcess, free_ports, scratch_directory

ADDRESS_VARIABLE = "MASTERY_TEST_KAFKA"
MOCK_KIND = "embedded mock broker (librdkafka)"


@dataclass(frozen=True)
class Topic:
    name: str
    partitions: int
    retention: timedelta


@dataclass(frozen=True)
class MasteryTopics:
    """The product's topics; under other names where tests share a broker."""

    requests: Topic = Topic("mastery.requests", 6, timedelta(days=1))
    results: Topic = Topic("mastery.results", 6, timedelta(days=2))
    dead_letters: Topic = Topic("mastery.dlq", 3, timedelta(days=30))

    def with_suffix(self, suffix: str) -> "MasteryTopics":
        return MasteryTopics(*(replace(topic, name=topic.name + suffix) for topic in self.all))

    @property
    def all(self) -> tuple[Topic, ...]:
        return (self.requests, self.results, self.dead_letters)


class KafkaBroker(Protocol):
    """What a test may ask of any broker."""

    @property
    def kind(self) -> str: ...

    @property
    def isolation(self) -> bool:
        """Whether a read-committed reader is spared the records of aborted transactions."""

    @property
    def restartable(self) -> bool:
        """Whether stop, kill and restart work, and records outlast them."""

    @property
    def bootstrap_servers(self) -> str: ...

    def create_topics(self, *topics: Topic) -> None: ...

    def delete_topics(self, *topics: Topic) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...

    def revive(self) -> None:
        """Undo whatever an earlier test did to it."""


class Administered:
    """Topics through the broker's own admin API."""

    bootstrap_servers: str
    replication_factor = 1

    def create_topics(self, *topics: Topic) -> None:
        wanted = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=self.replication_factor,
                config={"retention.ms": str(topic.retention // timedelta(milliseconds=1))},
            )
            for topic in topics
        ]
        with self._admin() as admin:
            for created in admin.create_topics(wanted).values():
                created.result()
            # Created is what the controller knows; the broker's own metadata follow a moment later.
            names, deadline = {topic.name for topic in topics}, time.monotonic() + 10
            while not names <= admin.list_topics(timeout=10).topics.keys():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no sign of the topics {names}")
                time.sleep(0.01)

    def delete_topics(self, *topics: Topic) -> None:
        with self._admin() as admin:
            for deleted in admin.delete_topics([topic.name for topic in topics]).values():
                deleted.result()

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


class ApacheKafka(Administered):
    """A broker and its controller in one JVM; its port and its records outlast a restart.

    The directory holds its formatted storage; the quorum is all nodes, its own among them. Options of the JVM
    come after the usual ones, and win.
    """

    isolation = True
    restartable = True

    def __init__(
        self,
        installation: KafkaInstallation,
        directory: Path,
        node: Node,
        quorum: Sequence[Node],
        jvm_options: Sequence[str] = (),
    ) -> None:
        self.kind = apache_kind(installation)
        self._port = node.port
        self.bootstrap_servers = f"127.0.0.1:{node.port}"
        properties = directory / "server.properties"
        properties.write_text(server_properties(directory / "storage", node, quorum))
        command = installation.command(*jvm_options, "kafka.Kafka", str(properties))
        self._process = ServerProcess(command, directory)

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self, patience: float = 60.0) -> None:
        self.launch()
        self.until_ready(patience)

    def launch(self) -> None:
        """Start it, and do not wait for it."""
        self._process.start()

    def until_ready(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"no broker at {self.bootstrap_servers}: {self._process.last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        """End it as a power cut would: by SIGKILL."""
        self._process.kill()

    def restart(self) -> None:
        """Start it again on the same port and storage, whether it still runs or not."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Keep its connections open and answer nothing, as a stalled host does."""
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.signal(signal.SIGCONT)

    def revive(self) -> None:
        if self.running:
            self.resume()
        else:
            self.start()

    def _ready(self) -> bool:
        with socket.socket() as probe:  # first: the admin client would log each refusal, and back off
            if probe.connect_ex(("127.0.0.1", self._port)) != 0:
                return False
        try:
            with self._admin() as admin:
                return bool(admin.list_topics(timeout=5).brokers)
        except KafkaException:
            return False


class MockKafka:
    """librdkafka's broker inside this process: other processes can connect; it forgets everything at the end.

    It knows no CreateTopics: a topic appears when first asked for, with 4 partitions. It accepts
    transactions, but what they abort stays visible.
    """

    kind = MOCK_KIND
    isolation = False
    restartable = False

    def __init__(self) -> None:
        self._host = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        brokers = self._host.list_topics(timeout=10).brokers.values()
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def create_topics(self, *topics: Topic) -> None:
        for topic in topics:
            self._host.list_topics(topic.name, timeout=10)

    def delete_topics(self, *topics: Topic) -> None:
        """Nothing: it cannot, and memory is all they take."""

    def stop(self) -> None:
        raise NotImplementedError(f"the {self.kind} lives as long as the test run")

    kill = stop
    restart = stop

    def revive(self) -> None:
        """Nothing: it never stopped."""


class ExternalKafka(Administered):
    """A broker that somebody else runs."""

    isolation = True
    restartable = False

    def __init__(self, address: str) -> None:
        self.kind = _external_kind(address)
        self.bootstrap_servers = address

    def stop(self) -> None:
        raise NotImplementedError(f"the {self.kind} is not ours to stop")

    kill = stop
    restart = stop

    def revive(self) -> None:
        """Nothing: it is in somebody else's care."""


@contextmanager
def apache_kafka() -> Iterator[ApacheKafka]:
    """One node of Apache Kafka; raises KafkaUnavailableError where it cannot run."""
    installation = fetch()
    with scratch_directory("mastery-kafka-") as directory:
        installation.lay_storage(directory / "storage")
        node = Node(NODE_ID, *free_ports(2))
        broker = ApacheKafka(installation, directory, node, [node])
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()  # its records go away with it: no need to ask politely


@contextmanager
def mock_kafka() -> Iterator[MockKafka]:
    """librdkafka's embedded broker, up at once."""
    yield MockKafka()


@contextmanager
def kafka() -> Iterator[KafkaBroker]:
    """The best broker to be had: the one named in the environment, Apache Kafka, or the embedded one."""
    if address := os.environ.get(ADDRESS_VARIABLE):
        yield ExternalKafka(address)
        return
    with ExitStack() as stack:
        broker: KafkaBroker
        try:
            broker = stack.enter_context(apache_kafka())
        except KafkaUnavailableError as reason:
            sys.stderr.write(f"No Apache Kafka: {reason}. Tests use the {MOCK_KIND}.\n")
            broker = stack.enter_context(mock_kafka())
        yield broker


def planned_kafka() -> str:
    """What `kafka()` will try to start, without starting or fetching anything."""
    if address := os.environ.get(ADDRESS_VARIABLE):
        return _external_kind(address)
    try:
        installation = planned_installation()
    except KafkaUnavailableError as reason:
        return f"{MOCK_KIND}; no Apache Kafka: {reason}"
    return apache_kind(installation) + ("" if installation.present else ", to be fetched by Maven first")


def apache_kind(installation: KafkaInstallation) -> str:
    return f"Apache Kafka {installation.version} (JVM)"


def _external_kind(address: str) -> str:
    return f"broker at {address} ({ADDRESS_VARIABLE})"
