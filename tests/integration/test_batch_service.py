"""BatchService over a real socket on a real Redis: what callers are told of their batches, in any weather."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from mastery.v1 import batch_service_pb2 as pb
from mastery.v1 import (
    compliance_service_pb2,
    mastery_service_pb2,
    prediction_service_pb2,
    recommendation_service_pb2,
)
from mastery.v1.batch_service_pb2_grpc import BatchServiceStub
from mastery.v1.mastery_service_pb2_grpc import MasteryServiceStub
from mastery.v1.prediction_service_pb2_grpc import PredictionServiceStub
from mastery.v1.recommendation_service_pb2_grpc import RecommendationServiceStub
from mastery_grpc.application.callers import Role
from mastery_grpc.storage import keys
from tests.batches import erasure_mark, now
from tests.builders import event_id, student
from tests.integration.serving import (
    DEADLINE,
    Client,
    Engine,
    components,
    eventually,
    failure_in,
    failure_of,
    quiz_event,
    running_engine,
)
from tests.integration.test_audit import AUDIT_KEY, entries_of, opened_log
from tests.integration.test_erasure import erase, traces_of
from tests.real.redis_servers import RedisServer

if TYPE_CHECKING:
    from mastery.v1.batch_service_pb2_grpc import BatchServiceAsyncStub

CALCULATE, RECALCULATE, PREDICT, RECOMMEND = (
    pb.BATCH_OPERATION_CALCULATE,
    pb.BATCH_OPERATION_RECALCULATE,
    pb.BATCH_OPERATION_PREDICT,
    pb.BATCH_OPERATION_RECOMMEND,
)
ENDED = {pb.BATCH_STATE_SUCCEEDED, pb.BATCH_STATE_CANCELLED}


class BatchClient:
    """Calls the service with one token."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._terms: dict[str, Any] = {"metadata": client.metadata, "timeout": DEADLINE}
        self._stub: BatchServiceAsyncStub = BatchServiceStub(client.channel)

    async def submit(
        self, items: list[pb.BatchItem] | int = 3, operation: int = RECALCULATE, **fields: Any
    ) -> pb.Batch:
        if isinstance(items, int):
            items = [pb.BatchItem(student_id=f"s{number}") for number in range(items)]
        given: dict[str, Any] = {"operation": operation, "items": items}
        request = pb.SubmitBatchRequest(**given | fields)
        return (await self._stub.SubmitBatch(request, **self._terms)).batch

    async def get(self, batch_id: str, school_id: str = "") -> pb.Batch:
        request = pb.GetBatchRequest(batch_id=batch_id, school_id=school_id)
        return (await self._stub.GetBatch(request, **self._terms)).batch

    async def page(self, batch_id: str, **fields: Any) -> pb.ListBatchResultsResponse:
        request = pb.ListBatchResultsRequest(batch_id=batch_id, **fields)
        return await self._stub.ListBatchResults(request, **self._terms)

    async def cancel(self, batch_id: str) -> pb.Batch:
        return (await self._stub.CancelBatch(pb.CancelBatchRequest(batch_id=batch_id), **self._terms)).batch

    def watch(self, batch_id: str) -> Any:
        terms = self._terms | {"timeout": 60}
        return self._stub.WatchBatch(pb.WatchBatchRequest(batch_id=batch_id), **terms)

    async def ended(self, batch_id: str) -> pb.Batch:
        last = pb.Batch()
        async for response in self.watch(batch_id):
            last = response.batch
        assert last.state in ENDED
        return last

    async def results(self, batch: pb.Batch) -> list[pb.BatchResult]:
        """Returns all results of a batch, once it has ended."""
        await self.ended(batch.batch_id)
        return list((await self.page(batch.batch_id, page_size=1000)).results)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


def service(engine: Engine, **given: Any) -> BatchClient:
    return BatchClient(engine.client(**given))


async def learn(engine: Engine, students: int = 3, school_id: str = "") -> None:
    """Gives each student ten days of quizzes."""
    events = [
        quiz_event(
            (day + number) % 5,
            5,
            number=100 * number + day,
            student_id=f"s{number}",
            school_id=school_id,
            time=now() - timedelta(days=day + 1),
        )
        for number in range(students)
        for day in range(10)
    ]
    assert all(result.accepted for result in await engine.client().ingest(*events))


# --- the same as single calls -----------------------------------------------------------------------------


async def single(engine: Engine, operation: int, item: pb.BatchItem) -> Any:
    """Returns what the call for one student answers."""
    client = engine.client()
    terms: dict[str, Any] = {"metadata": client.metadata, "timeout": DEADLINE}
    match operation:
        case pb.BATCH_OPERATION_CALCULATE:
            calculation = mastery_service_pb2.CalculateMasteryRequest(
                student_id=item.student_id,
                components=item.components if item.HasField("components") else None,
                validate_only=True,
            )
            stub: Any = MasteryServiceStub(engine.channel)
            return (await stub.CalculateMastery(calculation, **terms)).mastery
        case pb.BATCH_OPERATION_PREDICT:
            stub = PredictionServiceStub(engine.channel)
            asked = prediction_service_pb2.PredictNextWeekRequest(student_id=item.student_id)
            return (await stub.PredictNextWeek(asked, **terms)).prediction
        case pb.BATCH_OPERATION_RECOMMEND:
            stub = RecommendationServiceStub(engine.channel)
            wanted = recommendation_service_pb2.GetRecommendationsRequest(student_id=item.student_id)
            answer = await stub.GetRecommendations(wanted, **terms)
            return pb.RecommendationList(recommendations=answer.recommendations)
        case _:
            return await client.get(item.student_id)


@pytest.mark.parametrize("operation", [CALCULATE, RECALCULATE, PREDICT, RECOMMEND])
async def test_each_item_is_answered_as_the_single_call_would_be(engine: Engine, operation: int) -> None:
    await learn(engine)
    bad = [
        pb.BatchItem(student_id="not an id", components=components()),
        pb.BatchItem(student_id="", components=components()),
        pb.BatchItem(student_id="x" * 65, components=components()),
        pb.BatchItem(student_id="unknown", components=components()),
    ]
    if operation == CALCULATE:
        bad[3].components.quiz = 1.5
        bad += [pb.BatchItem(student_id="s0"), pb.BatchItem(student_id="s0", components=components(-0.5))]
    good = [pb.BatchItem(student_id=f"s{number}", components=components(number / 10)) for number in range(3)]
    expected: list[Any] = [await single(engine, operation, item) for item in good]
    expected += [await failure_of(single(engine, operation, item)) for item in bad]
    caller = service(engine)
    batch = await caller.submit([*good, *bad], operation)
    results = await caller.results(batch)
    assert [result.index for result in results] == list(range(len(expected)))
    assert [result.student_id for result in results] == [item.student_id[:64] for item in (*good, *bad)]
    for result, answer in zip(results, expected, strict=True):
        kind = str(result.WhichOneof("result"))
        if kind == "error":
            assert failure_in(result.error) == answer
            continue
        found = getattr(result, kind)
        for each in (found, answer):
            for name in ("update_time", "create_time", "from_cache"):
                if name in each.DESCRIPTOR.fields_by_name:
                    each.ClearField(name)
        assert found == answer
    ended = await caller.get(batch.batch_id)
    assert (ended.state, ended.succeeded_count, ended.failed_count) == (pb.BATCH_STATE_SUCCEEDED, 3, len(bad))


async def test_one_bad_student_among_a_thousand_is_one_error(engine: Engine) -> None:
    items = [pb.BatchItem(student_id=f"s{number}", components=components(number / 1000)) for number in range(999)]
    items.insert(500, pb.BatchItem(student_id="?", components=components()))
    caller = service(engine)
    batch = await caller.submit(items, CALCULATE)
    assert (batch.state, batch.item_count, batch.progress) == (pb.BATCH_STATE_PENDING, 1000, 0.0)
    ended = await caller.ended(batch.batch_id)
    assert (ended.state, ended.succeeded_count, ended.failed_count) == (pb.BATCH_STATE_SUCCEEDED, 999, 1)
    page = await caller.page(batch.batch_id, page_size=2000)
    [error] = [result for result in page.results if result.HasField("error")]
    assert (error.index, failure_in(error.error).reason) == (500, "INVALID_FIELD")
    scores = sorted(result.mastery.mastery_score for result in page.results if result.HasField("mastery"))
    summary = page.summary
    assert (summary.count, summary.minimum, summary.maximum) == (999, scores[0], scores[-1])
    assert summary.median == pytest.approx(scores[499])
    assert summary.mean == pytest.approx(sum(scores) / 999)
    assert {(await engine.client().get(f"s{number}")).version for number in (0, 499, 998)} == {1}


async def test_of_several_items_for_one_student_the_last_one_counts(engine: Engine) -> None:
    values = [0.1, 0.9, 0.4, 0.2, 0.7]
    caller = service(engine)
    batch = await caller.submit(
        [pb.BatchItem(student_id="s1", components=components(value)) for value in values], CALCULATE
    )
    assert (await caller.ended(batch.batch_id)).succeeded_count == 5
    mastery = await engine.client().get("s1")
    assert (mastery.version, mastery.components.quiz) == (5, 0.7)
    assert mastery.update_time.ToMicroseconds() == batch.create_time.ToMicroseconds() + 4


async def test_a_calculation_stands_at_the_time_of_its_submission(redis_url: str) -> None:
    async with running_engine(redis_url, batch_chunks_at_once=0) as engine:
        batch = await service(engine).submit(
            [pb.BatchItem(student_id="s1", components=components(0.1))], CALCULATE
        )
        await engine.client().calculate("s1", components=components(0.9))
    async with running_engine(redis_url) as engine:
        await service(engine).ended(batch.batch_id)
        mastery = await engine.client().get("s1")
        assert (mastery.version, mastery.components.quiz) == (2, 0.9)


async def test_a_recalculation_repairs_what_is_stored(engine: Engine, redis_server: RedisServer) -> None:
    await learn(engine)
    right = await engine.client().get("s1")
    with redis_server.client() as redis:
        key = "student:{s1}:profile:current_mastery"
        stored: Any = redis.get(key)
        redis.set(key, stored.replace('"quiz":0.', '"quiz":0.0', 1))
        redis.xtrim("student:{s2}:events", maxlen=5, approximate=False)
    caller = service(engine)
    results = await caller.results(await caller.submit(3))
    assert results[1].mastery == right
    failure = failure_in(results[2].error)
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LOG_INCOMPLETE")
    assert failure.metadata == (("student_id", "s2"),)


# --- handing in and following -----------------------------------------------------------------------------


async def test_a_repeat_under_the_same_request_id_is_the_same_batch(engine: Engine) -> None:
    caller = service(engine)
    request_id = str(uuid.uuid4())
    items = [pb.BatchItem(student_id="s1", components=components())]
    first = await caller.submit(items, CALCULATE, request_id=request_id)
    await caller.ended(first.batch_id)
    again = await caller.submit(items, CALCULATE, request_id=request_id.upper())
    assert (again.batch_id, again.state) == (first.batch_id, pb.BATCH_STATE_SUCCEEDED)
    assert (await engine.client().get("s1")).version == 1
    failure = await failure_of(caller.submit(4, PREDICT, request_id=request_id))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert failure.metadata == (("request_id", request_id),)
    others = await service(engine, subject="another").submit(items, CALCULATE, request_id=request_id)
    assert others.batch_id != first.batch_id


async def test_results_are_listed_page_by_page(engine: Engine) -> None:
    caller = service(engine)
    batch = await caller.submit(250)
    await caller.ended(batch.batch_id)
    indices: list[int] = []
    token = ""
    while True:
        page = await caller.page(batch.batch_id, page_token=token)
        indices += [result.index for result in page.results]
        token = page.next_page_token
        if not token:
            break
        assert len(page.results) == 100
    assert indices == list(range(250))
    other = await caller.submit(250)
    await caller.ended(other.batch_id)
    token = (await caller.page(batch.batch_id)).next_page_token
    failure = await failure_of(caller.page(other.batch_id, page_token=token))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_a_watcher_sees_a_batch_to_its_end(engine: Engine) -> None:
    caller = service(engine)
    batch = await caller.submit(1000, PREDICT)
    seen = [response.batch async for response in caller.watch(batch.batch_id)]
    assert seen[-1].state == pb.BATCH_STATE_SUCCEEDED
    assert [each.progress for each in seen] == sorted(each.progress for each in seen)
    assert all(each.state in (pb.BATCH_STATE_PENDING, pb.BATCH_STATE_RUNNING) for each in seen[:-1])
    last = seen[-1]
    assert last.create_time.ToMicroseconds() <= last.start_time.ToMicroseconds() <= last.end_time.ToMicroseconds()
    assert last.expire_time.seconds - last.create_time.seconds == 7 * 24 * 3600
    assert not last.HasField("remaining_duration")
    assert all(each.HasField("remaining_duration") for each in seen[:-1] if each.progress)


async def test_what_is_not_begun_when_a_batch_is_cancelled_never_is(redis_url: str) -> None:
    async with running_engine(redis_url, batch_chunks_at_once=0) as engine:
        caller = service(engine)
        batch = await caller.submit(
            [pb.BatchItem(student_id=f"s{number}", components=components()) for number in range(300)], CALCULATE
        )
        watch = caller.watch(batch.batch_id)
        assert (await watch.read()).batch.state == pb.BATCH_STATE_PENDING
        cancelled = await caller.cancel(batch.batch_id)
        assert (await watch.read()).batch == cancelled
        assert await watch.read() is grpc.aio.EOF
        assert cancelled.state == pb.BATCH_STATE_CANCELLED
        assert await caller.cancel(batch.batch_id) == cancelled
    async with running_engine(redis_url) as engine:
        caller = service(engine)
        after = await caller.submit(1)
        await caller.ended(after.batch_id)  # it was queued behind
        assert (await caller.page(batch.batch_id)).results == []
        assert (await failure_of(engine.client().get("s1"))).code is grpc.StatusCode.NOT_FOUND
        failure = await failure_of(caller.cancel(after.batch_id))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_ENDED")
        assert dict(failure.metadata) == {"batch_id": after.batch_id, "state": "succeeded"}


async def test_a_process_that_leaves_the_work_to_others_serves_them_all_the_same(redis_url: str) -> None:
    async with running_engine(redis_url, batch_chunks_at_once=0) as api, running_engine(redis_url) as worker:
        watch = service(api).watch((await service(api).submit(250)).batch_id)
        assert [response.batch async for response in watch][-1].state == pb.BATCH_STATE_SUCCEEDED
        assert await worker.is_serving()


# --- limits and bad input ---------------------------------------------------------------------------------


async def test_a_caller_has_so_many_batches_in_flight_and_no_more(redis_url: str) -> None:
    limits = {"max_batches_people": 2, "max_batches_services": 3, "batch_chunks_at_once": 0}
    async with running_engine(redis_url, **limits) as engine:
        for caller, limit in ((service(engine, role=Role.TEACHER), 2), (service(engine), 3)):
            batches = [await caller.submit() for _ in range(limit)]
            failure = await failure_of(caller.submit())
            assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN")
            assert dict(failure.metadata) == {"limit": str(limit), "subject": "batches"}
            assert failure.quota is not None
            await caller.cancel(batches[0].batch_id)
            await caller.submit()
        await service(engine, subject="another").submit()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"items": []}, "items"),
        ({"items": 1001}, "items"),
        ({"operation": 0}, "operation"),
        ({"operation": 9}, "operation"),
        ({"priority": 9}, "priority"),
        ({"request_id": "1"}, "request_id"),
        ({"school_id": "no school"}, "school_id"),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused_whole(
    engine: Engine, redis_server: RedisServer, fields: dict[str, Any], field: str
) -> None:
    failure = await failure_of(service(engine).submit(**fields))
    assert (failure.code, failure.reason, failure.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        [field],
    )
    with redis_server.client() as redis:
        assert list(redis.scan_iter("*batch*")) == []


async def test_what_is_no_batch_is_not_found_and_what_is_no_id_is_refused(engine: Engine) -> None:
    caller = service(engine)
    calls = (caller.get, caller.page, caller.cancel, lambda batch_id: caller.watch(batch_id).read())
    for call in calls:
        failure = await failure_of(call(event_id(1)))
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")
        assert failure.metadata == (("batch_id", event_id(1)),)
        assert failure.resource == ("mastery.v1.Batch", event_id(1))
        for wrong in ("", "*", "}{", "x" * 1000, event_id(1) + "\n"):
            assert (await failure_of(call(wrong))).fields == ["batch_id"]
    assert (await failure_of(caller.page(event_id(1), page_size=-1))).fields == ["page_size"]
    assert (await failure_of(caller.page(event_id(1), page_token="x" * 1025))).fields == ["page_token"]


# --- schools ----------------------------------------------------------------------------------------------


async def test_a_batch_stays_in_its_school(engine: Engine) -> None:
    north, south = (
        service(engine, role=Role.TEACHER, subject="t1", school_id=name) for name in ("north", "south")
    )
    batch = await north.submit(2, PREDICT)
    assert batch.school_id == "north"
    await north.ended(batch.batch_id)
    nowhere = service(engine)
    for stranger in (south, nowhere):
        for call in (stranger.get, stranger.page, stranger.cancel, lambda id_: stranger.watch(id_).read()):  # noqa: B023
            assert (await failure_of(call(batch.batch_id))).reason == "BATCH_NOT_FOUND"
    for call in (south.get, south.page):
        failure = await failure_of(call(batch.batch_id, school_id="north"))
        assert failure.reason == "OTHER_SCHOOL"
    assert (await nowhere.get(batch.batch_id, school_id="north")).item_count == 2
    namesake = await south.submit([pb.BatchItem(student_id="s0", components=components(0.5))], CALCULATE)
    [result] = await south.results(namesake)
    assert result.mastery.school_id == "south"
    assert (await failure_of(engine.client().get("s0", school_id="north"))).code is grpc.StatusCode.NOT_FOUND


# --- the audit log ----------------------------------------------------------------------------------------


async def test_who_reads_results_leaves_an_entry_about_each_student_whose_result_he_read(redis_url: str) -> None:
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine, opened_log(redis_url) as log:
        await learn(engine, school_id="north")
        teacher = service(engine, role=Role.TEACHER, subject="jane", school_id="north")
        batch = await teacher.submit([pb.BatchItem(student_id=each) for each in ("s0", "s1", "s2", "?")])
        await teacher.ended(batch.batch_id)
        await teacher.get(batch.batch_id)
        await teacher.page(batch.batch_id, page_size=2)
        found = (await entries_of(log, 3 + 4 + 2, "north"))[3:]
        pseudonyms = [await log.pseudonym_of(student(each, school_id="north")) for each in ("s0", "s1", "s2")]
        hashes = [each.hex() for each in pseudonyms if each]
        told = [(entry.method.rpartition("/")[2], entry.student_hash, entry.caller) for entry in found]
        assert (
            told
            == [
                *(("SubmitBatch", each, "jane") for each in hashes),
                ("SubmitBatch", "", "jane"),  # there was somebody else, who is nobody
                *(("ListBatchResults", each, "jane") for each in hashes[:2]),
            ]
        )


# --- erasure ----------------------------------------------------------------------------------------------


async def test_a_calculation_from_before_an_erasure_brings_nobody_back(
    redis_url: str, redis_server: RedisServer
) -> None:
    items = [pb.BatchItem(student_id=f"s{number}", components=components()) for number in range(3)]
    async with running_engine(redis_url, batch_chunks_at_once=0) as engine:
        batch = await service(engine).submit(items, CALCULATE)
        with redis_server.client() as redis:
            redis.set("erased:{s1}", erasure_mark(now()))
    async with running_engine(redis_url) as engine:
        caller = service(engine)
        results = await caller.results(batch)
        assert [result.student_id for result in results] == ["s0", "", "s2"]
        failure = failure_in(results[1].error)
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STUDENT_ERASED")
        assert "s1" not in str(results[1])
        assert (await failure_of(engine.client().get("s1"))).code is grpc.StatusCode.NOT_FOUND
        afterwards = await caller.submit(items, CALCULATE)
        assert [result.student_id for result in await caller.results(afterwards)] == ["s0", "s1", "s2"]
        assert (await engine.client().get("s1")).version == 1


async def test_an_erased_student_leaves_no_trace_in_batches(redis_url: str, redis_server: RedisServer) -> None:
    name = "somebody-with-a-long-name"
    items = [pb.BatchItem(student_id=each, components=components(0.5)) for each in ("s0", name, "s2", name)]
    items.append(pb.BatchItem(student_id=name))  # in error where components are needed, and about him all the same
    async with running_engine(redis_url, batch_chunks_at_once=0) as engine:
        waiting = await service(engine).submit(items, PREDICT)
    async with running_engine(redis_url) as engine:
        caller = service(engine)
        done = [
            await caller.submit(items, operation) for operation in (CALCULATE, RECALCULATE, PREDICT, RECOMMEND)
        ]
        for batch in (waiting, *done):
            await caller.ended(batch.batch_id)
    async with running_engine(redis_url, batch_chunks_at_once=0) as engine:
        cancelled = await service(engine).submit(items, CALCULATE)
        await service(engine).cancel(cancelled.batch_id)
        pending = await service(engine).submit(items, CALCULATE)
        assert any(key.startswith("batch:") for key in traces_of(redis_server, name))
        receipt = await erase(engine, name)
        counts = {each.kind: each.count for each in receipt.erased}
        assert counts[compliance_service_pb2.DATA_KIND_BATCH_RESULT] == 3 * 7
        await asyncio.sleep(0.5)  # the audit log is written behind the calls
    assert traces_of(redis_server, name) == []
    async with running_engine(redis_url) as engine:
        caller = service(engine)
        for batch in (waiting, *done, cancelled, pending):
            if batch != cancelled:
                assert (await caller.ended(batch.batch_id)).state == pb.BATCH_STATE_SUCCEEDED
            for result in (await caller.page(batch.batch_id)).results:
                is_erased = result.index in (1, 3, 4)
                assert result.student_id == ("" if is_erased else items[result.index].student_id)
                if is_erased:
                    assert failure_in(result.error).reason == "STUDENT_ERASED"
        await asyncio.sleep(0.5)
    assert traces_of(redis_server, name) == []


# --- Redis away -------------------------------------------------------------------------------------------


async def test_while_redis_is_away_callers_are_told_so_and_workers_wait(
    engine: Engine, redis_server: RedisServer
) -> None:
    caller = service(engine)
    batches = [await caller.submit(1000, PREDICT) for _ in range(3)]
    await caller.watch(batches[0].batch_id).read()
    redis_server.kill()
    try:
        calls = (
            caller.submit(),
            caller.get(batches[0].batch_id),
            caller.page(batches[0].batch_id),
            caller.cancel(batches[0].batch_id),
            caller.watch(batches[0].batch_id).read(),
        )
        for call in calls:
            failure = await failure_of(call)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
            assert failure.retry_delay is not None
        await asyncio.sleep(0.5)
    finally:
        redis_server.revive()
    await engine.until_ready()

    async def all_ended() -> bool:
        try:
            return all([(await caller.get(batch.batch_id)).state in ENDED for batch in batches])
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # the breaker is still open
                raise
            return False

    await eventually(all_ended, within=40)
    for batch in batches:
        ended = await caller.get(batch.batch_id)
        assert (ended.state, ended.succeeded_count, ended.failed_count) == (pb.BATCH_STATE_SUCCEEDED, 0, 1000)
    with redis_server.client() as redis:
        assert redis.xlen(keys.BATCHES_OPEN.replace("open", "normal")) == 0
