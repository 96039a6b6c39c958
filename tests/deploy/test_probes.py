"""The probes of the rendered pods, asked by the real grpc-health-probe of the real processes."""

from pathlib import Path

import pytest

from tests.deploy.chart import rendered
from tests.deploy.pods import Pod, running
from tests.integration.test_tls import AUTHORITY, SERVER
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer

ALL = ("startupProbe", "livenessProbe", "readinessProbe")


def assert_only_readiness_follows_redis(pod: Pod, redis_server: RedisServer) -> None:
    pod.until_started()
    pod.until("readinessProbe", passed=True)
    assert [pod.probe(name) for name in ALL] == [True, True, True]

    redis_server.kill()
    pod.until("readinessProbe", passed=False)
    assert [pod.probe(name) for name in ALL] == [True, True, False]

    redis_server.restart()
    pod.until("readinessProbe", passed=True)
    assert [pod.probe(name) for name in ALL] == [True, True, True]


def assert_stops_in_time(pod: Pod, values: str, component: str) -> None:
    patience = rendered(values).pods[component]["spec"]["terminationGracePeriodSeconds"]
    pod.process.terminate()
    assert pod.process.wait(patience) == 0


def test_a_server_is_ready_while_redis_answers_and_alive_in_any_case(
    redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    given = {"MASTERY_REDIS_URL": redis_url, "MASTERY_KAFKA_BOOTSTRAP_SERVERS": ""}
    with running("default", "server", tmp_path, **given) as pod:
        assert_only_readiness_follows_redis(pod, redis_server)
        assert_stops_in_time(pod, "default", "server")


def test_a_server_with_tls_is_probed_where_health_is_served_without(
    redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    certificate, key = SERVER.write(tmp_path, "server")
    authorities = tmp_path / "clients.crt"
    authorities.write_bytes(AUTHORITY.certificate)
    given = {
        "MASTERY_REDIS_URL": redis_url,
        "MASTERY_KAFKA_BOOTSTRAP_SERVERS": "",
        "MASTERY_TLS_CERT": str(certificate),
        "MASTERY_TLS_KEY": str(key),
        "MASTERY_TLS_CLIENT_CA": str(authorities),
    }
    assert given.keys() <= rendered("tls").environment("server").keys()
    with running("tls", "server", tmp_path, **given) as pod:
        assert_only_readiness_follows_redis(pod, redis_server)
        assert pod.asked(50051, "") != 0


def test_a_server_without_redis_from_the_beginning_is_started_alive_and_not_ready(
    redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_server.kill()
    given = {"MASTERY_REDIS_URL": redis_url, "MASTERY_KAFKA_BOOTSTRAP_SERVERS": ""}
    with running("default", "server", tmp_path, **given) as pod:
        pod.until_started()
        assert [pod.probe(name) for name in ALL] == [True, True, False]


@pytest.mark.parametrize("values", ["default", "tls"])
def test_a_worker_is_ready_while_redis_answers_and_alive_in_any_case(
    values: str,
    redis_url: str,
    redis_server: RedisServer,
    kafka_broker: KafkaBroker,
    topics: MasteryTopics,
    tmp_path: Path,
) -> None:
    given = {
        "MASTERY_REDIS_URL": redis_url,
        "MASTERY_KAFKA_BOOTSTRAP_SERVERS": kafka_broker.bootstrap_servers,
        "MASTERY_KAFKA_REQUESTS_TOPIC": topics.requests.name,
        "MASTERY_KAFKA_RESULTS_TOPIC": topics.results.name,
        "MASTERY_KAFKA_DLQ_TOPIC": topics.dead_letters.name,
        "MASTERY_KAFKA_TRANSACTIONS": str(kafka_broker.isolation),
        "MASTERY_KAFKA_PROPERTIES": "{}",
    }
    with running(values, "worker", tmp_path, **given) as pod:
        assert_only_readiness_follows_redis(pod, redis_server)
        assert_stops_in_time(pod, values, "worker")
