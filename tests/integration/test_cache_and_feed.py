"""The L1 cache and the announcements that keep it fresh and drive the watchers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from mastery_grpc.app import beside
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import Subscription
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import ShuttingDown, StorageUnavailable
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.student import Mastery, fold_all, mastery_of
from mastery_grpc.storage.cache import CachedMasteryReader
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.feed import RedisMasteryFeed
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, at, quiz, student
from tests.real.redis_servers import RedisServer, RedisServerCluster

TIMEOUT = 1.0
PATIENCE = 10.0
A, B, C, D = (student(name) for name in "abcd")


def mastery(of: StudentKey = A, version: int = 1) -> Mastery:
    return replace(mastery_of(of, fold_all([quiz(of=of)], DEFAULT_RULES), DEFAULT_RULES), version=version)


# --- the cache --------------------------------------------------------------------------------------------


class Store:
    """Holds a version for each student; counts who is read, and holds reads up at will."""

    def __init__(self, **versions: int) -> None:
        self.versions = versions
        self.reads: list[list[StudentKey]] = []
        self.error: Exception | None = None
        self._gates: list[asyncio.Event] = []

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        self.reads.append(list(students))
        found = [
            mastery(key, self.versions[key.student_id]) if key.student_id in self.versions else None
            for key in students
        ]
        if self._gates:
            await self._gates.pop(0).wait()
        if self.error is not None:
            raise self.error
        return found

    def hold_up_the_next_read(self) -> asyncio.Event:
        """Returns what lets it go on; it answers with what it found before."""
        gate = asyncio.Event()
        self._gates.append(gate)
        return gate


class HandTurnedTimer:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def cached(
    store: Store, *, capacity: int = 1000, lifetime: float = 30.0, timer: HandTurnedTimer | None = None
) -> CachedMasteryReader:
    return CachedMasteryReader(store, capacity=capacity, lifetime=lifetime, timer=timer or HandTurnedTimer())


async def versions_of(reader: CachedMasteryReader, *students: StudentKey) -> list[int | None]:
    return [found.version if found else None for found in await reader.read_masteries(students)]


async def begun_read(reader: CachedMasteryReader, *students: StudentKey) -> asyncio.Task[list[int | None]]:
    """Returns a read that has reached the store."""
    task = asyncio.create_task(versions_of(reader, *students))
    await asyncio.sleep(0)
    return task


async def test_a_mastery_is_read_once() -> None:
    store = Store(a=1)
    reader = cached(store)

    assert await versions_of(reader, A) == [1]
    assert await versions_of(reader, A) == [1]
    assert store.reads == [[A]]


async def test_only_what_is_missing_is_read_and_the_order_is_kept() -> None:
    store = Store(a=1, b=2, c=3)
    reader = cached(store)
    await versions_of(reader, B)

    assert await versions_of(reader, C, B, D, A) == [3, 2, None, 1]
    assert store.reads == [[B], [C, D, A]]


async def test_an_unknown_student_is_asked_for_again() -> None:
    store = Store()
    reader = cached(store)
    assert await versions_of(reader, A) == [None]
    store.versions["a"] = 1

    assert await versions_of(reader, A) == [1]


async def test_students_of_different_schools_are_kept_apart() -> None:
    store = Store(a=1)
    reader = cached(store)
    elsewhere = student("a", school_id="north")
    await versions_of(reader, A)
    await versions_of(reader, elsewhere)
    reader.drop(elsewhere)
    await versions_of(reader, A)

    assert store.reads == [[A], [elsewhere]]


async def test_the_least_recently_used_makes_room() -> None:
    store = Store(a=1, b=1, c=1)
    reader = cached(store, capacity=2)
    for key in (A, B, A, C):
        await versions_of(reader, key)
    store.reads.clear()
    await versions_of(reader, A, C)
    assert store.reads == []

    await versions_of(reader, B)
    assert store.reads == [[B]]


async def test_an_entry_lives_for_its_lifetime_however_often_it_is_used() -> None:
    store, timer = Store(a=1), HandTurnedTimer()
    reader = cached(store, lifetime=30.0, timer=timer)
    await versions_of(reader, A)
    store.versions["a"] = 2
    for timer.seconds in (10.0, 20.0, 29.9):
        assert await versions_of(reader, A) == [1]
    timer.seconds = 30.0

    assert await versions_of(reader, A) == [2]


async def test_a_dropped_entry_is_read_again_and_others_are_not() -> None:
    store = Store(a=1, b=1)
    reader = cached(store)
    await versions_of(reader, A, B)
    store.versions["a"] = 2
    reader.drop(A)

    assert await versions_of(reader, A, B) == [2, 1]
    assert store.reads == [[A, B], [A]]


async def test_after_a_clear_everything_is_read_again() -> None:
    store = Store(a=1, b=1)
    reader = cached(store)
    await versions_of(reader, A, B)
    reader.clear()
    store.versions |= {"a": 2, "b": 2}

    assert await versions_of(reader, A, B) == [2, 2]


@pytest.mark.parametrize("announced", ["drop", "clear"])
async def test_an_answer_overtaken_by_an_announcement_is_not_kept(announced: str) -> None:
    store = Store(a=1, b=1)
    reader = cached(store)
    gate = store.hold_up_the_next_read()
    read = await begun_read(reader, A, B)
    store.versions["a"] = 2
    if announced == "drop":
        reader.drop(A)
    else:
        reader.clear()
    gate.set()

    assert await read == [1, 1]  # it had begun before the change
    assert await versions_of(reader, A) == [2]
    assert await versions_of(reader, A) == [2]
    await versions_of(reader, B)
    assert store.reads == [[A, B], [A]] + ([[B]] if announced == "clear" else [])


async def test_each_of_several_reads_overtaken_by_an_announcement_keeps_nothing() -> None:
    store = Store(a=1)
    reader = cached(store)
    gates = [store.hold_up_the_next_read() for _ in range(2)]
    reads = [await begun_read(reader, A) for _ in range(2)]
    store.versions["a"] = 2
    reader.drop(A)
    for gate, read in zip(gates, reads, strict=True):
        gate.set()
        await read
        assert await versions_of(reader, A) == [2]


@pytest.mark.parametrize("announced", ["drop", "clear"])
async def test_reads_begun_after_an_announcement_are_kept_though_older_ones_are_still_under_way(
    announced: str,
) -> None:
    store = Store(a=1)
    reader = cached(store)
    gates = [store.hold_up_the_next_read() for _ in range(2)]
    old = await begun_read(reader, A)
    if announced == "drop":
        reader.drop(A)
    else:
        reader.clear()
    store.versions["a"] = 2
    young = await begun_read(reader, A)
    gates[1].set()
    assert await young == [2]
    gates[0].set()
    assert await old == [1]

    assert await versions_of(reader, A) == [2]
    assert store.reads == [[A], [A]]


@pytest.mark.parametrize("announced", ["drop", "clear"])
async def test_a_read_that_failed_leaves_no_trace(announced: str) -> None:
    store = Store(a=1)
    reader = cached(store)
    gate = store.hold_up_the_next_read()
    read = await begun_read(reader, A)
    if announced == "drop":
        reader.drop(A)
    else:
        reader.clear()
    store.error = StorageUnavailable("away")
    gate.set()
    with pytest.raises(StorageUnavailable):
        await read
    assert reader._reads_under_way == set()
    store.error = None
    for _ in range(2):
        assert await versions_of(reader, A) == [1]

    assert store.reads == [[A], [A]]


# --- the feed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What one server process has: a feed that listens, and the cache that it freshens."""

    repository: RedisStudentRepository
    reader: CachedMasteryReader
    feed: RedisMasteryFeed

    async def apply(self, *events: LearningEvent) -> None:
        apply = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: at(50))
        outcomes = await apply([Delivery(event) for event in events])
        assert [outcome.error for outcome in outcomes] == [None] * len(events)

    async def version(self, key: StudentKey = A) -> int | None:
        [version] = await versions_of(self.reader, key)
        return version


@asynccontextmanager
async def node(url: str) -> AsyncIterator[Node]:
    client = connect(url, timeout=TIMEOUT)
    repository = RedisStudentRepository(client, retention=Retention())
    # A lifetime without end: what is fresh here is fresh by announcement.
    reader = CachedMasteryReader(repository, capacity=1000, lifetime=1e9, timer=HandTurnedTimer())
    feed = RedisMasteryFeed(client, cache=reader)
    try:
        async with beside(feed.run()):
            yield Node(repository, reader, feed)
    finally:
        await client.aclose()


@pytest.fixture(params=["redis", "redis cluster"])
def any_url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    servers: RedisServerCluster = request.getfixturevalue("redis_cluster")
    return servers.url.replace("redis://", "redis+cluster://")


async def next_of(subscription: Subscription) -> list[tuple[str, int]] | None:
    """Returns students and versions of what comes next, None for "read anew"."""
    async with asyncio.timeout(PATIENCE):
        news = await subscription.next()
    return None if news is None else [(changed.student_id, changed.version) for changed in news]


async def until_live(subscription: Subscription) -> None:
    """Returns when the feed has begun to listen, which it tells as "read anew"."""
    assert await next_of(subscription) is None


async def is_quiet(subscription: Subscription, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await subscription.next()
    except TimeoutError:
        return True
    return False


async def test_a_subscriber_sees_the_newest_state_of_every_student_he_asked_for(any_url: str) -> None:
    async with node(any_url) as here, node(any_url) as elsewhere, here.feed.subscribe([A, B]) as subscription:
        await until_live(subscription)
        await elsewhere.apply(quiz(8, 10, number=1, of=A))
        assert await next_of(subscription) == [("a", 1)]
        await elsewhere.apply(quiz(number=2, of=C))
        await here.apply(quiz(number=3, of=B))
        assert await next_of(subscription) == [("b", 1)]
        await elsewhere.apply(quiz(number=4, time=at(1), of=A))
        async with asyncio.timeout(PATIENCE):
            news = await subscription.next()
        assert news == await here.repository.read_masteries([A])


async def test_a_cached_mastery_is_fresh_after_a_commit_elsewhere(any_url: str) -> None:
    async with node(any_url) as here, node(any_url) as elsewhere, here.feed.subscribe([A]) as subscription:
        await until_live(subscription)
        for version in range(1, 4):
            await elsewhere.apply(quiz(number=version, time=at(version), of=A))
            assert await next_of(subscription) == [("a", version)]
            assert await here.version(A) == version


async def test_only_the_student_announced_is_dropped_from_the_cache(redis_url: str) -> None:
    async with node(redis_url) as here, here.feed.subscribe([A]) as subscription:
        await until_live(subscription)
        north = student("a", school_id="north")
        await here.apply(*(quiz(number=1, of=key) for key in (A, B, north)))
        await next_of(subscription)
        await asyncio.sleep(0.05)  # those of B and north are heard
        before = await here.reader.read_masteries([A, B, north])
        await here.apply(quiz(number=2, time=at(1), of=A))
        await next_of(subscription)
        after = await here.reader.read_masteries([A, B, north])

    assert [new is old for new, old in zip(after, before, strict=True)] == [False, True, True]


async def test_a_student_of_the_same_id_in_another_school_is_another_student(redis_url: str) -> None:
    north = student("a", school_id="north")
    async with (
        node(redis_url) as here,
        here.feed.subscribe([A]) as of_default,
        here.feed.subscribe([north]) as of_north,
    ):
        await until_live(of_default)
        await until_live(of_north)
        await here.apply(quiz(number=1, of=north), quiz(number=2, time=at(1), of=north))
        assert await next_of(of_north) == [("a", 2)]
        assert await is_quiet(of_default, 0.1)


async def test_a_slow_subscriber_is_given_the_newest_states_only(redis_url: str) -> None:
    async with (
        node(redis_url) as here,
        here.feed.subscribe([A, B]) as slow,
        here.feed.subscribe([A]) as quick,
    ):
        await until_live(slow)
        await until_live(quick)
        await here.apply(quiz(number=100, of=B))
        for version in range(1, 31):
            await here.apply(quiz(number=version, time=at(version), of=A))
            assert await next_of(quick) == [("a", version)]

        assert sorted(await next_of(slow) or []) == [("a", 30), ("b", 1)]
        assert await is_quiet(slow, 0.05)


async def test_a_subscription_that_was_left_hears_nothing_and_holds_nothing(redis_url: str) -> None:
    async with node(redis_url) as here:
        async with here.feed.subscribe([A]) as left:
            await until_live(left)
        async with here.feed.subscribe([A]) as current:
            await here.apply(quiz(of=A))
            assert await next_of(current) == [("a", 1)]
        assert await is_quiet(left, 0.05)
        assert here.feed._subscriptions == {}


async def test_after_a_restart_of_the_server_the_subscriber_reads_anew_and_then_hears_again(
    redis_server: RedisServer, redis_url: str
) -> None:
    async with node(redis_url) as here, node(redis_url) as elsewhere, here.feed.subscribe([A]) as subscription:
        await until_live(subscription)
        await here.apply(quiz(number=1, of=A))
        await next_of(subscription)
        assert await here.version() == 1
        redis_server.kill()
        redis_server.restart()
        await elsewhere.apply(quiz(number=2, time=at(1), of=A))  # perhaps before anybody listens again
        assert await next_of(subscription) is None
        assert await here.version() == 2
        await elsewhere.apply(quiz(number=3, time=at(2), of=A))
        await next_of(subscription)
        assert await here.version() == 3


async def test_nothing_is_missed_while_the_connection_is_cut_again_and_again(
    redis_server: RedisServer, redis_url: str
) -> None:
    async with node(redis_url) as here, node(redis_url) as elsewhere, here.feed.subscribe([A]) as subscription:
        await until_live(subscription)
        with redis_server.client() as operator:
            for version in range(1, 8):
                operator.client_kill_filter(_type="pubsub")
                await elsewhere.apply(quiz(number=version, time=at(version), of=A))
                await here.version()
                while await next_of(subscription) is None:
                    if await here.version() == version:
                        break
                assert await here.version() == version


async def test_an_idle_connection_outlives_the_timeout_for_replies(any_url: str) -> None:
    async with node(any_url) as here, here.feed.subscribe([A]) as subscription:
        await until_live(subscription)
        assert await is_quiet(subscription, 2.5 * TIMEOUT)
        await here.apply(quiz(of=A))
        assert await next_of(subscription) == [("a", 1)]


async def test_the_feed_begins_when_the_server_comes_late(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.kill()
    async with node(redis_url) as here, here.feed.subscribe([A]) as subscription:
        assert await is_quiet(subscription, TIMEOUT)
        redis_server.restart()
        assert await next_of(subscription) is None
        await here.apply(quiz(of=A))
        assert await next_of(subscription) == [("a", 1)]


async def test_closing_ends_waiting_busy_and_later_subscribers(redis_url: str) -> None:
    async with node(redis_url) as here:
        async with here.feed.subscribe([A]) as waiting, here.feed.subscribe([A]) as busy:
            await until_live(waiting)
            task = asyncio.create_task(next_of(waiting))
            await here.apply(quiz(of=A))
            assert await task == [("a", 1)]  # and `busy` has not taken his yet
            task = asyncio.create_task(next_of(waiting))
            await asyncio.sleep(0)
            here.feed.close()
            with pytest.raises(ShuttingDown):
                await task
            for _ in range(2):
                with pytest.raises(ShuttingDown):
                    await next_of(busy)
        async with here.feed.subscribe([B]) as late:
            with pytest.raises(ShuttingDown):
                await next_of(late)
