"""The topics, and how Kafka is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from mastery_grpc.application.retention import DEAD_LETTERS_KEPT, REQUESTS_KEPT, RESULTS_KEPT

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_RECORD_BYTES = 2 * 1024 * 1024
"""As the broker counts: of a compressed record what is left of it."""
MAX_DEAD_LETTER_BYTES = 4 * MAX_RECORD_BYTES
"""Dead letters are larger than what they were made from: by their headers, or because the producer's compression
was better than ours. One that did not fit would come again for ever, and nothing behind it."""

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


@dataclass(frozen=True, slots=True)
class _TopicPlan:
    partitions: int
    retention: timedelta
    max_bytes: int = MAX_RECORD_BYTES


def create_topics(access: KafkaAccess, *, replication_factor: int = -1, timeout: float = 30.0) -> list[str]:
    """Creates the topics that are missing and returns their names; -1 is the broker's own replication factor.

    Raises KafkaException.
    """
    topics = access.topics
    plans = {
        topics.requests: _TopicPlan(6, REQUESTS_KEPT),
        topics.results: _TopicPlan(6, RESULTS_KEPT),
        topics.dead_letters: _TopicPlan(3, DEAD_LETTERS_KEPT, MAX_DEAD_LETTER_BYTES),
    }
    wanted = [
        NewTopic(
            name,
            num_partitions=plan.partitions,
            replication_factor=replication_factor,
            config={
                "retention.ms": str(plan.retention // timedelta(milliseconds=1)),
                "max.message.bytes": str(plan.max_bytes),
            },
        )
        for name, plan in plans.items()
    ]
    # The client must outlive its answers: they are lost with it.
    with AdminClient(access.client()) as admin:
        futures: dict[str, Future[None]] = admin.create_topics(wanted, operation_timeout=timeout)
        return [name for name, future in futures.items() if _is_created(future)]


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
