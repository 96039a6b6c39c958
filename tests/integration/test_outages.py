"""The server while Redis or Kafka is away: what callers are told, how soon, and what is true afterwards."""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest

from mastery.v1 import events_pb2
from mastery.v1 import mastery_service_pb2 as pb
from tests.builders import at
from tests.integration.serving import (
    Client,
    Engine,
    Failure,
    components,
    eventually,
    failure_from,
    failure_in,
    quiz_event,
    running_engine,
)
from tests.integration.test_server_process import serving
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.processes import free_ports
from tests.real.redis_servers import RedisServer
from tests.reference_fold import ReferenceRules, fold_student

CLIENTS = 200
PAUSE_SECONDS = (0.4, 1.2)
"""Between the calls of one client: the outage is to be seen, not how much one machine can do."""
STUDENTS = [f"student_{number}" for number in range(100)]
LATE_SHARE = 0.1
CALL_DEADLINE = 2.0
OVERTIME = 1.0
"""How much later than its deadline a call may end, on a busy machine."""
FLAPPING_SECONDS = 10.0
RECOVERY_SECONDS = 6.0
"""After the last flap: the breaker's two seconds, twice if a call that finds out meets the flap itself, and some
for a busy machine."""
CALM_SECONDS = 2.0
AT_ONCE = 0.1
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
}

FlatEvent = dict[str, Any]


@pytest.fixture(autouse=True)
def _redis_is_left_running(redis_server: RedisServer) -> Iterator[None]:
    yield
    redis_server.revive()


# --- many clients while Redis flaps -----------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a client, or one item of its answer."""

    method: str
    failure: Failure | None
    began: float
    seconds: float

    @property
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK if self.failure is None else self.failure.code


@dataclass
class Crowd:
    """Clients that call without end, and what they were told."""

    client: Client
    calls: list[Call] = field(default_factory=list)
    sent: dict[str, set[str]] = field(default_factory=dict)
    """The ids of all events that were ever sent, by student."""
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    numbers: int = 0
    """How many quizzes were made up so far."""
    stopping: bool = False

    async def run_one(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stopping:
            await rng.choice((self.get, self.batch, self.calculate, self.ingest))(rng)
            await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))

    async def get(self, rng: random.Random) -> None:
        await self._call(self.client.stub.GetMastery, pb.GetMasteryRequest(student_id=rng.choice(STUDENTS)))

    async def batch(self, rng: random.Random) -> None:
        request = pb.BatchGetMasteryRequest(student_ids=rng.sample(STUDENTS, 10))
        began = time.monotonic()
        for result in self._results(await self._call(self.client.stub.BatchGetMastery, request)):
            self._note_item("BatchGetMastery", result.error if result.HasField("error") else None, began)

    async def calculate(self, rng: random.Random) -> None:
        """Sets a student's components; if it fails, often once more, and under the same id."""
        student_id, request_id = rng.choice(STUDENTS), str(uuid.UUID(int=rng.getrandbits(128), version=4))
        request = pb.CalculateMasteryRequest(
            student_id=student_id, components=components(rng.random()), request_id=request_id
        )
        self.sent.setdefault(student_id, set()).add(request_id)
        for _ in range(rng.randint(1, 3)):
            if await self._call(self.client.stub.CalculateMastery, request):
                self.acknowledged.setdefault(student_id, set()).add(request_id)
                break

    async def ingest(self, rng: random.Random) -> None:
        """Sends events of one or two students; if not all are taken, often once more."""
        events = [self._quiz(rng) for _ in range(2)]
        for event in events:
            self.sent.setdefault(event.student_id, set()).add(event.event_id)
        request = pb.IngestEventsRequest(events=events)
        for _ in range(rng.randint(1, 3)):
            began = time.monotonic()
            results = self._results(await self._call(self.client.stub.IngestEvents, request))
            for event, result in zip(events, results, strict=False):
                self._note_item("IngestEvents", result.error if not result.accepted else None, began)
                if result.accepted:
                    self.acknowledged.setdefault(event.student_id, set()).add(event.event_id)
            if results and all(result.accepted for result in results):
                break

    def _quiz(self, rng: random.Random) -> events_pb2.LearningEvent:
        self.numbers += 1
        lateness = timedelta(days=rng.randrange(20)) if rng.random() < LATE_SHARE else timedelta()
        time_of_event = at(30) + timedelta(minutes=self.numbers) - lateness
        event = quiz_event(rng.randint(0, 9), 9, student_id=rng.choice(STUDENTS), time=time_of_event)
        event.event_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return event

    async def _call(self, method: Any, request: Any) -> Any:
        """Returns the answer, or None if there was none."""
        began, failure, answer = time.monotonic(), None, None
        try:
            answer = await method(request, metadata=self.client.metadata, timeout=CALL_DEADLINE)
        except grpc.aio.AioRpcError as error:
            failure = failure_from(error)
        self.calls.append(Call(type(request).__name__, failure, began, time.monotonic() - began))
        return answer

    def _results(self, answer: Any) -> list[Any]:
        return [] if answer is None else list(answer.results)

    def _note_item(self, method: str, error: Any, began: float) -> None:
        if error is not None:
            self.calls.append(Call(f"item of {method}", failure_in(error), began, 0.0))


async def flap(server: RedisServer, rng: random.Random, seconds: float) -> None:
    """Kills and restarts Redis, and pauses and resumes it, about once a second."""
    end = time.monotonic() + seconds
    for away, back, longest in ((server.kill, server.restart, 1.2), (server.pause, server.resume, 2.4)) * 100:
        await asyncio.to_thread(away)
        await asyncio.sleep(rng.uniform(0.2, longest))
        await asyncio.to_thread(back)
        if time.monotonic() > end:
            return
        await asyncio.sleep(rng.uniform(0.2, 0.8))


async def test_two_hundred_clients_see_only_canonical_codes_while_redis_flaps_and_every_event_counts_once(
    redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path) as (server, engine):
        crowd = Crowd(engine.client())
        firsts = [quiz_event(number=number, student_id=name) for number, name in enumerate(STUDENTS)]
        assert all(result.accepted for result in await crowd.client.ingest(*firsts))
        for first in firsts:
            crowd.sent[first.student_id] = {first.event_id}
            crowd.acknowledged[first.student_id] = {first.event_id}

        running = [asyncio.create_task(crowd.run_one(seed)) for seed in range(CLIENTS)]
        await asyncio.sleep(1)
        await flap(redis_server, random.Random(1), FLAPPING_SECONDS)
        last_flap = time.monotonic()
        await asyncio.sleep(RECOVERY_SECONDS + CALM_SECONDS)
        crowd.stopping = True
        await asyncio.gather(*running)
        assert '"unexpected error"' not in server.output()

    codes = Counter((call.method, call.code) for call in crowd.calls)
    assert {code for _, code in codes} <= EXPECTED, codes
    unavailable = [call.failure for call in crowd.calls if call.code is grpc.StatusCode.UNAVAILABLE]
    assert unavailable, "Redis was not away at all"
    assert {(failure.reason, failure.retry_delay is not None) for failure in unavailable if failure} == {
        ("STORAGE_UNAVAILABLE", True)
    }
    assert max(call.seconds for call in crowd.calls) < CALL_DEADLINE + OVERTIME
    late_failures = [
        (round(call.began - last_flap, 2), call.method, call.code)
        for call in crowd.calls
        if call.began > last_flap + RECOVERY_SECONDS and call.failure is not None
    ]
    assert late_failures == []
    assert_each_counts_once(redis_server, crowd)


def assert_each_counts_once(server: RedisServer, crowd: Crowd) -> None:
    """Every acknowledged event counts, others may, none twice; and the masteries are the fold of those."""
    with server.client() as client:
        for student_id in STUDENTS:
            entries: Any = client.xrange(f"student:{{{student_id}}}:events")
            events: list[FlatEvent] = [json.loads(fields["event"]) for _, fields in entries]
            times = Counter(event["event_id"] for event in events)
            assert max(times.values()) == 1, f"{student_id}: an event counts twice"
            assert crowd.acknowledged[student_id] <= times.keys() <= crowd.sent[student_id], student_id
            reference = fold_student({event["event_id"]: event for event in events}, ReferenceRules())
            expected = {f"student:{{{student_id}}}:profile:current_mastery": reference.mastery}
            for day, mastery in reference.days.items():
                expected[f"student:{{{student_id}}}:mastery:{day}"] = mastery
            for key, wanted in expected.items():
                stored = json.loads(client.get(key) or "null")
                assert stored["version"] == wanted.version, key
                assert stored["level"] == wanted.level, key
                assert stored["mastery_score"] == pytest.approx(wanted.score, abs=1e-9), key


# --- the circuit breaker before Redis ---------------------------------------------------------------------


async def timed_failure(call: Awaitable[Any]) -> tuple[Failure, float]:
    """Awaits a call that must fail; returns how, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return failure_from(raised.value), time.monotonic() - began


async def is_answered(call: Awaitable[Any]) -> bool:
    try:
        await call
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_with_redis_paused_calls_are_soon_refused_at_once_and_cached_students_are_still_served(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with running_engine(redis_url, redis_timeout=0.3) as engine:
        client = engine.client()
        await client.ingest(quiz_event(number=1, student_id="known"), quiz_event(number=2, student_id="unread"))
        cached = await client.get("known")
        redis_server.pause()

        slow = await asyncio.gather(*(timed_failure(client.get("unread")) for _ in range(5)))
        assert {(failure.code, failure.reason) for failure, _ in slow} == {
            (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        }
        refusals = []
        for number in range(60):
            call = client.get("unread") if number % 2 else client.ingest(quiz_event(number=9))
            refusals.append(await timed_failure(call))
            assert await client.get("known") == cached
            await asyncio.sleep(0.02)
        for failure, _ in refusals:
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
            assert failure.retry_delay is not None
            assert 0 < failure.retry_delay <= 2
        # A call now and then finds out whether Redis is back, and waits for that.
        at_once = sum(seconds < AT_ONCE for _, seconds in refusals)
        assert at_once >= 0.9 * len(refusals), sorted(seconds for _, seconds in refusals)
        await engine.until_ready(ready=False)
        assert await engine.is_serving("liveness")

        redis_server.resume()
        await eventually(lambda: is_answered(client.get("unread")))
        await engine.until_ready()
        [result] = await client.ingest(quiz_event(number=3, student_id="known"))
        assert result.accepted
        assert (await client.get("known")).version == 2


async def test_the_breaker_closes_by_itself_while_nobody_calls(redis_url: str, redis_server: RedisServer) -> None:
    async with running_engine(redis_url, redis_timeout=0.3) as engine:
        client = engine.client()
        await client.ingest(quiz_event())
        redis_server.pause()
        await asyncio.gather(*(timed_failure(client.batch(f"s{number}")) for number in range(6)))
        _, seconds = await timed_failure(client.get("s2"))
        assert seconds < AT_ONCE
        await engine.until_ready(ready=False)
        redis_server.resume()
        await engine.until_ready()
        assert (await client.get("s1")).version == 1


# --- the circuit breaker before Kafka ---------------------------------------------------------------------


@asynccontextmanager
async def engine_with_kafka(redis_url: str, servers: str, topic: str) -> AsyncIterator[Engine]:
    given = {"kafka_bootstrap_servers": servers, "kafka_requests_topic": topic, "kafka_timeout": 1.0}
    async with running_engine(redis_url, **given) as engine:
        yield engine


async def assert_events_are_refused(client: Client, numbers: Iterator[int]) -> None:
    """At first after the broker's time, soon at once; reads go on."""
    slow = await asyncio.gather(
        *(timed_failure(client.ingest(quiz_event(number=next(numbers)))) for _ in range(5))
    )
    assert all(seconds < 1 + 2 * OVERTIME for _, seconds in slow)
    quick = [await timed_failure(client.ingest(quiz_event(number=next(numbers)))) for _ in range(20)]
    for failure, _ in slow + quick:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE")
        assert failure.retry_delay is not None
    assert sum(seconds < AT_ONCE for _, seconds in quick) >= 18, sorted(seconds for _, seconds in quick)


async def test_with_no_broker_events_are_soon_refused_at_once_and_leave_no_trace(
    redis_url: str, redis_server: RedisServer
) -> None:
    [port] = free_ports(1)
    async with engine_with_kafka(redis_url, f"127.0.0.1:{port}", "mastery.requests") as engine:
        client = engine.client()
        await assert_events_are_refused(client, count(1))
        failure, _ = await timed_failure(client.get("s1"))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert await engine.is_serving()
    with redis_server.client() as stored:
        assert [key for key in stored.scan_iter() if not key.startswith(("audit:", "limit:", "upkeep:"))] == []


async def test_a_broker_that_comes_back_takes_events_again(
    redis_url: str, kafka_broker: KafkaBroker, topics: MasteryTopics
) -> None:
    if not kafka_broker.restartable:
        pytest.skip(f"the {kafka_broker.kind} cannot be restarted")
    numbers = count(1)
    async with engine_with_kafka(redis_url, kafka_broker.bootstrap_servers, topics.requests.name) as engine:
        client = engine.client()
        # A broker that has just come up may need longer than the second that it is given.
        await eventually(lambda: is_answered(client.ingest(quiz_event(number=next(numbers)))), within=20)
        await asyncio.to_thread(kafka_broker.kill)
        await assert_events_are_refused(client, numbers)
        assert (await client.get("s1")).version == 1
        assert await engine.is_serving()
        await asyncio.to_thread(kafka_broker.restart)
        await eventually(lambda: is_answered(client.ingest(quiz_event(number=next(numbers)))), within=20)
        assert (await client.get("s1")).version == 2
