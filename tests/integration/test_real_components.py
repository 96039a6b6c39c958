"""The components that the other tests stand on behave as those tests take for granted."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import redis.asyncio
from confluent_kafka import Consumer, Message, Producer

from tests.real.kafka_brokers import KafkaBroker, MasteryTopics, mock_kafka
from tests.real.redis_servers import RedisServer, RedisServerCluster, standalone


async def test_a_standalone_server_returns_what_was_set(redis_url: str) -> None:
    async with redis.asyncio.from_url(redis_url, decode_responses=True) as client:
        await client.set("student:{s1}:name", "Ada")
        assert await client.get("student:{s1}:name") == "Ada"


async def test_every_test_finds_the_standalone_server_empty(redis_url: str) -> None:
    async with redis.asyncio.from_url(redis_url) as client:
        assert await client.dbsize() == 0


def test_an_append_only_server_keeps_its_data_when_killed_and_restarted(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("kept", "yes")
    redis_server.kill()
    assert not redis_server.running
    redis_server.restart()
    with redis_server.client() as client:
        assert client.get("kept") == "yes"


def test_a_server_without_append_only_file_forgets_when_restarted() -> None:
    with standalone() as server, server.client() as client:
        client.set("kept", "no")
        server.restart()
        assert client.dbsize() == 0


async def test_a_paused_server_answers_only_after_it_is_resumed(redis_server: RedisServer, redis_url: str) -> None:
    async with redis.asyncio.from_url(redis_url, socket_timeout=0.2, retry=None) as client:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            await client.ping()
        redis_server.resume()
        assert await client.ping()


async def test_a_cluster_spreads_keys_over_all_its_nodes(redis_cluster: RedisServerCluster) -> None:
    async with redis.asyncio.RedisCluster.from_url(redis_cluster.url) as client:
        for number in range(100):
            await client.set(f"student:{{s{number}}}:name", "x")
    held = []
    for node in redis_cluster.nodes:
        with node.client() as client_of_node:
            held.append(client_of_node.dbsize())
    assert sum(held) == 100
    assert all(held)


async def test_a_script_in_a_cluster_may_touch_all_keys_of_one_hash_tag(
    redis_cluster: RedisServerCluster,
) -> None:
    async with redis.asyncio.RedisCluster.from_url(redis_cluster.url, decode_responses=True) as client:
        source = "redis.call('SET', KEYS[1], ARGV[1]); redis.call('SET', KEYS[2], ARGV[1]); return 2"
        for student in ("s1", "s2", "s3", "s4"):
            keys = [f"student:{{{student}}}:name", f"processed:{{{student}}}:e1"]
            assert await client.eval(source, 2, *keys, "both") == 2
            assert [await client.get(key) for key in keys] == ["both", "both"]


def test_records_are_read_back_in_order_by_key(kafka_broker: KafkaBroker, topics: MasteryTopics) -> None:
    sent = [f"event {number}".encode() for number in range(10)]
    _produce(kafka_broker, topics.requests.name, sent)
    assert _consume(kafka_broker, topics.requests.name, len(sent)) == sent


def test_the_topics_have_the_partitions_of_the_design(kafka_broker: KafkaBroker, topics: MasteryTopics) -> None:
    if not kafka_broker.isolation:
        pytest.skip("the embedded broker decides the partitions itself")
    with _producer(kafka_broker) as producer:
        known = producer.list_topics(timeout=10).topics
    assert [len(known[topic.name].partitions) for topic in topics.all] == [6, 6, 3]


def test_a_read_committed_reader_never_sees_an_aborted_record(
    kafka_broker: KafkaBroker, topics: MasteryTopics
) -> None:
    if not kafka_broker.isolation:
        pytest.skip(f"{kafka_broker.kind} does not isolate transactions")
    with _producer(kafka_broker, {"transactional.id": uuid.uuid4().hex}) as producer:
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topics.results.name, b"aborted", key=b"s1")
        producer.flush(10)
        producer.abort_transaction(30)
        producer.begin_transaction()
        producer.produce(topics.results.name, b"committed", key=b"s1")
        producer.commit_transaction(30)
    assert _consume(kafka_broker, topics.results.name, 1) == [b"committed"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_records_outlast_the_broker(kafka_broker: KafkaBroker, topics: MasteryTopics, end: str) -> None:
    if not kafka_broker.restartable:
        pytest.skip(f"{kafka_broker.kind} cannot be restarted")
    _produce(kafka_broker, topics.requests.name, [b"kept"])
    getattr(kafka_broker, end)()
    kafka_broker.restart()
    assert _consume(kafka_broker, topics.requests.name, 1) == [b"kept"]


def test_the_embedded_broker_delivers_too() -> None:
    with mock_kafka() as broker:
        topics = MasteryTopics()
        broker.create_topics(*topics.all)
        _produce(broker, topics.requests.name, [b"event"])
        assert _consume(broker, topics.requests.name, 1) == [b"event"]


@contextmanager
def _producer(broker: KafkaBroker, settings: dict[str, str] | None = None) -> Iterator[Producer]:
    with Producer({"bootstrap.servers": broker.bootstrap_servers, **(settings or {})}) as producer:
        yield producer


def _produce(broker: KafkaBroker, topic: str, values: list[bytes]) -> None:
    with _producer(broker) as producer:
        for value in values:
            producer.produce(topic, value, key=b"s1")
        assert producer.flush(10) == 0


def _consume(broker: KafkaBroker, topic: str, count: int) -> list[bytes | None]:
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "group.id": uuid.uuid4().hex,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
    messages: list[Message] = []
    with closing(Consumer(settings)) as consumer:
        consumer.subscribe([topic])
        while len(messages) < count:
            polled = consumer.poll(20)
            assert polled is not None, f"only {len(messages)} of {count} records came"
            assert polled.error() is None
            messages.append(polled)
    return [message.value() for message in messages]
