"""The JSON of items of batches and of what became of them, and the fields of a batch's state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mastery_grpc.application.batch_store import BatchItem, ItemForecast, ItemResult
from mastery_grpc.domain.batch import (
    Batch,
    BatchKey,
    BatchOperation,
    BatchPriority,
    chunk_count,
    item_event_id,
)
from mastery_grpc.domain.errors import (
    Contention,
    EventTooOld,
    InsufficientHistory,
    InvalidInput,
    ItemFailed,
    LogIncomplete,
    MasteryError,
    StudentErased,
    StudentNotFound,
    Violation,
)
from mastery_grpc.domain.recommendations import Recommendation
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mastery_grpc.application.batch_store import NewBatch

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- errors -----------------------------------------------------------------------------------------------


class _Fault(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """An error as it is kept: its kind, and what it tells."""


class _InvalidInput(_Fault, tag="invalid_input"):
    violations: tuple[tuple[str, str], ...]


class _StudentNotFound(_Fault, tag="student_not_found"):
    student_id: str


class _InsufficientHistory(_Fault, tag="insufficient_history"):
    student_id: str
    history_days: int
    required_days: int


class _LogIncomplete(_Fault, tag="log_incomplete"):
    student_id: str


class _EventTooOld(_Fault, tag="event_too_old"):
    event_id: str


class _StudentErased(_Fault, tag="student_erased"):
    event_id: str
    erase_time: datetime


class _Contention(_Fault, tag="contention"):
    message: str


class _ItemFailed(_Fault, tag="failed"):
    pass


_AnyFault = (
    _InvalidInput
    | _StudentNotFound
    | _InsufficientHistory
    | _LogIncomplete
    | _EventTooOld
    | _StudentErased
    | _Contention
    | _ItemFailed
)


def _fault(error: MasteryError) -> _AnyFault:
    match error:
        case InvalidInput():
            return _InvalidInput(tuple((each.field, each.reason) for each in error.violations))
        case StudentNotFound():
            return _StudentNotFound(error.resource_name)
        case InsufficientHistory():
            return _InsufficientHistory(error.student_id, error.history_days, error.required_days)
        case LogIncomplete():
            return _LogIncomplete(error.student_id)
        case EventTooOld():
            return _EventTooOld(error.event_id)
        case StudentErased():
            return _StudentErased(error.event_id, error.erase_time)
        case Contention():
            return _Contention(str(error))
        case ItemFailed():
            return _ItemFailed()
        case _:
            raise TypeError(f"{type(error).__name__} is not what an item fails with")


def _error(fault: _AnyFault) -> MasteryError:
    match fault:
        case _InvalidInput():
            return InvalidInput([Violation(*each) for each in fault.violations])
        case _StudentNotFound():
            return StudentNotFound(fault.student_id)
        case _InsufficientHistory():
            return InsufficientHistory(
                fault.student_id, history_days=fault.history_days, required_days=fault.required_days
            )
        case _LogIncomplete():
            return LogIncomplete(fault.student_id)
        case _EventTooOld():
            return EventTooOld(fault.event_id)
        case _StudentErased():
            return StudentErased(fault.event_id, fault.erase_time)
        case _Contention():
            return Contention(fault.message)
        case _:
            return ItemFailed()


# --- items and results ------------------------------------------------------------------------------------


class _Item(msgspec.Struct, omit_defaults=True):
    student_id: str
    components: Components | None = None
    error: _AnyFault | None = None


class _Result(msgspec.Struct, kw_only=True):
    """`ok` leads so that a script can read it without parsing the rest."""

    ok: bool
    student_id: str
    mastery: Mastery | msgspec.UnsetType = msgspec.UNSET
    prediction: ItemForecast | msgspec.UnsetType = msgspec.UNSET
    recommendations: tuple[Recommendation, ...] | msgspec.UnsetType = msgspec.UNSET
    error: _AnyFault | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode
_item_decoder = msgspec.json.Decoder(_Item)
_result_decoder = msgspec.json.Decoder(_Result)


def encode_item(item: BatchItem) -> bytes:
    """Returns an item as JSON."""
    return _encode(_Item(item.student_id, item.components, None if item.error is None else _fault(item.error)))


def decode_item(value: bytes) -> BatchItem:
    """Returns the item in a JSON text."""
    item = _item_decoder.decode(value)
    return BatchItem(item.student_id, item.components, None if item.error is None else _error(item.error))


def encode_result(result: ItemResult) -> bytes:
    """Returns a result as JSON."""
    match result.outcome:
        case MasteryError() as error:
            return _encode(_Result(ok=False, student_id=result.student_id, error=_fault(error)))
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
    return ItemResult(index, stored.student_id, ItemFailed() if not stored.error else _error(stored.error))


def encode_erased(batch_id: str, index: int, erase_time: datetime) -> tuple[bytes, bytes]:
    """Returns what stands in the place of an erased student's item, and of its result."""
    error = StudentErased(item_event_id(batch_id, index), erase_time)
    return encode_item(BatchItem("", error=error)), encode_result(ItemResult(index, "", error))


# --- the mark of an erasure -------------------------------------------------------------------------------


class _Mark(msgspec.Struct):
    erase_time: datetime


_mark_decoder = msgspec.json.Decoder(_Mark)


def erase_time_in(mark: bytes | None) -> datetime | None:
    """Returns when a student was erased, None for one who was not."""
    return None if mark is None else _mark_decoder.decode(mark).erase_time.astimezone(UTC)


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
