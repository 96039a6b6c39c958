"""The batches on Redis: four keys each, which share a slot, and the queues of chunks, which share another one.

No script reaches both, nor the students. So a batch is handed in by steps that can be repeated: counted among the
open ones, stored, noted with its students, queued. Where the process dies between them, a repeat of the call goes
on from there, or whoever looks for lost chunks does.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from mastery_grpc.domain.batch import Batch, BatchKey, BatchState, chunk_count
from mastery_grpc.domain.errors import (
    BatchEnded,
    BatchNotFound,
    RequestIdReused,
    StorageUnavailable,
    TooManyOpen,
)
from mastery_grpc.domain.events import StudentKey, student_violations
from mastery_grpc.storage import batch_records as records
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import Replicas, run_guarded
from mastery_grpc.storage.records import decode_mark
from mastery_grpc.storage.script import Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from mastery_grpc.application.batches.store import BatchItem, ItemResult, NewBatch
    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.storage.batch_records import StoredBatch
    from mastery_grpc.storage.connection import Command, RedisClient

GROUP = "workers"
_OPEN, _CREATE, _INDEX, _MARK_QUEUED, _CANCEL = (
    Script(f"batch_{name}.lua") for name in ("open", "create", "index", "mark_queued", "cancel")
)
QUEUE, ERASE = Script("batch_queue.lua"), Script("batch_erase.lua")


class RedisBatchStore:
    """Implements `BatchStore`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        lifetime: timedelta,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """`lifetime`: how long batches are kept. With a breaker, calls are refused at once while Redis is away."""
        self._client = client
        self._lifetime = math.ceil(lifetime.total_seconds())
        self._replicas = replicas
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)

    async def submit(self, new: NewBatch, *, most_open: int) -> Batch:
        stored = await self._find(new.key)
        if stored is None:
            if not await self._open(new, most_open):
                raise TooManyOpen("batches", most_open)
            stored = await self._create(new)
        if stored.digest != new.digest:
            raise RequestIdReused("")
        if not stored.is_queued and stored.batch.end_time is None:
            await self.queue_all(stored, dict(enumerate(new.items)))
        return stored.batch

    async def load(self, key: BatchKey) -> Batch:
        if (stored := await self._find(key)) is None:
            raise BatchNotFound(key.batch_id)
        return stored.batch

    async def load_results(self, key: BatchKey, indices: range) -> list[ItemResult]:
        if not indices:
            return []
        [found] = await self._run([("HMGET", keys.batch_results(key), *indices)])
        return [
            records.decode_result(index, value)
            for index, value in zip(indices, found, strict=True)
            if value is not None
        ]

    async def load_scores(self, key: BatchKey) -> list[float]:
        [found] = await self._run([("ZRANGE", keys.batch_scores(key), 0, -1, "WITHSCORES")])
        pairs = (
            found if not found or isinstance(found[0], list | tuple) else zip(found[::2], found[1::2], strict=True)
        )
        return [float(score) for _, score in pairs]

    async def cancel(self, key: BatchKey, now: datetime) -> Batch:
        call = 1, keys.batch_state(key), records.micros(now), *announcement(key)
        [reply] = await _CANCEL.run(self._client, self._guard, [call])
        if (stored := records.decode_state(key, records.fields_of(reply))) is None:
            raise BatchNotFound(key.batch_id)
        if stored.batch.state is BatchState.SUCCEEDED:
            raise BatchEnded(key.batch_id, stored.batch.state.value)
        await self._run(closing(key, stored.owner))
        return stored.batch

    async def queue_all(self, stored: StoredBatch, items: Mapping[int, BatchItem]) -> None:
        """Notes a batch that is stored with its students, and queues it. Repeating is safe."""
        key = stored.batch.key
        await self._note(stored.batch, items)
        chunks = range(chunk_count(stored.batch.item_count))
        await QUEUE.run(self._client, self._guard, [queueing(stored.batch, chunks, self._lifetime)])
        await _MARK_QUEUED.run(self._client, self._guard, [(1, keys.batch_state(key))])

    async def _find(self, key: BatchKey) -> StoredBatch | None:
        [reply] = await self._run([("HGETALL", keys.batch_state(key))])
        return records.decode_state(key, records.fields_of(reply))

    async def _open(self, new: NewBatch, most_open: int) -> bool:
        terms = open_name(new.key, new.owner), records.micros(new.create_time), most_open, self._lifetime
        call = 2, keys.BATCHES_OPEN, keys.batches_open_of(new.owner), *terms
        [reply] = await _OPEN.run(self._client, self._guard, [call])
        return bool(reply)

    async def _create(self, new: NewBatch) -> StoredBatch:
        state = records.state_fields(new)
        call = (
            2,
            keys.batch_state(new.key),
            keys.batch_items(new.key),
            records.micros(new.expire_time) // 1000,
            len(state),
            *(part for pair in state.items() for part in pair),
            *(part for index, item in enumerate(new.items) for part in (index, records.encode_item(item))),
        )
        [reply] = await _CREATE.run(self._client, self._guard, [call], self._replicas)
        stored = records.decode_state(new.key, records.fields_of(reply))
        if stored is None:
            raise StorageUnavailable("redis: a batch was dropped as soon as it was stored")
        return stored

    async def _note(self, batch: Batch, items: Mapping[int, BatchItem]) -> None:
        """Notes with each student where he stands; whoever was erased meanwhile is taken out again."""
        places = places_of(batch.key, items)
        now, end = records.micros(batch.create_time) // 1000, records.micros(batch.expire_time) // 1000
        calls = [
            (
                2,
                keys.student_batches(student),
                keys.erased(student),
                now,
                end,
                *(f"{batch.key.batch_id}/{index}" for index in indices),
            )
            for student, indices in places.items()
        ]
        marks = await _INDEX.run(self._client, self._guard, calls)
        marked = zip(places.values(), marks, strict=True)
        await ERASE.run(self._client, self._guard, erasing(batch.key, marked))


def announcement(key: BatchKey) -> tuple[str, str]:
    """Returns on which channel a change of a batch is announced, and how."""
    return keys.BATCH_ANNOUNCEMENTS, f"{key.school_id}/{key.batch_id}"


def open_name(key: BatchKey, owner: str) -> str:
    """Returns the name of a batch among those that are open."""
    return f"{key.school_id}/{key.batch_id}/{owner}"


def closing(key: BatchKey, owner: str) -> list[Command]:
    """Returns the commands by which a batch is not open any more."""
    name = open_name(key, owner)
    return [("ZREM", keys.BATCHES_OPEN, name), ("ZREM", keys.batches_open_of(owner), name)]


def queueing(batch: Batch, chunks: Iterable[int], lifetime: int) -> Sequence[Any]:
    """Returns the call of the script that queues chunks of a batch; the queue lives for so many seconds then."""
    queue, (batch_id, school_id) = keys.batch_queue(batch.priority), batch.key
    return 1, queue, GROUP, lifetime, keys.BATCH_ANNOUNCEMENTS, school_id, batch_id, *chunks


def places_of(key: BatchKey, items: Mapping[int, BatchItem]) -> dict[StudentKey, list[int]]:
    """Returns where each student stands in a batch; what is no id of a student names none."""
    places: dict[str, list[int]] = {}
    for index, item in items.items():
        places.setdefault(item.student_id, []).append(index)
    students = {StudentKey(student_id, key.school_id): indices for student_id, indices in places.items()}
    return {
        student: indices
        for student, indices in students.items()
        # Only an item in error can have such an id, and then it need not.
        if items[indices[0]].error is None or not any(student_violations(student))
    }


def erasing(key: BatchKey, marked: Iterable[tuple[Sequence[int], bytes | None]]) -> list[Sequence[Any]]:
    """Returns the calls of the script that take students with a mark out of their places in a batch."""
    return [erasure(key, indices, decode_mark(mark).erase_time) for indices, mark in marked if mark is not None]


def erasure(key: BatchKey, indices: Sequence[int], erase_time: datetime) -> Sequence[Any]:
    """Returns the call of the script that takes a student out of his places in a batch, unless that was submitted
    after he was erased."""
    names = keys.batch_state(key), keys.batch_items(key), keys.batch_results(key), keys.batch_scores(key)
    call: list[Any] = [len(names), *names, records.micros(erase_time), *announcement(key)]
    for index in indices:
        call += index, *records.encode_erased(key.batch_id, index, erase_time)
    return call
