"""The topics, and how Kafka is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from mastery_grpc.application.compliance.retention import DEAD_LETTERS_KEPT, REQUESTS_KEPT, RESULTS_KEPT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from confluent_kafka.admin._config import ConfigEntry
    from confluent_kafka.admin._metadata import TopicMetadata

BROKERS_OWN = -1
"""Asks the broker for its own replication factor."""
MAX_RECORD_BYTES = 2 * 1024 * 1024
"""As the broker counts: of a compressed record what is left of it."""
MAX_DEAD_LETTER_BYTES = 4 * MAX_RECORD_BYTES
"""Dead letters are larger than what they were made from: by their headers, or because the producer's compression
was better than ours. One that did not fit would come again for ever, and nothing behind it."""

REPLICAS_TO_LOSE_ONE = 3
"""With so many a broker may go while another holds all that was acknowledged, and writing goes on."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The names of the topics."""

    requests: str = "mastery.requests"
    results: str = "mastery.results"
    dead_letters: str = "mastery.dlq"


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAccess:
    """Where the brokers are and how to talk to them."""

    bootstrap_servers: str
    topics: Topics = field(default_factory=Topics)
    properties: Mapping[str, Any] = field(default_factory=dict)
    """Further librdkafka properties, for TLS and SASL."""

    def client(self, **properties: Any) -> dict[str, Any]:
        """Returns a client's configuration; dots are written as underscores: `group_id` is `group.id`."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            **self.properties,
            **{name.replace("_", "."): value for name, value in properties.items()},
            "logger": _librdkafka_log,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicTerms:
    """What an operator decides about the topics; the rest follows from what they are for."""

    partitions: int = 6
    """Of the requests and of the results."""
    dead_letter_partitions: int = 3
    replication_factor: int = 0
    """0: the broker's own."""


@dataclass(frozen=True, slots=True, eq=False)
class TopicPlan:
    """How a topic is to be; names in `config` are Kafka's."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Drift:
    """Something about a topic that is not as planned."""

    of: str
    found: str
    planned: str

    def __str__(self) -> str:
        return f"{self.of} is {self.found}, not {self.planned}"


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it was found, against its plan."""

    name: str
    exists: bool
    drifts: tuple[Drift, ...] = ()

    @property
    def is_as_planned(self) -> bool:
        return self.exists and not self.drifts


def plan_topics(topics: Topics, terms: TopicTerms) -> tuple[TopicPlan, ...]:
    """Returns how the topics are to be."""

    def plan(name: str, partitions: int, kept: timedelta, max_bytes: int) -> TopicPlan:
        config = {
            "cleanup.policy": "delete",  # compaction would drop all but a student's last event
            "retention.ms": str(kept // timedelta(milliseconds=1)),
            "max.message.bytes": str(max_bytes),
        }
        if terms.replication_factor >= REPLICAS_TO_LOSE_ONE:
            config["min.insync.replicas"] = str(REPLICAS_TO_LOSE_ONE - 1)
        return TopicPlan(name, partitions, terms.replication_factor, config)

    return (
        plan(topics.requests, terms.partitions, REQUESTS_KEPT, MAX_RECORD_BYTES),
        plan(topics.results, terms.partitions, RESULTS_KEPT, MAX_RECORD_BYTES),
        plan(topics.dead_letters, terms.dead_letter_partitions, DEAD_LETTERS_KEPT, MAX_DEAD_LETTER_BYTES),
    )


def create_topics(access: KafkaAccess, terms: TopicTerms, *, timeout: float = 30.0) -> list[str]:
    """Creates the topics that are missing and returns their names; those that exist are left as they are.

    Raises KafkaException.
    """
    wanted = [
        NewTopic(
            plan.name,
            num_partitions=plan.partitions,
            replication_factor=plan.replication_factor or BROKERS_OWN,
            config=dict(plan.config),
        )
        for plan in plan_topics(access.topics, terms)
    ]
    # The client must outlive its answers: they are lost with it.
    with AdminClient(access.client()) as admin:
        futures: dict[str, Future[None]] = admin.create_topics(wanted, operation_timeout=timeout)
        return [name for name, future in futures.items() if _is_created(future)]


def compare_topics(access: KafkaAccess, terms: TopicTerms, *, timeout: float = 30.0) -> list[TopicState]:
    """Returns how the topics are, against how they are to be; changes nothing. Raises KafkaException."""
    with AdminClient(access.client()) as admin:
        # All of them: asked for by name, a missing one would be created by brokers that do so.
        known = admin.list_topics(timeout=timeout).topics
        plans = {plan: known.get(plan.name) for plan in plan_topics(access.topics, terms)}
        resources = [ConfigResource(ResourceType.TOPIC, plan.name) for plan, found in plans.items() if found]
        answers = admin.describe_configs(resources, request_timeout=timeout) if resources else {}
        configs = {resource.name: answer.result() for resource, answer in answers.items()}
        return [
            TopicState(plan.name, exists=bool(found), drifts=tuple(_drifts(plan, found, configs) if found else ()))
            for plan, found in plans.items()
        ]


def _drifts(
    plan: TopicPlan, found: TopicMetadata, configs: Mapping[str, Mapping[str, ConfigEntry]]
) -> Iterator[Drift]:
    if len(found.partitions) != plan.partitions:
        yield Drift("partitions", str(len(found.partitions)), str(plan.partitions))
    factors = sorted({len(partition.replicas) for partition in found.partitions.values()})
    if plan.replication_factor and factors != [plan.replication_factor]:
        yield Drift("replication factor", " and ".join(map(str, factors)), str(plan.replication_factor))
    for name, planned in plan.config.items():
        if (value := configs[plan.name][name].value) != planned:
            yield Drift(name, str(value), planned)


def _is_created(future: Future[None]) -> bool:
    try:
        future.result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
        return False
    return True


class _LibrdkafkaLog:
    """Takes librdkafka's own log lines into ours."""

    def log(self, level: int, message: str, *args: Any) -> None:
        log.log(level, "librdkafka", text=message % args if args else message)


_librdkafka_log = _LibrdkafkaLog()
