"""The batches in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from mastery_grpc.application.batches.store import (
    CLAIM_SECONDS,
    BatchItem,
    BegunChunk,
    ItemResult,
    NewBatch,
    TakenChunk,
)
from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.batch import Batch, BatchKey, BatchPriority, BatchState, Chunk, chunk_count, item_event_id
from mastery_grpc.domain.errors import (
    BatchEnded,
    BatchNotFound,
    MasteryError,
    RequestIdReused,
    StudentErased,
    TooManyOpen,
)
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage.batch_feed import LocalBatchFeed
from mastery_grpc.storage.batch_records import encode_item, encode_result
from mastery_grpc.storage.held_batch_records import decode_held, encode_held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class _Kept:
    """One batch."""

    new: NewBatch
    batch: Batch
    items: dict[int, BatchItem]
    results: dict[int, ItemResult] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)


@dataclass
class _Entry:
    """A chunk in a queue."""

    entry_id: str
    chunk: Chunk
    taken_at: float | None = None
    deliveries: int = 0


class MemoryBatches:
    """Implements `BatchStore`, `BatchWork` and `HeldData`; its feed tells of all that happens. Nothing expires."""

    def __init__(self, *, timer: Callable[[], float]) -> None:
        """`timer`: monotonic, in seconds; by it a worker counts as gone."""
        self.feed = LocalBatchFeed()
        self.erased: dict[StudentKey, datetime] = {}
        """The marks of erasures."""
        self._timer = timer
        self._kept: dict[BatchKey, _Kept] = {}
        self._queues: dict[BatchPriority, deque[_Entry]] = {priority: deque() for priority in BatchPriority}
        self._numbers = count(1)

    async def submit(self, new: NewBatch, *, most_open: int) -> Batch:
        kept = self._kept.get(new.key)
        if kept is not None:
            if kept.new.digest != new.digest:
                raise RequestIdReused("")
            return kept.batch
        open_ones = [
            each for each in self._kept.values() if each.new.owner == new.owner and each.batch.end_time is None
        ]
        if most_open and len(open_ones) >= most_open:
            raise TooManyOpen("batches", most_open)
        batch = Batch(
            key=new.key,
            operation=new.operation,
            priority=new.priority,
            item_count=len(new.items),
            create_time=new.create_time,
            expire_time=new.expire_time,
        )
        kept = self._kept[new.key] = _Kept(new, batch, dict(enumerate(new.items)))
        self._take_out_erased(kept)
        for number in range(chunk_count(len(new.items))):
            self._queues[new.priority].append(_Entry(str(next(self._numbers)), Chunk(new.key, number)))
        self.feed.queued()
        return batch

    async def load(self, key: BatchKey) -> Batch:
        return self._found(key).batch

    async def load_results(self, key: BatchKey, indices: range) -> list[ItemResult]:
        kept = self._kept.get(key)
        return [kept.results[index] for index in indices if index in kept.results] if kept else []

    async def load_scores(self, key: BatchKey) -> list[float]:
        kept = self._kept.get(key)
        scores = (result.score for result in kept.results.values()) if kept else ()
        return sorted(score for score in scores if score is not None)

    async def cancel(self, key: BatchKey, now: datetime) -> Batch:
        kept = self._found(key)
        if kept.batch.state is BatchState.SUCCEEDED:
            raise BatchEnded(key.batch_id, BatchState.SUCCEEDED.value)
        if kept.batch.end_time is None:
            kept.batch = replace(kept.batch, end_time=now, is_cancelled=True)
            self.feed.changed(key)
        return kept.batch

    async def take(self, order: Sequence[BatchPriority]) -> TakenChunk | None:
        now = self._timer()
        for priority in order:
            for entry in self._queues[priority]:
                if entry.taken_at is None or now - entry.taken_at >= CLAIM_SECONDS:
                    entry.taken_at = now
                    entry.deliveries += 1
                    return TakenChunk(entry.chunk, priority, entry.entry_id, entry.deliveries)
        return None

    async def keep(self, taken: TakenChunk) -> None:
        for entry in self._queues[taken.priority]:
            if entry.entry_id == taken.entry_id:
                entry.taken_at = self._timer()

    async def begin(self, taken: TakenChunk, now: datetime) -> BegunChunk | None:
        key, number = taken.chunk
        kept = self._kept.get(key)
        if kept is None or number in kept.done or kept.batch.end_time is not None:
            self._take_off(taken)
            return None
        if kept.batch.start_time is None:
            kept.batch = replace(kept.batch, start_time=now)
            self.feed.changed(key)
        items = {index: kept.items[index] for index in taken.chunk.places if index in kept.items}
        return BegunChunk(taken, kept.batch, items)

    async def finish(self, begun: BegunChunk, results: Sequence[ItemResult], now: datetime) -> None:
        key, number = begun.taken.chunk
        kept = self._kept.get(key)
        if kept is not None and number not in kept.done:
            kept.done.add(number)
            kept.results |= {result.index: result for result in results}
            if len(kept.done) == chunk_count(kept.batch.item_count) and kept.batch.end_time is None:
                kept.batch = replace(kept.batch, end_time=now)
            self._count(kept)
            self._take_out_erased(kept)
        self._take_off(begun.taken)

    async def requeue_lost(self, now: datetime) -> int:
        return 0

    def lose(self, taken: TakenChunk) -> None:
        """Forgets who took a chunk, as if he had not been heard of for long."""
        for entry in self._queues[taken.priority]:
            if entry.entry_id == taken.entry_id:
                entry.taken_at = self._timer() - timedelta(days=1).total_seconds()

    def mark_erased(self, student: StudentKey, erase_time: datetime) -> None:
        """Sets the mark of an erasure."""
        self.erased[student] = erase_time

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
        self.erased.clear()
        for queue in self._queues.values():
            queue.clear()

    @property
    def kind(self) -> DataKind:
        return DataKind.BATCH_RESULT

    async def held(self, student: StudentKey) -> list[bytes]:
        found = {}
        for kept in self._kept.values():
            key = kept.batch.key
            for index, item in kept.items.items():
                if StudentKey(item.student_id, key.school_id) == student:
                    result = kept.results.get(index)
                    found[key.batch_id, index] = encode_held(
                        kept.batch, index, encode_item(item), None if result is None else encode_result(result)
                    )
        return [found[place] for place in sorted(found)]

    async def erase(self, student: StudentKey) -> int:
        return sum(self._take_out_erased(kept, student) for kept in self._kept.values())

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        given = [decode_held(record, student) for record in records]
        wanted = {(held.batch_id, held.index) for held in given}
        for kept in self._kept.values():
            for index, item in list(kept.items.items()):
                is_his = StudentKey(item.student_id, kept.batch.key.school_id) == student
                if is_his and (kept.batch.key.batch_id, index) not in wanted:
                    self._take_out(kept, index, kept.batch.create_time)
            self._count(kept)
        for held in given:
            if held.expire_time <= datetime.now(UTC):
                continue
            batch = held.batch(student.school_id)
            item, result = held.decoded()
            new = NewBatch(
                key=batch.key,
                operation=batch.operation,
                priority=batch.priority,
                items=(),
                create_time=batch.create_time,
                expire_time=batch.expire_time,
                owner="",
                digest="",
            )
            kept = self._kept.setdefault(batch.key, _Kept(new, batch, {}))
            kept.items[held.index] = item
            if result is not None:
                kept.results[held.index] = result
            self._count(kept)

    def _found(self, key: BatchKey) -> _Kept:
        if (kept := self._kept.get(key)) is None:
            raise BatchNotFound(key.batch_id)
        return kept

    def _take_off(self, taken: TakenChunk) -> None:
        queue = self._queues[taken.priority]
        self._queues[taken.priority] = deque(entry for entry in queue if entry.entry_id != taken.entry_id)

    def _take_out_erased(self, kept: _Kept, only: StudentKey | None = None) -> int:
        replaced = 0
        for index, item in dict(kept.items).items():
            student = StudentKey(item.student_id, kept.new.key.school_id)
            erase_time = self.erased.get(student)
            if erase_time is None or kept.batch.create_time > erase_time or only not in (None, student):
                continue
            self._take_out(kept, index, erase_time)
            replaced += 1
        for index, result in dict(kept.results).items():
            item = kept.items[index]
            if result.student_id and not item.student_id and item.error is not None:
                kept.results[index] = ItemResult(index, "", item.error)
        self._count(kept)
        return replaced

    def _take_out(self, kept: _Kept, index: int, erase_time: datetime) -> None:
        error = StudentErased(item_event_id(kept.new.key.batch_id, index), erase_time)
        kept.items[index] = BatchItem("", error=error)
        if index in kept.results:
            kept.results[index] = ItemResult(index, "", error)

    def _count(self, kept: _Kept) -> None:
        failed = sum(isinstance(result.outcome, MasteryError) for result in kept.results.values())
        succeeded = len(kept.results) - failed
        kept.batch = replace(kept.batch, succeeded_count=succeeded, failed_count=failed)
        self.feed.changed(kept.new.key)
