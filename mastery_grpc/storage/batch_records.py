"""The JSON of items of batches and of what became of them, and the fields of a batch's state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mastery_grpc.application.batches.store import BatchItem, ItemForecast, ItemResult
from mastery_grpc.domain.batch import (
    Batch,
    BatchKey,
    BatchOperation,
    BatchPriority,
    chunk_count,
    item_event_id,
)
from mastery_grpc.domain.errors import ItemFailed, MasteryError, StudentErased
from mastery_grpc.domain.recommendations import Recommendation
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import Mastery
from mastery_grpc.storage.batch_faults import Fault, error_of, fault_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mastery_grpc.application.batches.store import NewBatch

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- items and results ------------------------------------------------------------------------------------


class _Item(msgspec.Struct, omit_defaults=True):
    student_id: str
    components: Components | None = None
    error: Fault | None = None


class _Result(msgspec.Struct, kw_only=True):
    """`ok` leads so that a script can read it without parsing the rest."""

    ok: bool
    student_id: str
    mastery: Mastery | msgspec.UnsetType = msgspec.UNSET
    prediction: ItemForecast | msgspec.UnsetType = msgspec.UNSET
    recommendations: tuple[Recommendation, ...] | msgspec.UnsetType = msgspec.UNSET
    error: Fault | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode
_item_decoder = msgspec.json.Decoder(_Item)
_result_decoder = msgspec.json.Decoder(_Result)


def encode_item(item: BatchItem) -> bytes:
    """Returns an item as JSON."""
    return _encode(_Item(item.student_id, item.components, None if item.error is None else fault_of(item.error)))


def decode_item(value: bytes) -> BatchItem:
    """Returns the item in a JSON text."""
    item = _item_decoder.decode(value)
    return BatchItem(item.student_id, item.components, None if item.error is None else error_of(item.error))


def encode_result(result: ItemResult) -> bytes:
    """Returns a result as JSON."""
    match result.outcome:
        case MasteryError() as error:
            return _encode(_Result(ok=False, student_id=result.student_id, error=fault_of(error)))
        case Mastery() as mastery:
            return _encode(_Result(ok=True, student_id=result.student_id, mastery=mastery))
        case ItemForecast() as prediction:
            return _encode(_Result(ok=True, student_id=result.student_id, prediction=prediction))
        case recommendations:
            return _encode(_Result(ok=True, student_id=result.student_id, recommendations=recommendations))


def decode_result(index: int, value: bytes) -> ItemResult:
    """Returns the result in a JSON text."""
    stored = _result_decoder.decode(value)
    for outcome in (stored.mastery, stored.prediction, stored.recommendations):
        if outcome is not msgspec.UNSET:
            return ItemResult(index, stored.student_id, outcome)
    return ItemResult(index, stored.student_id, ItemFailed() if not stored.error else error_of(stored.error))


def encode_erased(batch_id: str, index: int, erase_time: datetime) -> tuple[bytes, bytes]:
    """Returns what stands in the place of an erased student's item, and of its result."""
    error = StudentErased(item_event_id(batch_id, index), erase_time)
    return encode_item(BatchItem("", error=error)), encode_result(ItemResult(index, "", error))


# --- the state --------------------------------------------------------------------------------------------


class StoredBatch(NamedTuple):
    """The state of a batch, and what only its storage needs of it."""

    batch: Batch
    owner: str
    digest: str
    is_queued: bool
    done: frozenset[int]
    """The numbers of the chunks that are done."""


def micros(time: datetime) -> int:
    """Returns a time in microseconds of the epoch, as scripts compare it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(value: int | bytes) -> datetime:
    """Returns the time that `micros` told."""
    return _EPOCH + timedelta(microseconds=int(value))


def state_fields(new: NewBatch) -> dict[str, str | int]:
    """Returns the fields of the state of a new batch."""
    return {
        "operation": new.operation.value,
        "priority": new.priority.value,
        "items": len(new.items),
        "chunks": chunk_count(len(new.items)),
        "succeeded": 0,
        "failed": 0,
        "created": micros(new.create_time),
        "expires": micros(new.expire_time),
        "owner": new.owner,
        "digest": new.digest,
    }


def ended_state_fields(batch: Batch) -> dict[str, str | int]:
    """Returns the fields of the state of a batch that has ended, and of which nothing is known to be done."""
    fields: dict[str, str | int] = {
        "operation": batch.operation.value,
        "priority": batch.priority.value,
        "items": batch.item_count,
        "chunks": chunk_count(batch.item_count),
        "succeeded": 0,
        "failed": 0,
        "created": micros(batch.create_time),
        "expires": micros(batch.expire_time),
        "started": micros(batch.start_time or batch.create_time),
        "ended": micros(batch.end_time or batch.create_time),
        "owner": "",
        "digest": "",
        "queued": 1,
    }
    return fields | {"cancelled": 1} if batch.is_cancelled else fields


def decode_state(key: BatchKey, fields: Mapping[bytes, bytes]) -> StoredBatch | None:
    """Returns the state in the fields of a hash, None in those of none."""
    if b"created" not in fields:
        return None
    batch = Batch(
        key=key,
        operation=BatchOperation(fields[b"operation"].decode()),
        priority=BatchPriority(fields[b"priority"].decode()),
        item_count=int(fields[b"items"]),
        succeeded_count=int(fields[b"succeeded"]),
        failed_count=int(fields[b"failed"]),
        create_time=time_of(fields[b"created"]),
        expire_time=time_of(fields[b"expires"]),
        start_time=time_of(fields[b"started"]) if b"started" in fields else None,
        end_time=time_of(fields[b"ended"]) if b"ended" in fields else None,
        is_cancelled=b"cancelled" in fields,
    )
    done = frozenset(int(name[6:]) for name in fields if name.startswith(b"chunk:"))
    owner, digest = fields[b"owner"].decode(), fields[b"digest"].decode()
    return StoredBatch(batch, owner, digest, b"queued" in fields, done)


def fields_of(reply: object) -> dict[bytes, bytes]:
    """Returns the fields of a hash as a command or a script replies them."""
    if isinstance(reply, dict):
        return reply
    if not isinstance(reply, list):
        return {}
    return dict(zip(reply[::2], reply[1::2], strict=True))
