"""Batches while the processes that work on them are killed: no item without its outcome, no effect twice."""

import asyncio
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from mastery.v1 import batch_service_pb2 as pb
from mastery_grpc.domain.batch import BatchPriority, item_event_id, requested_batch_id
from mastery_grpc.storage import keys
from mastery_grpc.storage.redis_batches import GROUP
from tests.chaos.dying_batch_server import BatchStep
from tests.integration.serving import Engine, components, connected, eventually, running_engine
from tests.integration.test_batch_service import CALCULATE, ENDED, BatchClient, service
from tests.integration.test_server_process import Server, environment, started
from tests.real.processes import ServerProcess, free_ports
from tests.real.redis_servers import RedisServer
from tests.real_learners import REPOSITORY

STUDENTS = 200
ITEMS = 500
"""Of a batch: every student is in it twice or thrice."""
PATIENCE = 150.0
"""For the end of all batches, on a busy machine; a chunk that a dead worker held is taken up after ten seconds."""
WORKING = [step for step in BatchStep if not step.name.endswith(("STORED", "NOTED", "SUBMITTED"))]
SUBMITTING = [step for step in BatchStep if step not in WORKING]


class DyingServer(ServerProcess):
    """A server process of the product with a fate."""

    def __init__(
        self, redis_url: str, directory: Path, step: BatchStep, *, nth: int = 1, stop: bool = False, **given: str
    ) -> None:
        [self.port] = free_ports(1)
        self.step = step
        directory = directory / f"{step}-{self.port}"
        directory.mkdir()
        given_settings = environment(redis_url, self.port, **given)
        settings = [f"{name}={value}" for name, value in given_settings.items() if name.startswith("MASTERY_")]
        fate = [step, "--nth", str(nth), *(["--stop"] if stop else [])]
        command = [sys.executable, "-m", "tests.chaos.dying_batch_server", *fate]
        super().__init__(["env", f"PYTHONPATH={REPOSITORY}", *settings, *command], directory)

    @property
    def has_met_its_fate(self) -> bool:
        if not self.running:
            return True
        assert self._process is not None
        state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"


@contextmanager
def running(servers: Sequence[DyingServer]) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Engine]:
    """A server that leaves all work to others."""
    async with running_engine(redis_url, batch_chunks_at_once=0, max_batches_services=0) as engine:
        yield engine


class Term:
    """Batches of calculations for the same students, and what must have come of them."""

    def __init__(self, api: Engine, seed: int) -> None:
        self.caller = service(api)
        self.batches: list[pb.Batch] = []
        self.items: dict[str, list[pb.BatchItem]] = {}
        self._rng = random.Random(seed)

    async def submit(self, priority: int = pb.BATCH_PRIORITY_NORMAL, caller: BatchClient | None = None) -> None:
        items = self.made()
        batch = await (caller or self.caller).submit(items, CALCULATE, priority=priority)
        self.expect(batch, items)

    def made(self) -> list[pb.BatchItem]:
        """Returns items that set one value each that is found again."""
        return [
            pb.BatchItem(student_id=f"s{self._rng.randrange(STUDENTS)}", components=components(self._rng.random()))
            for _ in range(ITEMS)
        ]

    def expect(self, batch: pb.Batch, items: list[pb.BatchItem]) -> None:
        self.batches.append(batch)
        self.items[batch.batch_id] = items

    async def ended(self, redis_server: RedisServer) -> None:
        """Returns once all batches have ended, and nothing is left in a queue."""

        async def have_ended() -> bool:
            return all([(await self.caller.get(batch.batch_id)).state in ENDED for batch in self.batches])

        async def are_empty() -> bool:
            with redis_server.client() as redis:
                queues = [key for key in map(keys.batch_queue, BatchPriority) if redis.exists(key)]
                waiting: list[Any] = [redis.xlen(key) for key in queues]
                waiting += [redis.xpending(key, GROUP)["pending"] for key in queues]
                return not any(waiting)

        await eventually(have_ended, within=PATIENCE)
        await eventually(are_empty, within=PATIENCE)

    async def check(self, redis_server: RedisServer) -> None:
        """Every item has exactly one outcome, and its student exactly one event of it."""
        events: dict[str, dict[str, tuple[int, str, float]]] = {}
        for batch in self.batches:
            ended = await self.caller.get(batch.batch_id)
            assert (ended.state, ended.succeeded_count, ended.failed_count) == (pb.BATCH_STATE_SUCCEEDED, ITEMS, 0)
            results = (await self.caller.page(batch.batch_id, page_size=1000)).results
            assert [result.index for result in results] == list(range(ITEMS))
            for result, item in zip(results, self.items[batch.batch_id], strict=True):
                assert result.mastery.student_id == result.student_id == item.student_id
                event_id = item_event_id(batch.batch_id, result.index)
                place = batch.create_time.ToMicroseconds() + result.index, event_id, item.components.quiz
                events.setdefault(item.student_id, {})[event_id] = place
        with redis_server.client() as redis:
            for student_id, expected in events.items():
                entries: Any = redis.xrange(f"student:{{{student_id}}}:events")
                logged = [msgspec.json.decode(fields["event"]) for _, fields in entries]
                assert Counter(event["event_id"] for event in logged) == Counter(expected.keys())
                stored: Any = redis.get(f"student:{{{student_id}}}:profile:current_mastery")
                mastery = msgspec.json.decode(stored)
                assert mastery["version"] == len(expected)
                _, _, newest = max(expected.values())
                assert mastery["components"]["quiz"] == pytest.approx(newest)


async def test_a_worker_killed_at_any_named_moment_costs_nothing_and_repeats_nothing(
    api: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    term = Term(api, seed=1)
    dying = [DyingServer(redis_url, tmp_path, step, nth=nth) for nth, step in enumerate(WORKING, start=1)]
    with running(dying):
        for number in range(2 * len(dying)):
            await term.submit(priority=1 + number % 3)

        async def are_dead() -> bool:
            return not any(server.running for server in dying)

        await eventually(are_dead, within=PATIENCE)
    began = time.monotonic()
    async with running_engine(redis_url):
        await term.ended(redis_server)
    assert time.monotonic() - began < PATIENCE
    await term.check(redis_server)


async def test_a_worker_that_stands_still_and_goes_on_later_repeats_nothing(
    api: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    term = Term(api, seed=2)
    steps = (BatchStep.AFTER_BEGUN, BatchStep.AMID_CHUNK, BatchStep.BEFORE_RESULTS, BatchStep.AFTER_RESULTS)
    stalling = [DyingServer(redis_url, tmp_path, step, stop=True) for step in steps]
    with running(stalling):
        for _ in stalling:
            await term.submit()

        async def stand_still() -> bool:
            return all(server.has_met_its_fate for server in stalling)

        await eventually(stand_still, within=PATIENCE)
        async with running_engine(redis_url):
            await term.ended(redis_server)
            for server in stalling:
                server.signal(signal.SIGCONT)
            await term.submit()  # which they may work on as well
            await term.ended(redis_server)
            await asyncio.sleep(1)  # what they held is finished too, to no effect
        assert all(server.running for server in stalling)
    await term.check(redis_server)


@pytest.mark.parametrize("repeats", [True, False])
async def test_a_server_killed_amid_a_submission_costs_no_batch_that_was_stored(
    api: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path, repeats: bool
) -> None:
    term = Term(api, seed=3)
    dying = [DyingServer(redis_url, tmp_path, step, MASTERY_BATCH_CHUNKS_AT_ONCE="0") for step in SUBMITTING]
    with running(dying):
        for server in dying:
            async with connected(server.port) as engine:
                await engine.channel.channel_ready()
                items, request_id = term.made(), str(uuid.uuid4())
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await service(engine).submit(items, CALCULATE, request_id=request_id)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            batch = pb.Batch(batch_id=requested_batch_id(request_id, "", "", "service", "someone"))
            if repeats:
                assert await term.caller.submit(items, CALCULATE, request_id=request_id)
            term.expect(await term.caller.get(batch.batch_id), items)
    async with running_engine(redis_url):
        await term.ended(redis_server)
    await term.check(redis_server)
    with redis_server.client() as redis:
        for batch_id, items in term.items.items():
            for index in (0, ITEMS - 1):
                assert redis.zscore(f"student:{{{items[index].student_id}}}:batches", f"{batch_id}/{index}")


async def test_workers_killed_at_random_cost_nothing_and_repeat_nothing(
    api: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    term, rng = Term(api, seed=4), random.Random(4)
    with ExitStack() as stack:

        def new_worker() -> Server:
            return stack.enter_context(started(redis_url, tmp_path))

        workers = [new_worker() for _ in range(2)]
        kills = 0
        submitting = asyncio.create_task(_submit_all(term, 20))
        while not submitting.done() or kills < 6:
            await asyncio.sleep(rng.uniform(1.0, 3.0))  # a process takes about as long to begin
            victim = workers.pop(rng.randrange(len(workers)))
            victim.process.send_signal(signal.SIGKILL)
            kills += 1
            workers.append(new_worker())
        await submitting
        began = time.monotonic()
        await term.ended(redis_server)
        assert time.monotonic() - began < PATIENCE
    await term.check(redis_server)


async def _submit_all(term: Term, count: int) -> None:
    for number in range(count):
        await term.submit(priority=1 + number % 3)
        await asyncio.sleep(0.3)
