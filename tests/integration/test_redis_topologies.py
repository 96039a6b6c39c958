"""Redis encrypted, replicated, under sentinels, in a cluster: all works there, and survives failovers."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import pytest
import redis.asyncio

from mastery_grpc.app import beside
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import LoadedStudent, Subscription
from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.cohorts import CohortKey
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.storage.cache import CachedMasteryReader
from mastery_grpc.storage.connection import Replicas, connect
from mastery_grpc.storage.feed import RedisMasteryFeed
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_cohorts import RedisCohortStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, event_id, flat, quiz, student
from tests.contract.cohorts import managing
from tests.real.processes import free_ports
from tests.real.redis_servers import (
    EncryptedRedis,
    RedisReplication,
    RedisSentinels,
    RedisServer,
    cluster,
    replicated,
    sentinels,
    tls,
)
from tests.reference_fold import fold_events

TIMEOUT = 1.0
REPLICA_TIMEOUT = 0.3
CUT_SECONDS = 0.8
PATIENCE = 10.0
STUDENTS = [student(f"s{number}") for number in range(20)]


@dataclass(frozen=True)
class Node:
    """What one process of the product has."""

    repository: RedisStudentRepository
    reader: CachedMasteryReader
    feed: RedisMasteryFeed

    async def apply(self, *events: LearningEvent, origin: str = "") -> list[Outcome]:
        apply = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: at(50))
        outcomes = await apply([Delivery(event, origin) for event in events])
        assert [outcome.error for outcome in outcomes] == [None] * len(events)
        return outcomes

    async def version(self, key: StudentKey = STUDENT) -> int | None:
        [mastery] = await self.repository.read_masteries([key])
        return None if mastery is None else mastery.version


@asynccontextmanager
async def node(
    url: str, *, replicas: int = 0, repository_type: type[RedisStudentRepository] = RedisStudentRepository
) -> AsyncIterator[Node]:
    client = connect(url, timeout=TIMEOUT)
    repository = repository_type(client, retention=Retention(), replicas=Replicas(replicas, REPLICA_TIMEOUT))
    # A lifetime without end: what is fresh here is fresh by announcement.
    reader = CachedMasteryReader(repository, capacity=1000, lifetime=1e9, timer=time.monotonic)
    feed = RedisMasteryFeed(client, cache=reader)
    try:
        async with beside(feed.run()):
            yield Node(repository, reader, feed)
    finally:
        await client.aclose()


async def works(here: Node) -> None:
    """Commits, reads by both ways, and hears of it."""
    async with here.feed.subscribe([STUDENT]) as subscription, asyncio.timeout(PATIENCE):
        assert await subscription.next() is None  # live
        [outcome] = await here.apply(quiz(8, 10), origin="mastery.requests/0/1")
        assert await subscription.next() == [outcome.mastery]
    [again] = await here.apply(quiz(8, 10), origin="mastery.requests/0/1")
    assert (again.duplicate, again.results) == (True, outcome.results)
    assert await here.reader.read_masteries([STUDENT]) == [outcome.mastery]
    assert await here.repository.read_snapshot(STUDENT, at().date()) == outcome.mastery
    assert [portion async for portion in here.repository.walk()] == [[STUDENT]]


# --- TLS and users ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted() -> Iterator[EncryptedRedis]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(tls())
        except RuntimeError as error:
            if re.search("Failed finding TLS support|Bad directive", str(error)):
                pytest.skip("this server was built without TLS")
            raise
        yield server


async def test_all_of_it_works_by_tls_as_a_user_who_may_do_no_more_than_that(encrypted: EncryptedRedis) -> None:
    encrypted.server.flush()
    async with node(encrypted.url) as here:
        await works(here)
        with encrypted.server.client() as stored:
            users = {client["user"] for client in stored.client_list()}
    assert "mastery" in users


async def test_cohorts_need_no_further_rights(encrypted: EncryptedRedis) -> None:
    encrypted.server.flush()
    client = connect(encrypted.url, timeout=TIMEOUT)
    store = RedisCohortStore(client, retention=Retention())
    manage = managing(store)
    try:
        for school_id in ("", "north"):
            created = await manage.create(CohortKey("7b", school_id), "7b", ["s1"], request_id=event_id(1))
            assert [one.profile for one in (await manage.page(school_id)).cohorts] == [created.cohort.profile]
            assert len(await store.listing(student("s1", school_id=school_id))) == 1
            await store.confirm(CohortKey("7b", school_id))
            await manage.delete(CohortKey("7b", school_id))
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(r"ca\.crt", "client.crt"), ("&ssl_certfile=.*", ""), (":secret@", ":guessed@")],
    ids=["another authority", "no client certificate", "another password"],
)
async def test_whoever_is_not_who_he_says_is_refused(encrypted: EncryptedRedis, right: str, wrong: str) -> None:
    client = connect(re.sub(right, wrong, encrypted.url), timeout=TIMEOUT)
    with pytest.raises(StorageUnavailable):
        await RedisStudentRepository(client, retention=Retention()).ping()
    await client.aclose()
    await asyncio.sleep(0.1)  # the driver does not wait until both sides have said good-bye


# --- replicas ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[RedisReplication]:
    with replicated(1) as servers:
        yield servers


@pytest.fixture
def replication(pair: RedisReplication) -> Iterator[RedisReplication]:
    pair.master.flush()
    yield pair
    pair.mend()
    pair.wait_until_synchronized()


async def test_an_update_counts_only_once_enough_replicas_have_it(replication: RedisReplication) -> None:
    async with node(replication.url, replicas=1) as here:
        await here.apply(quiz())
        replication.cut()
        for _ in range(2):  # the second attempt finds nothing to write, but nothing is safe yet
            with pytest.raises(StorageUnavailable, match="replicas"):
                await here.apply(quiz(number=2, time=at(1)), origin="mastery.requests/0/1")
        replication.mend()
        replication.wait_until_synchronized()
        [outcome] = await here.apply(quiz(number=2, time=at(1)), origin="mastery.requests/0/1")

        assert outcome.duplicate
        assert outcome.results
        assert await here.version() == 2


async def test_no_replicas_are_waited_for_unless_they_are_wanted(replication: RedisReplication) -> None:
    replication.cut()
    async with node(replication.url) as here:
        for _ in range(2):
            await here.apply(quiz())
        assert await here.version() == 1


async def test_an_event_that_a_failover_loses_after_it_was_found_is_applied_anew(
    replication: RedisReplication,
) -> None:
    class LosingAllOnce(RedisStudentRepository):
        loses = False

        async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
            loaded = await super().load(wanted)
            if self.loses:
                self.loses = False
                replication.master.flush()
            return loaded

    async with node(replication.url, replicas=1, repository_type=LosingAllOnce) as here:
        keys = STUDENTS[:3]
        await here.apply(*(quiz(number=number, of=key) for number, key in enumerate(keys)))
        assert isinstance(here.repository, LosingAllOnce)
        here.repository.loses = True
        outcomes = await here.apply(*(quiz(number=number, of=key) for number, key in enumerate(keys)))

        assert [outcome.duplicate for outcome in outcomes] == [False] * 3
        assert [await here.version(key) for key in keys] == [1] * 3


async def test_waiting_for_a_replica_survives_a_script_flush(replication: RedisReplication) -> None:
    async with node(replication.url, replicas=1) as here:
        await here.apply(quiz())
        with replication.master.client() as stored:
            stored.script_flush()
        await here.apply(quiz(number=2, time=at(1)))
        assert await here.version() == 2


async def test_an_address_that_leads_to_another_master_is_looked_up_again(replication: RedisReplication) -> None:
    old, [new] = replication.master, replication.replicas
    [port] = free_ports(1)
    leads_to = old

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while some := await source.read(65536):
                sink.write(some)
        sink.close()

    async def accept(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", leads_to.port)
        await asyncio.gather(carry(source, here), carry(there, sink))

    async with (
        await asyncio.start_server(accept, "127.0.0.1", port),
        node(f"redis://127.0.0.1:{port}/0") as behind_an_address,
    ):
        await behind_an_address.apply(quiz())
        try:
            replication.wait_until_synchronized()
            roles_swapped(old, new)
            leads_to = new
            with suppress(StorageUnavailable):
                await behind_an_address.apply(quiz(number=2, time=at(1)))
            await behind_an_address.apply(quiz(number=2, time=at(1)))
            assert await behind_an_address.version() == 2
        finally:
            roles_swapped(new, old)


def roles_swapped(master: RedisServer, replica: RedisServer) -> None:
    with master.client() as of_master, replica.client() as of_replica:
        of_replica.replicaof("NO", "ONE")
        of_master.replicaof("127.0.0.1", str(replica.port))


# --- failovers --------------------------------------------------------------------------------------------


@dataclass
class Ingest:
    """Applies events batch by batch, and each batch until it counts, as the worker does before it commits."""

    here: Node
    acknowledged: list[LearningEvent] = field(default_factory=list)
    last_time: float = 0.0
    stopping: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        for turn in count():
            if self.stopping:
                self.ended.set()
                return
            batch = [
                quiz((turn + index) % 10, 10, number=100 * turn + index, time=at(seconds=turn), of=key)
                for index, key in enumerate(STUDENTS)
            ]
            while True:
                try:
                    await self.here.apply(*batch)
                except StorageUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
            self.acknowledged += batch
            self.last_time = time.monotonic()
            await asyncio.sleep(0.005)

    async def until_it_goes_on(self) -> float:
        """Returns when the next batch was acknowledged."""
        since = time.monotonic()
        async with asyncio.timeout(3 * PATIENCE):
            while self.last_time < since:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.last_time

    async def stop(self) -> None:
        """Returns when the batch in hand was acknowledged."""
        self.stopping = True
        await self.ended.wait()


@asynccontextmanager
async def ingest(here: Node) -> AsyncIterator[Ingest]:
    running = Ingest(here)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def lost(here: Node, acknowledged: Sequence[LearningEvent]) -> int:
    """Returns how many of the events are not in the log, having compared the state with the fold if none is."""
    logs = await here.repository.load_logs(STUDENTS)
    missing = {event.event_id for event in acknowledged} - {entry.event.event_id for log in logs for entry in log}
    expected = fold_events([flat(event) for event in acknowledged])
    for mastery in await here.repository.read_masteries(STUDENTS):
        assert mastery is not None
        if not missing:
            reference = expected["", mastery.student_id].mastery
            assert mastery.version == reference.version
            assert mastery.mastery_score == pytest.approx(reference.score, abs=1e-9)
    return len(missing)


@contextmanager
def failing_over(replication: RedisReplication) -> Iterator[None]:
    """The replicas fall behind, then the master dies."""
    replication.cut()
    yield
    replication.master.kill()
    replication.mend()


async def until_announced(subscription: Subscription) -> None:
    """Returns when the feed has begun anew and something was announced since."""
    async with asyncio.timeout(3 * PATIENCE):
        while await subscription.next() is not None:
            pass
        while await subscription.next() is None:
            pass


async def ingest_through_failover(servers: RedisSentinels, *, replicas: int) -> str:
    """Returns how many acknowledged events are lost, and the seconds until it went on."""
    async with (
        node(servers.url, replicas=replicas) as here,
        here.feed.subscribe(STUDENTS) as subscription,
        ingest(here) as running,
    ):
        await until_announced(subscription)
        with failing_over(servers.replication):
            await asyncio.sleep(CUT_SECONDS)
        killed = time.monotonic()
        reading = await until_read(here, killed)
        writing = await running.until_it_goes_on() - killed
        await until_announced(subscription)
        announcing = time.monotonic() - killed
        await running.stop()
        missing = await lost(here, running.acknowledged)
    return (
        f"{missing} of {len(running.acknowledged)} lost; seconds until reads {reading:.1f}, writes {writing:.1f}, "
        f"announcements {announcing:.1f}"
    )


async def until_read(here: Node, since: float) -> float:
    async with asyncio.timeout(3 * PATIENCE):
        while True:
            try:
                await here.repository.read_masteries(STUDENTS)
            except StorageUnavailable:
                await asyncio.sleep(0.02)
            else:
                return time.monotonic() - since


async def test_a_failover_loses_nothing_that_counted_where_a_replica_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with sentinels() as servers:
        found = await ingest_through_failover(servers, replicas=1)
    tell(capsys, f"sentinels, waiting for one replica: {found}")

    assert found.startswith("0 of")


async def test_no_sentinel_is_forgotten_when_many_calls_ask_at_once() -> None:
    with sentinels() as servers:
        first, *others = servers.sentinels
        first.kill()
        client = connect(servers.url, timeout=TIMEOUT)
        repository = RedisStudentRepository(client, retention=Retention())
        await asyncio.gather(*(repository.ping() for _ in range(10)))
        first.start()
        for other in others:
            other.kill()
        assert isinstance(client, redis.asyncio.Redis)
        await client.connection_pool.disconnect()
        await repository.ping()
        await client.aclose()


async def test_a_failover_may_lose_what_no_replica_was_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with sentinels() as servers:
        found = await ingest_through_failover(servers, replicas=0)
    tell(capsys, f"sentinels, waiting for none: {found}")


# The driver drops connections that one call makes to a node while another call learns the nodes anew.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_failover_in_a_cluster_loses_nothing_that_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster(replicas=True) as servers:
        of_slots = RedisReplication(servers.nodes[0], (servers.nodes[3],))
        url = servers.url.replace("redis://", "redis+cluster://")
        async with node(url, replicas=1) as here, ingest(here) as running:
            await running.until_it_goes_on()
            await asyncio.sleep(0.3)
            with failing_over(of_slots):
                await asyncio.sleep(CUT_SECONDS)
            killed = time.monotonic()
            reading = await until_read(here, killed)
            of_slots.master.start()  # as the replica of its replica: before that, nobody is there to wait for
            writing = await running.until_it_goes_on() - killed
            await asyncio.sleep(0.3)
            await running.stop()
            missing = await lost(here, running.acknowledged)
    tell(
        capsys,
        f"cluster, waiting for one replica: {missing} of {len(running.acknowledged)} lost; seconds until reads "
        f"{reading:.1f}, writes {writing:.1f}",
    )

    assert missing == 0


def tell(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n{line}")  # noqa: T201
