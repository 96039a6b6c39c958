"""What batches on Redis hold about one student: his items, and what became of them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mastery_grpc.application.data_kinds import DataKind
from mastery_grpc.domain.batch import MAX_ITEMS, BatchKey, BatchOperation, BatchPriority, chunk_count
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.storage import batch_records, keys
from mastery_grpc.storage.connection import run_guarded
from mastery_grpc.storage.redis_batches import erasure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.batch_records import StoredBatch
    from mastery_grpc.storage.connection import Command, RedisClient

_RESTORE = files("mastery_grpc.storage").joinpath("batch_restore.lua").read_text()


class _Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One item of a batch, and as much of the batch as it takes to read it."""

    batch_id: str
    index: int
    operation: BatchOperation
    priority: BatchPriority
    item_count: int
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None = None
    item: msgspec.Raw
    result: msgspec.Raw = msgspec.Raw(b"")


class _Place(NamedTuple):
    batch_id: str
    place: int


_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Record)


class RedisHeldBatches:
    """Implements `HeldData`."""

    kind = DataKind.BATCH_RESULT

    def __init__(
        self,
        client: RedisClient,
        *,
        clock: Callable[[], datetime],
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._clock = clock
        self._run = partial(run_guarded, client, nullcontext if breaker is None else breaker.guard)

    async def held(self, student: StudentKey) -> list[bytes]:
        found = []
        for place in await self._places(student):
            key = BatchKey(place.batch_id, student.school_id)
            fields, item, result = await self._run(
                [
                    ("HGETALL", keys.batch_state(key)),
                    ("HGET", keys.batch_items(key), place.place),
                    ("HGET", keys.batch_results(key), place.place),
                ]
            )
            stored = batch_records.decode_state(key, batch_records.fields_of(fields))
            # One who was erased from it, and whose place is only still noted, has no name there.
            if stored is not None and item is not None and batch_records.decode_item(item).student_id:
                found.append(_encode(_record(stored, place.place, item, result)))
        return found

    async def erase(self, student: StudentKey) -> int:
        [mark] = await self._run([("GET", keys.erased(student))])
        erase_time = batch_records.erase_time_in(mark) or self._clock()
        count = 0
        for place in await self._places(student):
            key = BatchKey(place.batch_id, student.school_id)
            [replaced] = await self._run([erasure(key, [place.place], erase_time)])
            count += max(replaced, 0)
            if replaced >= 0:  # else the batch was submitted after he was erased: it is of a new beginning
                await self._run([("ZREM", keys.student_batches(student), _member(place))])
        return count

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        given = [_decoded(record, student) for record in records]
        wanted = {_Place(record.batch_id, record.index) for record in given}
        for place in await self._places(student):
            if place not in wanted:
                key = BatchKey(place.batch_id, student.school_id)
                await self._run([erasure(key, [place.place], self._clock())])
                await self._run([("ZREM", keys.student_batches(student), _member(place))])
        for record in given:
            if record.expire_time > self._clock():
                await self._restore(student, record)

    async def _restore(self, student: StudentKey, record: _Record) -> None:
        key = BatchKey(record.batch_id, student.school_id)
        state = _ended_state(record)
        result = bytes(record.result)
        score = batch_records.decode_result(record.index, result).score if result else None
        names = keys.batch_state(key), keys.batch_items(key), keys.batch_results(key), keys.batch_scores(key)
        end = batch_records.micros(record.expire_time) // 1000
        command: list[Any] = ["EVAL", _RESTORE, len(names), *names, end, len(state)]
        command += (part for pair in state.items() for part in pair)
        command += record.index, bytes(record.item), result, "" if score is None else score
        index = keys.student_batches(student)
        noting: list[Command] = [
            ("ZADD", index, end, _member(_Place(record.batch_id, record.index))),
            ("PEXPIREAT", index, end, "NX"),
            ("PEXPIREAT", index, end, "GT"),
        ]
        await self._run(noting)
        await self._run([tuple(command)])

    async def _places(self, student: StudentKey) -> list[_Place]:
        """Returns where a student stands in batches, in an order that does not change."""
        [members] = await self._run([("ZRANGE", keys.student_batches(student), 0, -1)])
        places = (member.decode().partition("/") for member in members)
        return sorted(_Place(batch_id, int(index)) for batch_id, _, index in places)


def _member(place: _Place) -> str:
    return f"{place.batch_id}/{place.place}"


def _record(stored: StoredBatch, index: int, item: bytes, result: bytes | None) -> _Record:
    batch = stored.batch
    return _Record(
        batch_id=batch.key.batch_id,
        index=index,
        operation=batch.operation,
        priority=batch.priority,
        item_count=batch.item_count,
        create_time=batch.create_time,
        expire_time=batch.expire_time,
        end_time=batch.end_time,
        item=msgspec.Raw(item),
        result=msgspec.Raw(result or b""),
    )


def _decoded(value: bytes, student: StudentKey) -> _Record:
    """Returns the record in a JSON text. Raises InvalidInput for one that is not about the student."""
    try:
        record = _decoder.decode(value)
        item = batch_records.decode_item(bytes(record.item))
        if record.result:
            batch_records.decode_result(record.index, bytes(record.result))
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
        raise InvalidInput.of("json", "is not an item of a batch") from None
    is_of_batch = 0 <= record.index < record.item_count <= MAX_ITEMS and _is_uuid(record.batch_id)
    if item.student_id != student.student_id or not is_of_batch:
        raise InvalidInput.of("json", "is not an item of a batch of this student")
    return record


def _ended_state(record: _Record) -> dict[str, str | int]:
    """Returns the state of a batch of which some items are put back, and which nobody works on any more."""
    end_time = record.end_time or record.create_time.astimezone(UTC)
    state: dict[str, str | int] = {
        "operation": record.operation.value,
        "priority": record.priority.value,
        "items": record.item_count,
        "chunks": chunk_count(record.item_count),
        "succeeded": 0,
        "failed": 0,
        "created": batch_records.micros(record.create_time),
        "expires": batch_records.micros(record.expire_time),
        "started": batch_records.micros(record.create_time),
        "ended": batch_records.micros(end_time),
        "owner": "",
        "digest": "",
        "queued": 1,
    }
    return state if record.end_time else state | {"cancelled": 1}
