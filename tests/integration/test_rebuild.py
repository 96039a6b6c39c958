"""The rebuild on a real Redis and a real cluster: beside live writers, and as an operator runs it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from random import random
from typing import Any

import pytest
import redis

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import Revision, StudentRewrite
from mastery_grpc.application.rebuild_students import RebuildStudents, Rebuilt, Verdict
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import Contention
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.scoring import Method, ScoringRules, Weights
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, STUDENT, at, day, exercise, flat, quiz, student
from tests.real.redis_servers import RedisServer, RedisServerCluster
from tests.reference_fold import fold_events

CURRENT = "student:{student_12345}:profile:current_mastery"
LOG = "student:{student_12345}:events"
SNAPSHOT = "student:{student_12345}:mastery:2026-01-14"
OTHER_WEIGHTS = ScoringRules(weights=Weights(completion=0.25, quiz=0.25, quality=0.25, consistency=0.25))
OTHER_METHOD = ScoringRules(quiz=Method.AVERAGE)
ROUNDS = 300


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStudentRepository]:
    client = connect(url, timeout=5)
    try:
        yield RedisStudentRepository(client, retention=Retention())
    finally:
        await client.aclose()


@pytest.fixture
async def repository(redis_url: str) -> AsyncIterator[RedisStudentRepository]:
    async with opened(redis_url) as repository:
        yield repository


@pytest.fixture
def stored(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client() as client:
        yield client


def utc_now() -> datetime:
    return datetime.now(UTC)


async def apply(
    repository: RedisStudentRepository, *events: LearningEvent, rules: ScoringRules = DEFAULT_RULES
) -> None:
    applier = ApplyEvents(repository, rules=rules, log_retention=Retention().event_log, clock=utc_now)
    outcomes = await applier([Delivery(event) for event in events])
    assert [outcome.error for outcome in outcomes] == [None] * len(events)


async def rebuild(
    repository: RedisStudentRepository,
    *students: StudentKey,
    apply: bool = False,
    rules: ScoringRules = DEFAULT_RULES,
) -> list[Rebuilt]:
    retention = Retention().snapshots
    use_case = RebuildStudents(repository, rules=rules, snapshot_retention=retention, clock=utc_now)
    return await use_case(students or [STUDENT], apply=apply)


def whats(rebuilt: Rebuilt) -> list[str]:
    return [difference.what for difference in rebuilt.differences]


def three_days() -> list[LearningEvent]:
    return [quiz(number, 4, number=number, time=at(number)) for number in (1, 2, 3)]


def held(stored: Any) -> dict[str, Any]:
    """Returns all that Redis holds, but not how often it was rebuilt, and when its log began."""
    found: dict[str, Any] = {}
    read = {
        "stream": stored.xrange,
        "string": stored.get,
        "set": stored.smembers,
        "zset": lambda key: sorted(stored.zrange(key, 0, -1)),
    }
    for key in stored.scan_iter(count=1000):
        found[key] = read[stored.type(key)](key)
        if key == CURRENT:
            found[key] = json.loads(found[key])
            found[key].pop("rebuilds", None)
            del found[key]["fold"]["log_start_time"]
    return found


def bend(stored: Any, key: str, **fields: Any) -> None:
    value = json.loads(stored.get(key))
    stored.set(key, json.dumps(value | fields, separators=(",", ":")), keepttl=True)


def bend_state(stored: Any) -> None:
    value = json.loads(stored.get(CURRENT))
    value["fold"]["state"]["quiz"]["value"] = 0.123
    stored.set(CURRENT, json.dumps(value, separators=(",", ":")))


PARTS = ("completion", "quiz", "quality", "consistency")
DAMAGES: dict[str, tuple[Any, list[str]]] = {
    "nothing": (lambda stored: None, []),
    "the state": (bend_state, ["state"]),
    "the mastery": (lambda stored: bend(stored, CURRENT, mastery_score=0.9), ["mastery"]),
    "a snapshot": (lambda stored: bend(stored, SNAPSHOT, level="expert"), [f"snapshot {day(2)}"]),
    "a score": (lambda stored: stored.set(f"{SNAPSHOT}:quiz", "0.9", keepttl=True), [f"scores {day(2)}"]),
    "a score that is none": (
        lambda stored: stored.set(f"{SNAPSHOT}:quiz", "much", keepttl=True),
        [f"scores {day(2)}"],
    ),
    "a score that is away": (lambda stored: stored.delete(f"{SNAPSHOT}:quality"), [f"scores {day(2)}"]),
    "an unreadable snapshot": (
        lambda stored: stored.set(SNAPSHOT, b"\xff{", keepttl=True),
        [f"snapshot {day(2)}"],
    ),
    "a day that is away": (
        lambda stored: stored.delete(SNAPSHOT, *(f"{SNAPSHOT}:{part}" for part in PARTS)),
        [f"snapshot {day(2)}"],
    ),
    "all of it unreadable": (lambda stored: stored.set(CURRENT, b"\xff"), ["state", "mastery"]),
    "all of it but the version": (lambda stored: stored.set(CURRENT, '{"version":3,'), ["state", "mastery"]),
    "all of it away": (lambda stored: stored.delete(CURRENT), ["state", "mastery"]),
    "a version too small": (lambda stored: bend(stored, CURRENT, version=2), ["mastery"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_was_damaged_is_found_and_repaired(
    repository: RedisStudentRepository, stored: Any, damage: str
) -> None:
    await apply(repository, *three_days())
    before = held(stored)
    harm, expected = DAMAGES[damage]
    harm(stored)
    damaged = stored.get(CURRENT) if "unreadable" not in damage else None
    [found] = await rebuild(repository)

    assert whats(found) == expected
    assert found.verdict is (Verdict.WRONG if expected else Verdict.RIGHT)
    assert damaged is None or stored.get(CURRENT) == damaged
    [repaired] = await rebuild(repository, apply=True)
    assert repaired.verdict is (Verdict.REPAIRED if expected else Verdict.RIGHT)
    assert held(stored) == before
    assert await rebuild(repository) == [Rebuilt(STUDENT, Verdict.RIGHT)]
    await apply(repository, quiz(number=9, time=at(9)))  # and life goes on
    assert await rebuild(repository) == [Rebuilt(STUDENT, Verdict.RIGHT)]


async def test_a_damaged_log_replaces_nothing(repository: RedisStudentRepository, stored: Any) -> None:
    await apply(repository, *three_days())
    stored.xdel(LOG, stored.xrange(LOG)[1][0])
    stored.xadd(LOG, {"event": "not an event"})
    before = held(stored)

    assert await rebuild(repository, apply=True) == [Rebuilt(STUDENT, Verdict.LOG_INCOMPLETE)]
    assert held(stored) == before


async def test_other_rules_are_found_and_written(repository: RedisStudentRepository, stored: Any) -> None:
    await apply(repository, *three_days())
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)
    assert whats(found) == ["mastery", *(f"snapshot {day(number)}" for number in (1, 2, 3))]
    rebuilt = held(stored)
    stored.flushall()
    await apply(repository, *three_days(), rules=OTHER_WEIGHTS)
    expected = held(stored)

    kept = {key for key in expected if "processed:" not in key and key != LOG}
    for key in kept:
        assert rebuilt[key] == expected[key], key


async def test_a_rebuild_prolongs_nothing_and_revives_nothing(
    repository: RedisStudentRepository, stored: Any
) -> None:
    await apply(repository, *three_days())
    names = [*(f"{SNAPSHOT}:{part}" for part in PARTS), SNAPSHOT, LOG]
    for name in names:
        stored.expire(name, 1000)
    stored.delete("student:{student_12345}:activity:recent")
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)

    assert found.verdict is Verdict.REPAIRED
    assert [stored.ttl(name) for name in names] == [pytest.approx(1000, abs=5)] * 6
    assert stored.ttl(CURRENT) == -1
    assert not stored.exists("student:{student_12345}:activity:recent")


async def test_a_rebuild_drops_what_was_derived_and_is_announced(
    repository: RedisStudentRepository, stored: Any
) -> None:
    await apply(repository, *three_days())
    stored.set("student:{student_12345}:prediction:7days", "{}")
    stored.set("student:{student_12345}:path:adaptive", "[]")
    with stored.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("mastery:announcements")
        listener.get_message(timeout=1)
        await rebuild(repository)
        assert listener.get_message(timeout=0.1) is None
        await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)
        heard = listener.get_message(timeout=2)

    assert json.loads(heard["data"]).keys() == json.loads(stored.get(SNAPSHOT)).keys()
    assert not stored.exists("student:{student_12345}:prediction:7days", "student:{student_12345}:path:adaptive")


async def test_a_writer_that_loaded_before_a_rebuild_is_refused_after_it(
    redis_url: str, repository: RedisStudentRepository
) -> None:
    class Between(RedisStudentRepository):
        rebuilt = False

        async def commit(self, changes):  # type: ignore[no-untyped-def]
            if not self.rebuilt:
                self.rebuilt = True
                [found] = await rebuild(repository, rules=OTHER_METHOD, apply=True)
                assert found.verdict is Verdict.REPAIRED
            return await super().commit(changes)

    await apply(repository, *three_days())
    client = connect(redis_url, timeout=5)
    worker = Between(client, retention=Retention())
    await apply(worker, quiz(number=9, time=at(9)), rules=OTHER_METHOD)
    await client.aclose()

    assert worker.rebuilt
    assert await rebuild(repository, rules=OTHER_METHOD) == [Rebuilt(STUDENT, Verdict.RIGHT)]


@pytest.mark.parametrize("late", [False, True], ids=["in order", "half of it late"])
async def test_rebuilds_beside_a_live_writer_lose_nothing_and_leave_nothing_wrong(
    redis_url: str, repository: RedisStudentRepository, stored: Any, late: bool
) -> None:
    """A damaged state that a writer folds on from would stay: so none may, in any round."""
    events = [
        exercise(number % 5, 5, number=number, time=at(number % 7, seconds=number) if late else at(seconds=number))
        if number % 2
        else quiz(number % 11, 10 + 1, number=number, time=at(seconds=number))
        for number in range(1, ROUNDS)
    ]
    await apply(repository, events[0])
    finished = asyncio.Event()
    repairs = 0

    async def write() -> None:
        async with opened(redis_url) as writer:
            applier = ApplyEvents(writer, rules=DEFAULT_RULES, log_retention=Retention().event_log, clock=utc_now)
            try:
                for event in events[1:]:
                    # Two who rebuild without a pause may overtake a writer too often: then he tries again, as the
                    # worker does.
                    for _ in range(20):
                        [outcome] = await applier([Delivery(event)])
                        if not isinstance(outcome.error, Contention):
                            break
                    assert outcome.error is None
                    await asyncio.sleep(random() / 100)  # now and then long enough for a rebuild to come through
            finally:
                finished.set()

    async def repair() -> None:
        nonlocal repairs
        async with opened(redis_url) as other:
            while not finished.is_set():
                for rebuilt in await rebuild(other, apply=True):
                    assert rebuilt.verdict is not Verdict.LOG_INCOMPLETE
                    repairs += rebuilt.verdict is Verdict.REPAIRED
                # On a slow machine, two who never pause would leave a writer no moment to come through.
                await asyncio.sleep(random() / 100)

    async def damage() -> None:
        """Sets a false value in the state that is there, in one step, so that it is no writer of its own."""
        script = """
            local value = redis.call('GET', KEYS[1])
            local bent, count = string.gsub(value, '("state":{"completion":{"value":)[%d.e-]+', '%10.12345')
            redis.call('SET', KEYS[1], bent)
            return count"""
        while not finished.is_set():
            assert await asyncio.to_thread(stored.eval, script, 1, CURRENT) == 1
            await asyncio.sleep(0.003)

    await asyncio.gather(write(), repair(), repair(), damage())
    await rebuild(repository, apply=True)

    assert repairs > 10
    [expected] = fold_events(map(flat, events)).values()
    [mastery] = await repository.read_masteries([STUDENT])
    assert mastery is not None
    assert mastery.version == len(events) == stored.xlen(LOG)
    assert mastery.mastery_score == pytest.approx(expected.mastery.score, abs=1e-9)
    for each, snapshot in expected.days.items():
        found = await repository.read_snapshot(STUDENT, each)
        assert found is not None
        assert found.mastery_score == pytest.approx(snapshot.score, abs=1e-9)
    assert await rebuild(repository) == [Rebuilt(STUDENT, Verdict.RIGHT)]


async def test_no_writer_brings_back_what_a_rebuild_replaced(
    redis_url: str, repository: RedisStudentRepository
) -> None:
    """Nothing repairs afterwards here: what a writer had loaded before the rebuild must not come back."""
    async with opened(redis_url) as writer, opened(redis_url) as other:
        repaired = 0
        for number in range(ROUNDS):
            key = student(f"s{number}")
            await apply(repository, *(quiz(count, 5, number=count, time=at(count), of=key) for count in range(4)))
            further = [quiz(1, 3, number=count, time=at(count), of=key) for count in range(10, 13)]

            async def write(events: list[LearningEvent]) -> None:
                for event in events:
                    await apply(writer, event, rules=OTHER_METHOD)

            _, [rebuilt] = await asyncio.gather(
                write(further), rebuild(other, key, rules=OTHER_METHOD, apply=True)
            )
            repaired += rebuilt.verdict is Verdict.REPAIRED
            assert await rebuild(repository, key, rules=OTHER_METHOD) == [Rebuilt(key, Verdict.RIGHT)]
    assert repaired == ROUNDS


@pytest.mark.parametrize("rebuilds", [0, 2])
async def test_a_rewrite_of_another_revision_is_refused_and_nothing_of_it_is_written(
    repository: RedisStudentRepository, stored: Any, rebuilds: int
) -> None:
    await apply(repository, *three_days())
    await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)
    [history] = await repository.load_histories([STUDENT])
    [before] = await repository.read_masteries([STUDENT])
    assert history.revision == (3, 1)
    assert history.state is not None
    assert history.log_start_time is not None
    assert before is not None
    rewrite = StudentRewrite(
        student=STUDENT,
        expected=Revision(3, rebuilds),
        state=history.state,
        base=history.base,
        log_start_time=history.log_start_time,
        mastery=replace(before, mastery_score=0.9),
        snapshots={day(2): before},
    )
    everything = held(stored)

    assert await repository.rewrite([rewrite]) == [False]
    assert held(stored) == everything
    assert await repository.rewrite([replace(rewrite, expected=Revision(3, 1))]) == [True]


# --- walking ----------------------------------------------------------------------------------------------


async def walked(repository: RedisStudentRepository, school_id: str | None = None) -> set[StudentKey]:
    return {key async for portion in repository.walk(school_id) for key in portion}


async def assert_walks(repository: RedisStudentRepository) -> None:
    keys = [student(f"s{number}") for number in range(700)]
    north = [student(f"s{number}", school_id="north") for number in range(650, 670)]
    for start in range(0, 700, 100):
        await apply(repository, *(quiz(of=key) for key in keys[start : start + 100]))
    await apply(repository, *(quiz(of=key) for key in north))

    assert await walked(repository) == {*keys, *north}
    assert await walked(repository, "") == set(keys)
    assert await walked(repository, "north") == set(north)
    assert await walked(repository, "south") == set()


async def test_a_walk_meets_every_student(repository: RedisStudentRepository) -> None:
    await assert_walks(repository)


async def test_a_walk_meets_the_students_of_every_master(redis_cluster: RedisServerCluster) -> None:
    async with opened(redis_cluster.url.replace("redis://", "redis+cluster://")) as repository:
        await assert_walks(repository)
        found = await rebuild(repository, *await walked(repository), rules=OTHER_WEIGHTS, apply=True)
        assert {each.verdict for each in found} == {Verdict.REPAIRED}
        again = await rebuild(repository, *await walked(repository), rules=OTHER_WEIGHTS)
        assert {each.verdict for each in again} == {Verdict.RIGHT}


# --- the command ------------------------------------------------------------------------------------------


def command(url: str, *words: str, status: int = 0, **settings: str) -> tuple[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
    done = subprocess.run(
        [sys.executable, "-m", "mastery_grpc", "rebuild", *words],
        env=environment | {"MASTERY_REDIS_URL": url, "COLUMNS": "200"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


async def test_the_command_shows_what_differs_and_writes_only_when_told(
    repository: RedisStudentRepository, stored: redis.Redis, redis_url: str
) -> None:
    north = student("s2", school_id="north")
    await apply(repository, *three_days(), quiz(1, 4, of=north))
    bend(stored, SNAPSHOT, mastery_score=0.98765)

    told, _ = command(redis_url, "student_12345", status=1)
    assert f"snapshot {day(2)}" in told
    assert "mastery_score 0.98765" in told
    assert "1 students: 1 wrong" in told
    assert "1 students: 1 right" in command(redis_url, "s2", "--school", "north")[0]
    assert "1 students: 1 right" in command(redis_url, "--all", "--school", "north")[0]
    assert "1 repaired" in command(redis_url, "--all", "--apply")[0]
    assert "2 students: 2 right" in command(redis_url, "--all")[0]
    weights = {f"MASTERY_WEIGHT_{name.upper()}": "0.25" for name in PARTS}
    assert "2 wrong" in command(redis_url, "--all", status=1, **weights)[0]
    assert "1 unknown" in command(redis_url, "nobody", status=1)[0]


def test_the_command_wants_students_or_all_of_them(redis_url: str) -> None:
    command(redis_url, status=2)
    command(redis_url, "s1", "--all", status=2)
    _, complaint = command(redis_url, "no such id", status=1)
    assert complaint == "mastery-grpc: student_id: must be 1 to 64 characters of A-Z a-z 0-9 _ -\n"


def test_a_redis_that_is_away_is_one_clear_line() -> None:
    _, complaint = command("redis://127.0.0.1:1", "s1", status=1)
    assert complaint == "mastery-grpc: redis: ConnectionError\n"
