"""What batches on Redis hold about one student: his items, and what became of them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.batch import BatchKey
from mastery_grpc.storage import batch_records, keys
from mastery_grpc.storage.connection import run_guarded
from mastery_grpc.storage.held_batch_records import decode_held, encode_held
from mastery_grpc.storage.records import decode_mark
from mastery_grpc.storage.redis_batches import ERASE, erasure
from mastery_grpc.storage.script import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import Command, RedisClient
    from mastery_grpc.storage.held_batch_records import HeldBatchItem

_RESTORE = Script("batch_restore.lua")


class _Place(NamedTuple):
    """Where a student stands: in which batch, and at which place in it."""

    batch_id: str
    number: int

    @property
    def member(self) -> str:
        """How it is spelled among his places."""
        return f"{self.batch_id}/{self.number}"


class RedisHeldBatches:
    """Implements `HeldData`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        clock: Callable[[], datetime],
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._clock = clock
        self._client = client
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)

    @property
    def kind(self) -> DataKind:
        return DataKind.BATCH_RESULT

    async def held(self, student: StudentKey) -> list[bytes]:
        found = []
        for batch_id, number in await self._places(student):
            key = BatchKey(batch_id, student.school_id)
            fields, item, result = await self._run(
                [
                    ("HGETALL", keys.batch_state(key)),
                    ("HGET", keys.batch_items(key), number),
                    ("HGET", keys.batch_results(key), number),
                ]
            )
            stored = batch_records.decode_state(key, batch_records.fields_of(fields))
            # Who was taken out of it has no name there any more.
            if stored is not None and item is not None and batch_records.decode_item(item).student_id:
                found.append(encode_held(stored.batch, number, item, result))
        return found

    async def erase(self, student: StudentKey) -> int:
        [mark] = await self._run([("GET", keys.erased(student))])
        places = await self._places(student)
        erase_time = self._clock() if mark is None else decode_mark(mark).erase_time
        return await self._take_out(student, places, erase_time)

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        given = [decode_held(record, student) for record in records]
        wanted = {_Place(held.batch_id, held.index) for held in given}
        others = [place for place in await self._places(student) if place not in wanted]
        await self._take_out(student, others, self._clock())
        now = self._clock()
        for held in given:
            if held.expire_time > now:
                await self._restore(student, held)

    async def _take_out(self, student: StudentKey, places: Sequence[_Place], erase_time: datetime) -> int:
        """Takes a student out of batches that were submitted before he was erased; returns of how many places."""
        count = 0
        for place in places:
            key = BatchKey(place.batch_id, student.school_id)
            [replaced] = await ERASE.run(self._client, self._guard, [erasure(key, [place.number], erase_time)])
            if replaced >= 0:  # else the batch is of a new beginning
                await self._run([("ZREM", keys.student_batches(student), place.member)])
                count += replaced
        return count

    async def _restore(self, student: StudentKey, held: HeldBatchItem) -> None:
        batch = held.batch(student.school_id)
        _, result = held.decoded()
        score = None if result is None else result.score
        key, index = batch.key, keys.student_batches(student)
        end = batch_records.micros(batch.expire_time) // 1000
        noting: list[Command] = [
            ("ZADD", index, end, _Place(held.batch_id, held.index).member),
            ("PEXPIREAT", index, end, "NX"),
            ("PEXPIREAT", index, end, "GT"),
        ]
        await self._run(noting)
        state = batch_records.ended_state_fields(batch)
        names = keys.batch_state(key), keys.batch_items(key), keys.batch_results(key), keys.batch_scores(key)
        call: list[Any] = [len(names), *names, end, len(state)]
        call += (part for pair in state.items() for part in pair)
        call += held.index, bytes(held.item), b"" if result is None else bytes(held.result)
        call.append("" if score is None else score)
        await _RESTORE.run(self._client, self._guard, [call])

    async def _places(self, student: StudentKey) -> list[_Place]:
        """Returns where a student stands in batches, in an order that does not change."""
        [members] = await self._run([("ZRANGE", keys.student_batches(student), 0, -1)])
        places = (member.decode().partition("/") for member in members)
        return sorted(_Place(batch_id, int(number)) for batch_id, _, number in places)
