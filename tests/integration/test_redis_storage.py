"""The students in Redis: keys, lifetimes and formats that others rely on, and what bad weather does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import pytest
import redis

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.events import ConsistencyActivity, LearningEvent, StudentKey
from mastery_grpc.domain.student import Mastery
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    FOR_EVER,
    STUDENT,
    at,
    calculation,
    event_id,
    event_of,
    exercise,
    quiz,
    student,
)
from tests.real.redis_servers import RedisServer, RedisServerCluster, standalone

HOUR = 3600
DAY = 24 * HOUR
TIMEOUT = 0.3


@asynccontextmanager
async def opened(url: str, *, retention: Retention | None = None) -> AsyncIterator[RedisStudentRepository]:
    client = connect(url, timeout=TIMEOUT)
    try:
        yield RedisStudentRepository(client, retention=retention or Retention())
    finally:
        await client.aclose()


@pytest.fixture
async def repository(redis_url: str) -> AsyncIterator[RedisStudentRepository]:
    async with opened(redis_url) as repository:
        yield repository


@pytest.fixture
def stored(redis_server: RedisServer, redis_url: str) -> Iterator[redis.Redis]:
    """Redis as an operator sees it."""
    with redis_server.client() as client:
        yield client


async def apply(repository: RedisStudentRepository, *events: LearningEvent, origin: str = "") -> None:
    applier = ApplyEvents(repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: at(50))
    outcomes = await applier([Delivery(event, origin) for event in events])
    assert [outcome.error for outcome in outcomes] == [None] * len(events)


async def mastery_in(repository: RedisStudentRepository, key: StudentKey = STUDENT) -> Mastery | None:
    [mastery] = await repository.read_masteries([key])
    return mastery


def json_in(stored: redis.Redis, key: str) -> Any:
    value = stored.get(key)
    assert isinstance(value, str), f"{key} is not there"
    return json.loads(value)


async def heals(repository: RedisStudentRepository) -> bool:
    """Returns whether the repository answers again within some seconds, as callers that retry find out."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            await repository.ping()
            await repository.read_masteries([student(f"s{number}") for number in range(50)])
        except StorageUnavailable:
            await asyncio.sleep(0.05)
        else:
            return True
    return False


# --- keys and lifetimes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("school_id", "before"), [("", ""), ("north-1", "school:north-1:")], ids=["default school", "a school"]
)
async def test_a_student_is_kept_under_the_documented_keys_for_the_documented_times(
    repository: RedisStudentRepository, stored: redis.Redis, school_id: str, before: str
) -> None:
    key = StudentKey("student_12345", school_id)
    await apply(repository, quiz(of=key), exercise(number=2, time=at(1), of=key))

    lifetimes = {
        f"{before}student:{{student_12345}}:profile:current_mastery": -1,
        f"{before}student:{{student_12345}}:events": 90 * DAY,
        f"{before}student:{{student_12345}}:activity:recent": 30 * DAY,
        f"{before}student:{{student_12345}}:mastery:days": 90 * DAY,
        f"{before}students": -1,
        f"{before}processed:{{student_12345}}:00000001-0000-4000-8000-000000000000": 7 * DAY,
        f"{before}processed:{{student_12345}}:00000002-0000-4000-8000-000000000000": 7 * DAY,
    }
    for one in ("2026-01-12", "2026-01-13"):
        for part in ("", ":completion", ":quiz", ":quality", ":consistency"):
            lifetimes[f"{before}student:{{student_12345}}:mastery:{one}{part}"] = 90 * DAY
    found = {str(name): stored.ttl(name) for name in stored.scan_iter()}

    assert found.keys() == lifetimes.keys()
    for name, lifetime in lifetimes.items():
        assert lifetime - 5 <= found[name] <= lifetime, name


async def test_lifetimes_are_those_of_the_settings(redis_url: str, stored: redis.Redis) -> None:
    retention = Retention(
        snapshots=timedelta(seconds=1000),
        event_log=timedelta(seconds=2000),
        processed=timedelta(seconds=3000),
        activity=timedelta(milliseconds=3_999_001),
    )
    async with opened(redis_url, retention=retention) as repository:
        await apply(repository, quiz())
    found = [
        stored.ttl(name)
        for name in (
            "student:{student_12345}:mastery:2026-01-12",
            "student:{student_12345}:mastery:2026-01-12:quiz",
            "student:{student_12345}:events",
            f"processed:{{student_12345}}:{event_id(1)}",
            "student:{student_12345}:activity:recent",
        )
    ]

    assert found == [pytest.approx(lifetime, abs=3) for lifetime in (1000, 1000, 2000, 3000, 4000)]


async def test_every_write_prolongs_the_log(repository: RedisStudentRepository, stored: redis.Redis) -> None:
    await apply(repository, quiz())
    stored.expire("student:{student_12345}:events", 10)
    await apply(repository, quiz(number=2, time=at(1)))

    assert stored.ttl("student:{student_12345}:events") == pytest.approx(90 * DAY, abs=5)


async def test_a_student_whose_log_and_records_expired_goes_on_from_his_state(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz(1, 2), quiz(2, 2, number=2, time=at(1)))
    stored.delete(
        "student:{student_12345}:events",
        *(f"processed:{{student_12345}}:{event_id(number)}" for number in (1, 2)),
    )
    await apply(repository, quiz(2, 2, number=3, time=at(2)))
    mastery = await mastery_in(repository)

    assert mastery is not None
    assert mastery.version == 3
    assert mastery.components.quiz == pytest.approx(0.65 + 0.35 * (0.65 + 0.35 * 0.5), abs=1e-9)


@pytest.mark.parametrize(("school_id", "before"), [("", ""), ("north-1", "school:north-1:")])
async def test_a_commit_drops_the_prediction_and_the_path_of_its_student_only(
    repository: RedisStudentRepository, stored: redis.Redis, school_id: str, before: str
) -> None:
    dropped = {f"{before}student:{{s1}}:prediction:7days", f"{before}student:{{s1}}:path:adaptive"}
    kept = {
        f"{before}student:{{s2}}:prediction:7days",
        f"{before}student:{{s2}}:path:adaptive",
        "school:south:student:{s1}:prediction:7days",
        "school:south:student:{s1}:path:adaptive",
    }
    for name in dropped | kept:
        stored.set(name, "[]")
    await apply(repository, quiz(of=StudentKey("s1", school_id)))

    assert {name for name in dropped | kept if stored.exists(name)} == kept


async def test_a_repeated_event_drops_nothing(repository: RedisStudentRepository, stored: redis.Redis) -> None:
    await apply(repository, quiz())
    stored.set("student:{student_12345}:prediction:7days", "{}")
    await apply(repository, quiz())

    assert stored.exists("student:{student_12345}:prediction:7days")


# --- formats ----------------------------------------------------------------------------------------------

MASTERY_JSON = {
    "version": 2,
    "student_id": "student_12345",
    "school_id": "",
    "mastery_score": pytest.approx(0.3 * 0.8 + 0.4 * 0.5 + 0.1 * 2 / 14, abs=1e-9),
    "level": "developing",
    "components": {
        "completion": 0.5,
        "quiz": 0.8,
        "quality": 0.0,
        "consistency": pytest.approx(2 / 14, abs=1e-9),
    },
    "breakdown": [
        {
            "component": name,
            "score": pytest.approx(score, abs=1e-9),
            "weight": weight,
            "contribution": pytest.approx(score * weight, abs=1e-9),
            "observed": name != "quality",
        }
        for name, score, weight in (
            ("completion", 0.5, 0.4),
            ("quiz", 0.8, 0.3),
            ("quality", 0.0, 0.2),
            ("consistency", 2 / 14, 0.1),
        )
    ],
    "update_time": "2026-01-13T09:00:00Z",
}


async def test_masteries_are_json_with_the_names_of_the_contract(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz(8, 10), exercise(1, 2, number=2, time=at(1)))
    current = json_in(stored, "student:{student_12345}:profile:current_mastery")

    assert json_in(stored, "student:{student_12345}:mastery:2026-01-13") == MASTERY_JSON
    assert {name: current[name] for name in MASTERY_JSON} == MASTERY_JSON
    assert json_in(stored, "student:{student_12345}:mastery:2026-01-12")["version"] == 1


async def test_components_of_a_day_are_floats_to_the_last_digit(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, calculation(completion=1 / 3, quiz=0.1, quality=5e-324, consistency=1.0))
    given = {"completion": 1 / 3, "quiz": 0.1, "quality": 5e-324, "consistency": 1.0}
    found = {name: stored.get(f"student:{{student_12345}}:mastery:2026-01-12:{name}") for name in given}

    assert {name: float(str(value)) for name, value in found.items()} == given


async def test_activity_is_json_with_days_and_streaks(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    days = [0, 1, 2, 20, 33, 34]
    await apply(
        repository,
        *(event_of(ConsistencyActivity(), number=number, time=at(number)) for number in days),
    )

    assert json_in(stored, "student:{student_12345}:activity:recent") == {
        "active_days": ["2026-02-01", "2026-02-14", "2026-02-15"],
        "last_active_day": "2026-02-15",
        "total_active_days": 6,
        "current_streak": 2,
        "longest_streak": 3,
    }


async def test_the_log_holds_the_flat_json_of_the_events(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz(8, 10))
    log: Any = stored.xrange("student:{student_12345}:events")
    [(_, fields)] = log

    assert json.loads(fields.pop("event")) == {
        "event_type": "quiz.performance.submitted",
        "event_id": "00000001-0000-4000-8000-000000000000",
        "timestamp": 1768208400000,
        "student_id": "student_12345",
        "total_questions": 10,
        "correct_answers": 8,
    }
    assert fields == {}


async def test_a_processing_record_is_json_with_the_time_the_origin_and_the_results(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz(8, 10), exercise(1, 2, number=2, time=at(1)), origin="mastery.requests/5/7")
    record = json_in(stored, f"processed:{{student_12345}}:{event_id(2)}")

    assert record.keys() == {"processed_time", "origin", "results"}
    assert record["processed_time"] == "2026-03-03T09:00:00Z"
    assert record["origin"] == "mastery.requests/5/7"
    assert [result["event_type"] for result in record["results"]] == [
        "mastery.updated",
        "mastery.threshold.reached",
        "learning.path.recommended",
    ]
    updated, threshold, path = record["results"]
    assert updated["recommendations"] == []  # they follow from the mastery, and would treble the record
    assert "Do the open exercises" in path["path"]
    for result in (updated, threshold):
        assert result["mastery"] == MASTERY_JSON
        assert result["cause_event_id"] == event_id(2)
        assert result["previous_level"] == "beginner"


# --- announcements ----------------------------------------------------------------------------------------


@contextmanager
def listening(stored: Any) -> Iterator[Any]:
    with stored.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("mastery:announcements")
        listener.get_message(timeout=1)
        yield listener


async def test_each_commit_is_announced_once_with_the_mastery_as_json(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    with listening(stored) as listener:
        await apply(repository, quiz(8, 10), exercise(1, 2, number=2, time=at(1)))
        await apply(repository, quiz(8, 10))  # a repeat changes nothing
        await apply(repository, quiz(number=3, of=student("other")))
        heard = [listener.get_message(timeout=2), listener.get_message(timeout=2)]
        further = listener.get_message(timeout=0.1)
    first, second = (json.loads(message["data"]) for message in heard if message)

    assert first == MASTERY_JSON
    assert (second["student_id"], second["version"]) == ("other", 1)
    assert further is None


async def test_a_refused_change_is_not_announced(repository: RedisStudentRepository, stored: redis.Redis) -> None:
    changes: list[Any] = []

    class Recording(RedisStudentRepository):
        async def commit(self, given: Any) -> list[bool]:
            changes.extend(given)
            return await super().commit(given)

    await apply(Recording(repository._client, retention=Retention()), quiz())
    with listening(stored) as listener:
        assert await repository.commit(changes) == [False]
        assert listener.get_message(timeout=0.1) is None


# --- bad weather ------------------------------------------------------------------------------------------


async def test_commits_survive_a_script_flush(repository: RedisStudentRepository, stored: redis.Redis) -> None:
    await apply(repository, quiz())
    stored.script_flush()
    await apply(repository, *(quiz(number=number, time=at(1), of=student(f"s{number}")) for number in range(9)))
    await apply(repository, quiz(number=2, time=at(1)))
    mastery = await mastery_in(repository)

    assert mastery is not None
    assert mastery.version == 2


async def test_after_the_first_commit_the_script_itself_is_not_sent_again(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz())
    stored.config_resetstat()
    await apply(repository, quiz(number=2, time=at(1)))
    statistics: Any = stored.info("commandstats")

    assert statistics["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_eval" not in statistics


async def test_commits_survive_a_restart_of_the_server(
    repository: RedisStudentRepository, redis_server: RedisServer
) -> None:
    await apply(repository, quiz())
    redis_server.kill()
    redis_server.restart()
    await apply(repository, quiz(number=2, time=at(1)))  # no error at all: one retry bridges it
    mastery = await mastery_in(repository)

    assert mastery is not None
    assert mastery.version == 2


def kill(server: RedisServer) -> None:
    server.kill()


def pause(server: RedisServer) -> None:
    server.pause()


@pytest.mark.parametrize("harm", [kill, pause])
async def test_a_server_that_is_away_is_unavailable_and_the_client_heals_by_itself(
    repository: RedisStudentRepository, redis_server: RedisServer, harm: Callable[[RedisServer], None]
) -> None:
    await apply(repository, quiz())
    before = await mastery_in(repository)
    harm(redis_server)
    started = time.monotonic()
    for call in (
        lambda: repository.ping(),
        lambda: repository.load({STUDENT: [event_id(1)]}),
        lambda: repository.load_logs([STUDENT]),
        lambda: repository.read_masteries([STUDENT]),
        lambda: repository.read_snapshot(STUDENT, at().date()),
    ):
        with pytest.raises(StorageUnavailable):
            await call()
    with pytest.raises(StorageUnavailable):
        await apply(repository, quiz(number=2))
    assert time.monotonic() - started < 6 * 4 * TIMEOUT
    redis_server.revive()

    assert await heals(repository)
    assert await mastery_in(repository) == before
    await apply(repository, quiz(number=2, time=at(1)))


async def test_a_commit_whose_answer_got_lost_may_be_repeated(
    repository: RedisStudentRepository, redis_server: RedisServer
) -> None:
    events = [quiz(number=number, time=at(number)) for number in range(1, 4)]
    await apply(repository, events[0])
    redis_server.pause()
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            await apply(repository, *events)
    redis_server.resume()
    assert await heals(repository)
    await apply(repository, *events)
    mastery = await mastery_in(repository)

    assert mastery is not None
    assert mastery.version == 3


async def test_a_call_given_up_half_way_never_shifts_the_answers_of_later_ones(
    repository: RedisStudentRepository, redis_server: RedisServer
) -> None:
    keys = [student(f"s{number}") for number in range(10)]
    await apply(repository, *(quiz(number, 10, number=number, of=key) for number, key in enumerate(keys)))
    redis_server.pause()
    given_up = [asyncio.create_task(repository.read_masteries([key])) for key in keys[:5]]
    await asyncio.sleep(TIMEOUT / 3)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    redis_server.resume()
    masteries = await asyncio.gather(*(repository.read_masteries([key]) for key in keys))

    assert [mastery.student for [mastery] in masteries if mastery] == keys


async def test_a_replica_that_takes_no_writes_is_unavailable(
    repository: RedisStudentRepository, stored: redis.Redis
) -> None:
    await apply(repository, quiz())
    stored.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StorageUnavailable):
            await apply(repository, quiz(number=2, time=at(1)))
    finally:
        stored.replicaof("NO", "ONE")
    await apply(repository, quiz(number=2, time=at(1)))


@pytest.mark.parametrize(
    ("directive", "value", "usual"),
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")],
    ids=["full", "too few replicas"],
)
async def test_a_server_that_takes_no_writes_for_now_is_unavailable(
    repository: RedisStudentRepository, stored: redis.Redis, directive: str, value: str, usual: str
) -> None:
    await apply(repository, quiz())
    stored.config_set(directive, value)
    try:
        with pytest.raises(StorageUnavailable):
            await apply(repository, quiz(number=2, time=at(1)))
    finally:
        stored.config_set(directive, usual)
    await apply(repository, quiz(number=2, time=at(1)))
    mastery = await mastery_in(repository)

    assert mastery is not None
    assert mastery.version == 2


async def test_a_server_that_is_busy_with_a_script_is_unavailable(
    repository: RedisStudentRepository, redis_server: RedisServer, stored: redis.Redis
) -> None:
    await apply(repository, quiz())
    stored.config_set("busy-reply-threshold", 1)
    with redis_server.client() as hog:
        hogging = asyncio.create_task(asyncio.to_thread(run_for_ever, hog))
        try:
            await asyncio.sleep(TIMEOUT / 3)
            with pytest.raises(StorageUnavailable):
                await mastery_in(repository)
        finally:
            stored.script_kill()
            await hogging
            stored.config_set("busy-reply-threshold", 5000)
    assert await heals(repository)


def run_for_ever(client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError):
        client.eval("while true do end", 0)


@pytest.mark.parametrize("nodes", [1, 3], ids=["one node", "every node"])
async def test_a_cluster_without_some_of_its_nodes_is_unavailable_and_heals(
    redis_cluster: RedisServerCluster, nodes: int
) -> None:
    keys = [student(f"s{number}") for number in range(30)]
    async with opened(redis_cluster.url.replace("redis://", "redis+cluster://")) as repository:
        await apply(repository, *(quiz(number=number, of=key) for number, key in enumerate(keys)))
        before = await repository.read_masteries(keys)
        for node in redis_cluster.nodes[:nodes]:
            node.kill()
        try:
            for _ in range(3):
                with pytest.raises(StorageUnavailable):
                    await repository.read_masteries(keys)
            with pytest.raises(StorageUnavailable):
                await apply(repository, *(quiz(number=99, time=at(1), of=key) for key in keys))
        finally:
            redis_cluster.revive()
        assert await heals(repository)
        assert [mastery and mastery.student for mastery in before] == keys
        await apply(repository, *(quiz(number=99, time=at(1), of=key) for key in keys))
        after = await repository.read_masteries(keys)

    assert [mastery and mastery.version for mastery in after] == [2] * len(keys)


async def test_a_cluster_that_cannot_be_reached_at_first_is_unavailable() -> None:
    async with opened("redis+cluster://127.0.0.1:1") as repository:
        with pytest.raises(StorageUnavailable):
            await repository.load({STUDENT: []})
        with pytest.raises(StorageUnavailable):
            await repository.ping()


# --- size -------------------------------------------------------------------------------------------------


async def test_more_calls_at_once_than_connections_wait_for_one(redis_url: str) -> None:
    client = connect(redis_url, timeout=10, max_connections=4)
    repository = RedisStudentRepository(client, retention=Retention())
    await asyncio.gather(
        *(apply(repository, quiz(number=number, of=student(f"s{number}"))) for number in range(200))
    )
    found = await asyncio.gather(*(mastery_in(repository, student(f"s{number}")) for number in range(200)))
    assert all(mastery is not None for mastery in found)
    assert int((await client.info("clients"))["connected_clients"]) <= 4 + 1
    await client.aclose()


async def test_memory_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    students, events_each = 200, 50
    with standalone() as server, server.client() as stored:
        empty = int(stored.info("memory")["used_memory"])
        async with opened(server.url) as repository:
            for number in range(students):
                key = student(f"student_{number:05}")
                first = number * events_each
                await apply(
                    repository,
                    *(
                        quiz(turn % 10, 10, number=first + turn, time=at(turn // 5, hours=turn % 5), of=key)
                        for turn in range(events_each)
                    ),
                )
        used = int(stored.info("memory")["used_memory"]) - empty
        by_kind: dict[str, int] = {}
        for name in stored.scan_iter("*student_*", count=1000):
            kind = next(part for part in ("processed", ":events", ":mastery:", ":") if part in name)
            by_kind[kind] = by_kind.get(kind, 0) + int(stored.memory_usage(name, samples=0))
    in_records, in_logs = by_kind["processed"], by_kind[":events"]
    events = students * events_each

    assert used > 0
    with capsys.disabled():
        print(  # noqa: T201
            f"\nmemory: {used / students / 1024:.1f} KiB for a student with {events_each} events on "
            f"{events_each // 5} days; of it {in_logs / events:.0f} B of log and {in_records / events:.0f} B of "
            f"processing record for an event, {by_kind[':mastery:'] / students / (events_each // 5):.0f} B for a "
            f"day, {by_kind[':'] / students:.0f} B for the current state"
        )
