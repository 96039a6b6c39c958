"""A backup is taken, Redis destroyed, and everything put back by the commands of docs/operations/backup.md."""

import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mastery_grpc.app import running_server, running_worker
from mastery_grpc.application.callers import Role
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.settings import Settings
from tests.builders import at, quiz, student
from tests.integration import serving
from tests.integration.ingesting import (
    Log,
    json_record,
    many_events,
    settings_for,
    to_proto,
    until_consumed,
    value_of,
)
from tests.integration.serving import Engine, connected
from tests.integration.test_erasure import erase, traces_of
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.processes import free_ports, scratch_directory
from tests.real.redis_servers import RedisServer

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "operations" / "backup.md"
PROGRAMS = Path(sys.executable).parent
APPEND_ONLY = {"appendonly": "yes", "appendfsync": "no", "save": ""}
SNAPSHOT, APPEND_ONLY_FILE = "snapshot", "append-only file"
BEFORE, SINCE, CAME_BACK, TWICE = "erased_before", "erased_since", "who_came_back", "erased_twice"
NEWCOMER = "came_and_was_erased"
# Apache Kafka's own command is in none of the jars of its broker. This one does the same by the same protocol.
GROUPS_COMMAND = """#!/usr/bin/env python3
import argparse
from datetime import datetime
from confluent_kafka import Consumer, TopicPartition

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("bootstrap-server", "group", "topic", "to-datetime"):
    parser.add_argument(f"--{name}", required=True)
for name in ("reset-offsets", "execute"):
    parser.add_argument(f"--{name}", action="store_true", required=True)
given = parser.parse_args()
consumer = Consumer({"bootstrap.servers": given.bootstrap_server, "group.id": given.group})
millis = int(datetime.strptime(given.to_datetime, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp() * 1000)
partitions = consumer.list_topics(given.topic, timeout=20).topics[given.topic].partitions
places = consumer.offsets_for_times([TopicPartition(given.topic, each, millis) for each in partitions], timeout=20)
consumer.commit(offsets=[place for place in places if place.offset >= 0], asynchronous=False)
consumer.close()
"""


def commands_under(heading: str) -> list[str]:
    """Returns the blocks of shell commands under one heading of the page."""
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


@dataclass
class Place:
    """A Redis of the test's own, whose data may be destroyed, and whoever types the commands of the page."""

    directory: Path
    port: int
    settings: Settings

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def redis(self, **directives: str) -> RedisServer:
        self.data.mkdir(exist_ok=True)
        return RedisServer(self.data, self.port, APPEND_ONLY | directives)

    def type_in(self, commands: str) -> str:
        """Runs commands as an operator would, whose topics and group have names of their own."""
        given = self.settings
        own = {
            "MASTERY_REDIS_URL": given.redis_url,
            "MASTERY_KAFKA_BOOTSTRAP_SERVERS": given.kafka_bootstrap_servers,
            "MASTERY_KAFKA_RESULTS_TOPIC": given.kafka_results_topic,
            "MASTERY_JWT_SECRET": serving.SECRET,
            "REDIS_DATA": str(self.data),
            "PATH": f"{self.directory}:{PROGRAMS}:{os.environ['PATH']}",
        }
        commands = commands.replace("--group mastery-ingest", f"--group {given.ingest_group}")
        commands = commands.replace("--topic mastery.requests", f"--topic {given.kafka_requests_topic}")
        others = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.directory,
            env=others | own,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (commands, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def place(kafka_broker: KafkaBroker, topics: MasteryTopics) -> Iterator[Place]:
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} knows no record by its time")
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed")
    with scratch_directory("mastery-backup-") as directory:
        [port] = free_ports(1)
        groups_command = directory / "kafka-consumer-groups.sh"
        groups_command.write_text(GROUPS_COMMAND)
        groups_command.chmod(0o755)
        settings = settings_for(
            kafka_broker, topics, f"redis://127.0.0.1:{port}/0", jwt_secret=serving.SECRET, grpc_port=0
        )
        yield Place(directory, port, settings)


@asynccontextmanager
async def everything_runs(settings: Settings) -> Any:
    async with running_server(settings) as port, running_worker(settings), connected(port) as engine:
        await engine.until_ready()
        yield engine


def what_happens_before() -> list[LearningEvent]:
    theirs = [
        quiz(number % 4, 4, number=1000 + 10 * index + number, time=at(number), of=student(name))
        for index, name in enumerate([BEFORE, SINCE, CAME_BACK, TWICE])
        for number in range(4)
    ]
    return [*many_events(200), *theirs]


def what_happens_after() -> list[LearningEvent]:
    """Events of known and of new students, some of them older than what the backup has."""
    more = [
        quiz(
            number % 7, 7, number=2000 + number, time=at(number % 9, seconds=number), of=student(f"s{number % 30}")
        )
        for number in range(200)
    ]
    random.Random(7).shuffle(more)
    return more


def state_in(server: RedisServer) -> dict[str, Any]:
    """Returns what Redis holds of students, without the moments at which it was written."""
    held: dict[str, Any] = {}
    with server.client() as client:
        for key in client.scan_iter(count=1000):
            name = key.partition("}")[2]
            if "student:" not in key and "processed:" not in key and "erased:" not in key:
                continue
            if name in (":audit", ":path:adaptive", ":prediction:7days"):
                continue
            value = value_of(client, key)
            if name == ":events":
                value = sorted(entry["event"] for _, entry in value)
            elif key.startswith("processed:"):  # the results in it tell in which order late events arrived
                value = json.loads(value)["origin"]
            elif key.startswith("erased:") or name == ":profile:current_mastery":
                value = _without_moments(json.loads(value))
            held[key] = value
    return held


def _without_moments(value: Any) -> Any:
    """Returns JSON without when it was written, and without what an erasure counted and whom it hid."""
    if not isinstance(value, dict):
        return value
    moments = {"log_start_time", "counts", "pseudonym", "request_id"}
    return {name: _without_moments(part) for name, part in value.items() if name not in moments}


async def ingest_and_erase_after_the_backup(engine: Engine, log: Log) -> None:
    events = what_happens_after()
    await asyncio.to_thread(log.send, map(json_record, events[:150]))
    accepted = await engine.client().ingest(*map(to_proto, events[150:]))
    assert all(result.accepted for result in accepted)
    newcomer = [quiz(number, 4, number=3000 + number, of=student(NEWCOMER)) for number in range(3)]
    again = quiz(1, 4, number=3100, of=student(TWICE))
    await engine.client().ingest(*map(to_proto, [*newcomer, again]))
    await until_consumed(log)
    for name in (SINCE, CAME_BACK, TWICE, NEWCOMER):
        await erase(engine, name)
    await asyncio.to_thread(log.send, [json_record(quiz(3, 4, number=3200, of=student(CAME_BACK)))])
    await until_consumed(log)


@pytest.mark.parametrize("kind", [SNAPSHOT, APPEND_ONLY_FILE])
async def test_all_states_are_there_again_after_redis_was_destroyed(
    place: Place, kafka_broker: KafkaBroker, kind: str
) -> None:
    log = Log(kafka_broker, place.settings)
    server = place.redis()
    server.start()
    try:
        async with everything_runs(place.settings) as engine:
            await asyncio.to_thread(log.send, map(json_record, what_happens_before()))
            await until_consumed(log)
            await erase(engine, BEFORE)
            await erase(engine, TWICE)
            await until_consumed(log)
            [backup] = commands_under(f"Back up by (?:a|the) {kind}")
            await asyncio.to_thread(place.type_in, backup)
            await ingest_and_erase_after_the_backup(engine, log)
        before, results = state_in(server), results_in(log)
        entries = entries_checked(place.type_in("mastery-grpc audit"))

        server.kill()
        shutil.rmtree(place.data)
        place.data.mkdir()
        server = await asyncio.to_thread(restore, place, kind)
        assert state_in(server) != before
        [repeat, check] = commands_under("What came since")
        told = await asyncio.to_thread(place.type_in, repeat)
        assert "4 of them repeated" in told
        async with running_worker(place.settings):
            await until_consumed(log)

        assert state_in(server) == before
        assert results_in(log) == results  # under the same ids, however often
        for name in (BEFORE, SINCE, TWICE, NEWCOMER):
            assert traces_of(server, name) == []
        told = await asyncio.to_thread(place.type_in, check)
        assert "intact" in told
        assert entries_checked(told) < entries  # what came after the backup is gone, and the end is authentic
        async with everything_runs(place.settings) as engine:
            assert (await engine.client(Role.TEACHER, "t").get(CAME_BACK)).version == 1
            assert "0 of them repeated" in place.type_in(repeat.splitlines()[0])
    finally:
        server.kill()


def restore(place: Place, kind: str) -> RedisServer:
    """Follows the page as far as Redis is there again."""
    [set_aside] = commands_under("Restore")
    place.type_in(set_aside)
    if kind == APPEND_ONLY_FILE:
        [put_back] = commands_under("An append-only file")
        place.type_in(put_back)
    else:
        put_back, switch_on = commands_under("A snapshot")
        place.type_in(put_back)
        without = place.redis(appendonly="no")
        without.start()
        place.type_in(switch_on)
        without.kill()
    server = place.redis()
    server.start()
    return server


def test_a_redis_that_is_to_append_takes_no_notice_of_a_snapshot(place: Place) -> None:
    server = place.redis()
    server.start()
    with server.client() as client:
        client.set("student:{s1}:profile:current_mastery", "{}")
    [backup] = commands_under("Back up by a snapshot")
    place.type_in(backup)
    server.kill()
    place.type_in(commands_under("Restore")[0] + commands_under("A snapshot")[0])
    server = place.redis()
    server.start()
    try:
        with server.client() as client:
            assert client.dbsize() == 0
    finally:
        server.kill()


def results_in(log: Log) -> set[str]:
    """Returns the ids of the results that do not depend on the order in which late events arrived."""
    kinds = {b"mastery.updated", b"student.data.erased"}
    return {result.json["event_id"] for result in log.results() if result.header["event-type"] in kinds}


def entries_checked(told: str) -> int:
    [count] = re.findall(r"(\d+) entries checked, intact", told)
    return int(count)
