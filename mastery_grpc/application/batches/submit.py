"""The use case of handing in many students at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from mastery_grpc.application.batches.store import BatchItem, NewBatch
from mastery_grpc.application.callers import Caller
from mastery_grpc.domain.batch import Batch, BatchKey, BatchOperation, BatchPriority, requested_batch_id
from mastery_grpc.domain.errors import RequestIdReused

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from mastery_grpc.application.batches.store import BatchStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How many batches a caller may have in flight; 0: any number."""

    people: int = 10
    services: int = 100

    def of(self, caller: Caller) -> int:
        """Returns the limit of a caller."""
        return self.people if caller.role.is_person else self.services


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is handed in, and by whom."""

    caller: Caller
    school_id: str
    operation: BatchOperation
    priority: BatchPriority
    items: Sequence[BatchItem]
    """1 to 1000 of them."""
    request_id: str = ""
    """A UUID in lower case; a repeat by the same caller has no effect. Empty for a call that always counts."""


class SubmitBatch:
    """Takes batches; whoever works on them is another's business."""

    def __init__(
        self,
        store: BatchStore,
        *,
        limits: BatchLimits,
        lifetime: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        """`lifetime`: how long a batch is kept from now on."""
        self._store = store
        self._limits = limits
        self._lifetime = lifetime
        self._clock = clock

    async def __call__(self, submission: Submission) -> Batch:
        """Returns the batch. Raises TooManyOpen, RequestIdReused; StorageUnavailable, and repeating is safe."""
        caller, request_id = submission.caller, submission.request_id
        owner = (caller.school_id, caller.role.value, caller.subject)
        asked_by = submission.school_id, *owner
        batch_id = requested_batch_id(request_id, *asked_by) if request_id else str(uuid4())
        now = self._clock()
        new = NewBatch(
            key=BatchKey(batch_id, submission.school_id),
            operation=submission.operation,
            priority=submission.priority,
            items=submission.items,
            create_time=now,
            expire_time=now + self._lifetime,
            owner=_digest(owner),
            digest=_digest([submission.operation, submission.priority, *map(_told, submission.items)]),
        )
        try:
            return await self._store.submit(new, most_open=self._limits.of(caller))
        except RequestIdReused:
            raise RequestIdReused(request_id) from None


def _told(item: BatchItem) -> list[object]:
    told: list[object] = [item.student_id, item.error and str(item.error)]
    if (given := item.components) is not None:
        told += given.completion, given.quiz, given.quality, given.consistency
    return told


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
