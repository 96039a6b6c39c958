"""What a batch holds about one student as one line of JSON, to be put back elsewhere."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.domain.batch import MAX_ITEMS, Batch, BatchKey, BatchOperation, BatchPriority
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.storage.batch_records import decode_item, decode_result

if TYPE_CHECKING:
    from mastery_grpc.application.batches.store import BatchItem, ItemResult
    from mastery_grpc.domain.events import StudentKey

NOTHING = msgspec.Raw(b"null")
_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class HeldBatchItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One item of a batch, and as much of the batch as it takes to read it; its fields are those of the JSON."""

    batch_id: str
    index: int
    operation: BatchOperation
    priority: BatchPriority
    item_count: int
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None = None
    item: msgspec.Raw
    result: msgspec.Raw = NOTHING

    def batch(self, school_id: str) -> Batch:
        """Returns the batch of which this is put back: one that has ended, and that nobody works on any more."""
        return Batch(
            key=BatchKey(self.batch_id, school_id),
            operation=self.operation,
            priority=self.priority,
            item_count=self.item_count,
            create_time=self.create_time,
            expire_time=self.expire_time,
            start_time=self.create_time,
            end_time=self.end_time or self.create_time,
            is_cancelled=self.end_time is None,
        )

    def decoded(self) -> tuple[BatchItem, ItemResult | None]:
        """Returns the item, and what became of it."""
        is_there = self.result != NOTHING
        return decode_item(bytes(self.item)), decode_result(self.index, bytes(self.result)) if is_there else None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(HeldBatchItem)


def encode_held(batch: Batch, index: int, item: bytes, result: bytes | None) -> bytes:
    """Returns an item of a batch, given as JSON, and what became of it."""
    return _encode(
        HeldBatchItem(
            batch_id=batch.key.batch_id,
            index=index,
            operation=batch.operation,
            priority=batch.priority,
            item_count=batch.item_count,
            create_time=batch.create_time,
            expire_time=batch.expire_time,
            end_time=batch.end_time,
            item=msgspec.Raw(item),
            result=NOTHING if result is None else msgspec.Raw(result),
        )
    )


def decode_held(value: bytes, student: StudentKey) -> HeldBatchItem:
    """Returns the item in a JSON text. Raises InvalidInput for one that is not about the student."""
    try:
        held = _decoder.decode(value)
        item, _ = held.decoded()
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
        raise InvalidInput.of("json", "is not an item of a batch") from None
    is_of_batch = 0 <= held.index < held.item_count <= MAX_ITEMS and _is_uuid(held.batch_id)
    is_dated = held.create_time.tzinfo is not None and held.expire_time.tzinfo is not None
    if item.student_id != student.student_id or not is_of_batch or not is_dated:
        raise InvalidInput.of("json", "is not an item of a batch of this student")
    return held
