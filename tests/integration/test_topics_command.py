"""`mastery-grpc topics` creates what is missing, changes nothing else, and tells what is not as planned."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import admin as kafka_admin
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from tests.integration.test_server_process import environment
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.processes import free_ports

ADMIN: Any = kafka_admin
"""It declares only some of its public names."""
DAY_MILLISECONDS = timedelta(days=1) // timedelta(milliseconds=1)


@dataclass
class Operator:
    """Who calls the command, and looks at the broker with tools of his own."""

    broker: KafkaBroker
    topics: MasteryTopics

    def topics_command(self, *arguments: str, **given: str) -> tuple[int, list[str]]:
        told = subprocess.run(
            [sys.executable, "-m", "mastery_grpc", "topics", *arguments],
            env=environment(
                "redis://127.0.0.1:1/0",
                0,
                MASTERY_KAFKA_BOOTSTRAP_SERVERS=self.broker.bootstrap_servers,
                MASTERY_KAFKA_REQUESTS_TOPIC=self.topics.requests.name,
                MASTERY_KAFKA_RESULTS_TOPIC=self.topics.results.name,
                MASTERY_KAFKA_DLQ_TOPIC=self.topics.dead_letters.name,
                **given,
            ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.stderr == ""
        names = {
            topic.name: word for topic, word in zip(self.topics.all, ("requests", "results", "dlq"), strict=True)
        }
        lines = [line.partition(": ") for line in told.stdout.splitlines()]
        return told.returncode, [f"{names[name]}: {state}" for name, _, state in lines]

    def partitions(self) -> list[int]:
        with self._admin() as admin:
            known = admin.list_topics(timeout=10).topics
        return [len(known[topic.name].partitions) for topic in self.topics.all if topic.name in known]

    def config(self, name: str) -> dict[str, str]:
        resource = ADMIN.ConfigResource(ADMIN.ResourceType.TOPIC, name)
        with self._admin() as admin:
            answer = admin.describe_configs([resource])[resource].result()
        return {name: str(entry.value) for name, entry in answer.items()}

    def set_config(self, topic: str, name: str, value: str) -> None:
        change = ADMIN.ConfigEntry(name, value, incremental_operation=ADMIN.AlterConfigOpType.SET)
        resource = ADMIN.ConfigResource(ADMIN.ResourceType.TOPIC, topic, incremental_configs=[change])
        with self._admin() as admin:
            admin.incremental_alter_configs([resource])[resource].result()

    def add_partitions(self, topic: str, total: int) -> None:
        with self._admin() as admin:
            admin.create_partitions([NewPartitions(topic, total)])[topic].result()

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.broker.bootstrap_servers, "log_level": 0})


@pytest.fixture
def operator(kafka_broker: KafkaBroker) -> Iterator[Operator]:
    """The topics, under names of this test's own, are not there yet."""
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} knows no CreateTopics")
    kafka_broker.revive()
    topics = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
    yield Operator(kafka_broker, topics)
    kafka_broker.delete_topics(*topics.all)


def test_missing_topics_are_created_as_designed_and_once(operator: Operator) -> None:
    assert operator.topics_command() == (0, ["requests: created", "results: created", "dlq: created"])
    assert operator.partitions() == [6, 6, 3]
    for topic in operator.topics.all:
        config = operator.config(topic.name)
        assert config["retention.ms"] == str(topic.retention // timedelta(milliseconds=1))
        assert config["cleanup.policy"] == "delete"

    assert operator.topics_command() == (0, ["requests: as planned", "results: as planned", "dlq: as planned"])
    assert operator.topics_command("--check")[0] == 0


def test_a_check_creates_nothing_and_fails_while_topics_are_missing(operator: Operator) -> None:
    told = operator.topics_command("--check")
    partitions = operator.partitions()
    operator.topics_command()  # so that there is something to be cleaned up

    assert told == (1, ["requests: missing", "results: missing", "dlq: missing"])
    assert partitions == []


def test_partitions_and_replication_factor_are_settings(operator: Operator) -> None:
    settings = {
        "MASTERY_KAFKA_PARTITIONS": "2",
        "MASTERY_KAFKA_DLQ_PARTITIONS": "1",
        "MASTERY_KAFKA_REPLICATION_FACTOR": "1",
    }
    assert operator.topics_command(**settings)[0] == 0
    assert operator.partitions() == [2, 2, 1]
    assert operator.topics_command("--check", **settings)[0] == 0


def test_what_is_not_as_planned_is_told_and_left_alone(operator: Operator) -> None:
    operator.topics_command()
    requests, results, dead_letters = operator.topics.all
    operator.set_config(requests.name, "retention.ms", str(7 * DAY_MILLISECONDS))
    operator.set_config(requests.name, "max.message.bytes", "1048588")
    operator.set_config(results.name, "cleanup.policy", "compact")
    operator.add_partitions(dead_letters.name, 5)
    too_long = f"retention.ms is {7 * DAY_MILLISECONDS}, not {DAY_MILLISECONDS}"
    expected = [
        f"requests: {too_long}; max.message.bytes is 1048588, not 2097152",
        "results: cleanup.policy is compact, not delete",
        "dlq: partitions is 5, not 3",
    ]

    assert operator.topics_command() == (0, expected)
    assert operator.topics_command("--check") == (1, expected)
    assert operator.partitions() == [6, 6, 5]
    assert operator.config(results.name)["cleanup.policy"] == "compact"


def test_topics_are_never_shrunk_nor_grown(operator: Operator) -> None:
    operator.topics_command()
    for planned in ("4", "9"):
        told = operator.topics_command(MASTERY_KAFKA_PARTITIONS=planned)
        line = f"partitions is 6, not {planned}"
        assert told == (0, [f"requests: {line}", f"results: {line}", "dlq: as planned"])
    assert operator.partitions() == [6, 6, 3]


def test_another_replication_factor_than_the_one_asked_for_is_told(operator: Operator) -> None:
    operator.topics_command()
    code, told = operator.topics_command("--check", MASTERY_KAFKA_REPLICATION_FACTOR="3")
    assert code == 1
    drifts = "replication factor is 1, not 3; min.insync.replicas is 1, not 2"
    assert told == [f"{name}: {drifts}" for name in ("requests", "results", "dlq")]


def test_brokers_that_are_away_end_the_command_with_one_line() -> None:
    [port] = free_ports(1)
    ended = subprocess.run(
        [sys.executable, "-m", "mastery_grpc", "topics"],
        env=environment("redis://127.0.0.1:1/0", 0, MASTERY_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{port}"),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 1
    assert [line for line in ended.stderr.splitlines() if not line.startswith("{")] == [
        "mastery-grpc: kafka: Failed to get metadata: Local: Broker transport failure"
    ]
