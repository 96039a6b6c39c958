"""How Kafka is reached, and how its topics are laid out."""

from __future__ import annotations

from mastery_grpc.ingest.topics import KafkaAccess, Topics, TopicTerms
from mastery_grpc.settings import PREFIX, Settings, SettingsError


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
