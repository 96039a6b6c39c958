"""The queues of chunks on Redis: one stream for each priority, read by one consumer group.

All workers are the same consumer. Whether one works on a chunk is told by how long ago he was last heard of, so
that nobody has to clean up after those who died.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from mastery_grpc.application.batches.store import (
    CLAIM_SECONDS,
    LOST_SECONDS,
    BegunChunk,
    ItemResult,
    TakenChunk,
)
from mastery_grpc.domain.batch import BatchKey, BatchPriority, Chunk, chunk_count
from mastery_grpc.storage import batch_records as records
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import Replicas, run_guarded
from mastery_grpc.storage.redis_batches import (
    ERASE,
    GROUP,
    QUEUE,
    RedisBatchStore,
    announcement,
    closing,
    erasing,
    places_of,
    queueing,
)
from mastery_grpc.storage.script import Script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from mastery_grpc.application.batches.store import BatchItem
    from mastery_grpc.domain.batch import Batch
    from mastery_grpc.storage.batch_records import StoredBatch
    from mastery_grpc.storage.connection import Command, RedisClient

CONSUMER = "worker"
SCAN_PORTION = 1000
_UPKEEP_CLAIM = 5
"""Seconds in which chunks that were lost are looked for by one worker only."""
_TAKE, _BEGIN, _FINISH = (Script(f"batch_{name}.lua") for name in ("take", "begin", "finish"))


class RedisBatchWork:
    """Implements `BatchWork`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        lifetime: timedelta,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
    ) -> None:
        """`lifetime`: how long batches are kept. No breaker: this goes on behind the calls."""
        self._client = client
        self._lifetime = math.ceil(lifetime.total_seconds())
        self._replicas = replicas
        self._store = RedisBatchStore(client, lifetime=lifetime, replicas=replicas)
        self._run = partial(run_guarded, client, nullcontext)

    async def take(self, order: Sequence[BatchPriority]) -> TakenChunk | None:
        queues = map(keys.batch_queue, order)
        [reply] = await self._call(_TAKE, len(order), *queues, GROUP, CONSUMER, int(1000 * CLAIM_SECONDS))
        if reply is None:
            return None
        place, entry_id, fields, deliveries = reply
        return TakenChunk(_chunk_in(fields), order[place - 1], entry_id.decode(), deliveries)

    async def keep(self, taken: TakenChunk) -> None:
        queue, terms = keys.batch_queue(taken.priority), ("RETRYCOUNT", taken.deliveries)
        await self._run([("XCLAIM", queue, GROUP, CONSUMER, 0, taken.entry_id, *terms)])

    async def begin(self, taken: TakenChunk, now: datetime) -> BegunChunk | None:
        key, number = taken.chunk
        names = keys.batch_state(key), keys.batch_items(key)
        places = taken.chunk.places
        terms = number, records.micros(now), *announcement(key), *places
        [(what, *told)] = await self._call(_BEGIN, len(names), *names, *terms)
        if what == 0:
            await self._run(_taking_off(taken))
            return None
        fields, values = told
        stored = records.decode_state(key, records.fields_of(fields))
        items = {
            index: records.decode_item(value)
            for index, value in zip(places, values, strict=True)
            if value is not None
        }
        if stored is None or what == 1:
            await self._settle(taken, items, None if stored is None else _owner_of_ended(stored))
            return None
        return BegunChunk(taken, stored.batch, items)

    async def finish(self, begun: BegunChunk, results: Sequence[ItemResult], now: datetime) -> None:
        key, number = begun.taken.chunk
        names = keys.batch_state(key), keys.batch_results(key), keys.batch_scores(key)
        call: list[Any] = [len(names), *names, number, records.micros(now), *announcement(key)]
        for result in results:
            score = result.score
            call += result.index, records.encode_result(result), "" if score is None else score
        [has_ended] = await _FINISH.run(self._client, nullcontext, [call], self._replicas)
        owner = None
        if has_ended:
            [owner] = await self._run([("HGET", keys.batch_state(key), "owner")])
        await self._settle(begun.taken, begun.items, owner and owner.decode())

    async def requeue_lost(self, now: datetime) -> int:
        """Puts right what was left half-way: a batch that was not queued or not closed, a chunk that was lost.

        A queue and the batches behind it may be on different servers, of which one may lose its last writes.
        """
        [claimed] = await self._run([("EXISTS", keys.BATCHES_OPEN)])
        if not claimed:
            return 0
        [claimed] = await self._run([("SET", keys.BATCH_UPKEEP, 1, "NX", "EX", _UPKEEP_CLAIM)])
        if not claimed:
            return 0
        queued = await self._queued()  # before the states: what is done in between is done
        before = records.micros(now - timedelta(seconds=LOST_SECONDS))
        [names] = await self._run([("ZRANGEBYSCORE", keys.BATCHES_OPEN, "-inf", before)])
        lost = 0
        for name in names:
            school_id, batch_id, owner = name.decode().split("/")
            key = BatchKey(batch_id, school_id)
            [reply] = await self._run([("HGETALL", keys.batch_state(key))])
            stored = records.decode_state(key, records.fields_of(reply))
            if stored is None or stored.batch.end_time is not None:
                await self._run(closing(key, owner))
                continue
            batch = stored.batch
            if not stored.is_queued:
                await self._store.queue_all(stored, await self._items(batch))
                lost += chunk_count(batch.item_count)
                continue
            missing = set(range(chunk_count(batch.item_count))) - stored.done
            missing = {number for number in missing if Chunk(key, number) not in queued}
            if missing:
                await self._call(QUEUE, *queueing(batch, sorted(missing), self._lifetime))
                lost += len(missing)
        return lost

    async def _settle(self, taken: TakenChunk, items: Mapping[int, BatchItem], owner_of_ended: str | None) -> None:
        """Takes out who was erased while the chunk was worked on, and the chunk off its queue."""
        places = places_of(taken.chunk.batch, items)
        marks = await self._run([("GET", keys.erased(student)) for student in places])
        marked = zip(places.values(), marks, strict=True)
        await ERASE.run(self._client, nullcontext, erasing(taken.chunk.batch, marked))
        ended = [] if owner_of_ended is None else closing(taken.chunk.batch, owner_of_ended)
        await self._run([*_taking_off(taken), *ended])

    async def _call(self, script: Script, *call: Any) -> list[Any]:
        return await script.run(self._client, nullcontext, [call])

    async def _items(self, batch: Batch) -> dict[int, BatchItem]:
        [reply] = await self._run([("HGETALL", keys.batch_items(batch.key))])
        return {int(index): records.decode_item(value) for index, value in records.fields_of(reply).items()}

    async def _queued(self) -> set[Chunk]:
        found: set[Chunk] = set()
        for priority in BatchPriority:
            start = "-"
            while True:
                [entries] = await self._run(
                    [("XRANGE", keys.batch_queue(priority), start, "+", "COUNT", SCAN_PORTION)]
                )
                found.update(_chunk_in(fields) for _, fields in entries)
                if len(entries) < SCAN_PORTION:
                    break
                start = f"({entries[-1][0].decode()}"
        return found


def _taking_off(taken: TakenChunk) -> list[Command]:
    # Deleted first: of what is not pending any more, nobody would ever hear again.
    queue = keys.batch_queue(taken.priority)
    return [("XDEL", queue, taken.entry_id), ("XACK", queue, GROUP, taken.entry_id)]


def _owner_of_ended(stored: StoredBatch) -> str | None:
    return None if stored.batch.end_time is None else stored.owner


def _chunk_in(fields: Any) -> Chunk:
    told = records.fields_of(fields)
    return Chunk(BatchKey(told[b"batch"].decode(), told[b"school"].decode()), int(told[b"chunk"]))
