"""The real components, shared by a test run and started when a test first asks for one."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext

import pytest

from tests.real.kafka_brokers import KafkaBroker, MasteryTopics, kafka, planned_kafka
from tests.real.redis_servers import RedisServer, RedisServerCluster, cluster, redis_software, standalone

KAFKA_IN_USE = pytest.StashKey[str]()


def pytest_report_header() -> list[str]:
    return [f"redis: {redis_software()}", f"kafka: {planned_kafka()}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if kind := config.stash.get(KAFKA_IN_USE, None):
        terminalreporter.line(f"kafka used: {kind}")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the run, append-only so that any test may kill and restart it."""
    with standalone(append_only=True) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The server's address; it runs, and it is empty."""
    redis_server.revive()
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def redis_servers_in_cluster() -> Iterator[RedisServerCluster]:
    with cluster() as servers:
        yield servers


@pytest.fixture
def redis_cluster(redis_servers_in_cluster: RedisServerCluster) -> RedisServerCluster:
    """Three masters; all run, and all are empty."""
    redis_servers_in_cluster.revive()
    redis_servers_in_cluster.flush()
    return redis_servers_in_cluster


@pytest.fixture(scope="session")
def kafka_broker(pytestconfig: pytest.Config) -> Iterator[KafkaBroker]:
    """One broker for the run. Tests share it, so they take their topics from `topics`."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        with capture.global_and_fixture_disabled() if capture else nullcontext():  # a first fetch takes long
            broker = stack.enter_context(kafka())
        pytestconfig.stash[KAFKA_IN_USE] = broker.kind
        yield broker


@pytest.fixture
def topics(kafka_broker: KafkaBroker) -> Iterator[MasteryTopics]:
    """The product's three topics, under names of this test's own."""
    kafka_broker.revive()
    own = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
    kafka_broker.create_topics(*own.all)
    yield own
    kafka_broker.revive()
    kafka_broker.delete_topics(*own.all)
