"""The settings of a worker of a test's own, and its log."""

import pytest

from mastery_grpc.settings import Settings
from tests.integration.ingesting import Log, settings_for
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics


@pytest.fixture
def settings(kafka_broker: KafkaBroker, topics: MasteryTopics, redis_url: str) -> Settings:
    return settings_for(kafka_broker, topics, redis_url)


@pytest.fixture
def _group_can_be_rejoined(kafka_broker: KafkaBroker) -> None:
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} remembers a member that left until its session has run out")


@pytest.fixture
def log(kafka_broker: KafkaBroker, settings: Settings) -> Log:
    return Log(kafka_broker, settings)
