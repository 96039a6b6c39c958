"""A batch: one thing done with many students in the background, how it is cut up, and how far it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID, uuid5

MAX_ITEMS = 1000
CHUNK_SIZE = 100
"""Items that are worked on in one go."""
REQUESTS_NAMESPACE = UUID("1e0d4a5b-6f5c-5b5e-8d0f-8a0f3c1f9b47")
"""The uuid5 namespace of the ids of batches that were submitted under a request id."""


class BatchOperation(StrEnum):
    """What is done with each student."""

    CALCULATE = "calculate"
    RECALCULATE = "recalculate"
    PREDICT = "predict"
    RECOMMEND = "recommend"


class BatchPriority(StrEnum):
    """How urgent a batch is, the most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class BatchState(StrEnum):
    """How far a batch is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"


TURNS = tuple(
    {"h": BatchPriority.HIGH, "n": BatchPriority.NORMAL, "l": BatchPriority.LOW}[turn] for turn in "hhnhhnhl"
)
"""Whose turn it is first, time after time: the urgent go first, and none of the others waits for ever."""


def order_of(turn: int) -> tuple[BatchPriority, ...]:
    """Returns in which order priorities are asked for work at the n-th time."""
    first = TURNS[turn % len(TURNS)]
    return (first, *(priority for priority in BatchPriority if priority is not first))


class BatchKey(NamedTuple):
    """One batch of one school; an empty `school_id` is the default school."""

    batch_id: str
    """A UUID in lower case."""
    school_id: str = ""


class Chunk(NamedTuple):
    """A part of a batch that one worker works on."""

    batch: BatchKey
    number: int

    @property
    def places(self) -> range:
        """The places that its items have in the batch; the last chunk need not fill them."""
        return range(self.number * CHUNK_SIZE, (self.number + 1) * CHUNK_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How far a batch is."""

    key: BatchKey
    operation: BatchOperation
    priority: BatchPriority
    item_count: int
    succeeded_count: int = 0
    failed_count: int = 0
    create_time: datetime
    expire_time: datetime
    start_time: datetime | None = None
    """When its first item was begun."""
    end_time: datetime | None = None
    is_cancelled: bool = False

    @property
    def state(self) -> BatchState:
        """How far it is, in a word."""
        if self.end_time is not None:
            return BatchState.CANCELLED if self.is_cancelled else BatchState.SUCCEEDED
        return BatchState.PENDING if self.start_time is None else BatchState.RUNNING

    @property
    def done_count(self) -> int:
        """How many items have a result or an error."""
        return self.succeeded_count + self.failed_count

    @property
    def progress(self) -> float:
        """The share of the items that have a result or an error."""
        return self.done_count / self.item_count

    def remaining(self, now: datetime) -> timedelta | None:
        """Returns how long the rest will take if it goes on as it did; None where nothing is known or left."""
        if self.start_time is None or self.end_time is not None or not self.done_count:
            return None
        elapsed = max(now - self.start_time, timedelta())
        return elapsed * (self.item_count - self.done_count) / self.done_count


def chunk_count(item_count: int) -> int:
    """Returns into how many chunks a batch is cut."""
    return -(-item_count // CHUNK_SIZE)


def requested_batch_id(request_id: str, *asked_by: str) -> str:
    """Returns the id of the batch of a request: the same request of the same caller is the same batch."""
    return str(uuid5(REQUESTS_NAMESPACE, json.dumps([request_id, *asked_by])))


def item_event_id(batch_id: str, index: int) -> str:
    """Returns the id of the event that an item is applied as, however often it is applied."""
    return str(uuid5(UUID(batch_id), str(index)))


def item_event_time(create_time: datetime, index: int) -> datetime:
    """Returns the time of that event: that of the submission, later items later, so that the last one counts."""
    return create_time + timedelta(microseconds=index)
