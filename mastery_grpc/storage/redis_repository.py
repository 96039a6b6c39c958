"""The student repository on Redis, standalone or cluster."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.application.ports import (
    LoadedStudent,
    LoggedEvent,
    Revision,
    StoredMasteries,
    StudentHistory,
)
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import (
    Replicas,
    raise_first_error,
    run_guarded,
    run_writes,
    storage_errors,
)
from mastery_grpc.storage.script import Script, require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import timedelta

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.ports import StudentChange, StudentRewrite
    from mastery_grpc.domain.student import Mastery
    from mastery_grpc.storage.connection import Command, RedisClient

WALK_PORTION = 500
"""Keys that one step of a walk looks at."""


_COMMIT = Script("commit.lua")
_REWRITE = Script("rewrite.lua")


class RedisStudentRepository:
    """Implements `StudentRepository`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        retention: keys.Retention,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away; without, each finds out for itself."""
        self._client = client
        self._replicas = replicas
        self._snapshot_lifetime = _seconds(retention.snapshots)
        self._processed_lifetime = _seconds(retention.processed)
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)
        self._lifetimes = [
            _seconds(retention.event_log),
            self._processed_lifetime,
            _seconds(retention.activity),
            self._snapshot_lifetime,
        ]

    async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
        # One MGET per student: his state and the records are of one moment.
        replies = await self._run(
            [
                (
                    "MGET",
                    keys.current_mastery(student),
                    keys.erased(student),
                    *(keys.processed(student, id_) for id_ in event_ids),
                )
                for student, event_ids in wanted.items()
            ]
        )
        loaded = []
        for (student, event_ids), (current, mark, *found) in zip(wanted.items(), replies, strict=True):
            processed = {
                event_id: records.decode_record(record)
                for event_id, record in zip(event_ids, found, strict=True)
                if record is not None
            }
            loaded.append(records.decode_current(student, current, processed, mark))
        return loaded

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        replies = await self._run([("XRANGE", keys.event_log(student), "-", "+") for student in students])
        return [[_logged_event(entry_id, fields) for entry_id, fields in reply] for reply in replies]

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        newcomers = [change.student for change in changes if change.expected_version == 0]
        # Before, because after a crash nobody would; after, because whoever strikes off an erased student looks
        # whether he is back.
        await self._list(newcomers)
        written = await self._run_script(_COMMIT, [self._commit_arguments(change) for change in changes])
        await self._list(newcomers)
        return written

    async def confirm(self, known: Mapping[StudentKey, Sequence[str]]) -> list[bool]:
        if not self._replicas.required:
            return [True] * len(known)
        # A write, because WAIT waits for writes; and one that tells whether there was something to write to.
        events = [(student, event_id) for student, event_ids in known.items() for event_id in event_ids]
        commands = [("EXPIRE", keys.processed(*event), self._processed_lifetime) for event in events]
        async with self._guard():
            replies, is_replicated = await run_writes(self._client, commands, self._replicas)
            raise_first_error(replies)
        require(is_replicated)
        lost = {student for (student, _), reply in zip(events, replies, strict=True) if reply != 1}
        return [student not in lost for student in known]

    async def load_histories(self, students: Sequence[StudentKey]) -> list[StudentHistory]:
        commands: list[Command] = []
        for student in students:
            commands.append(("MGET", keys.current_mastery(student), keys.erased(student)))
            commands.append(("XRANGE", keys.event_log(student), "-", "+"))
        replies = iter(await self._run(commands))
        return [
            records.decode_history(student, current, mark, list(_readable(entries)))
            for student, (current, mark), entries in zip(students, replies, replies, strict=True)
        ]

    async def load_masteries(self, wanted: Mapping[StudentKey, Sequence[date]]) -> list[StoredMasteries]:
        # One MGET per student: all of one moment.
        replies = await self._run(
            [
                (
                    "MGET",
                    keys.current_mastery(student),
                    keys.erased(student),
                    *(key for day in days for key in keys.day_keys(student, day)),
                )
                for student, days in wanted.items()
            ]
        )
        stored = []
        for days, (current, mark, *found) in zip(wanted.values(), replies, strict=True):
            by_day = {day: found[5 * index : 5 * index + 5] for index, day in enumerate(days)}
            stored.append(
                StoredMasteries(
                    records.revision_of(current, mark),
                    records.mastery_if_readable(current),
                    {
                        day: records.decode_day(*values)
                        for day, values in by_day.items()
                        if any(value is not None for value in values)
                    },
                )
            )
        return stored

    async def rewrite(self, rewrites: Sequence[StudentRewrite]) -> list[bool]:
        return await self._run_script(_REWRITE, [self._rewrite_arguments(rewrite) for rewrite in rewrites])

    async def walk(self, school_id: str | None = None) -> AsyncIterator[list[StudentKey]]:
        found = self._all_students() if school_id is None else self._students_of(school_id)
        portion: list[StudentKey] = []
        with storage_errors():
            async for student in found:
                portion.append(student)
                if len(portion) == WALK_PORTION:
                    yield portion
                    portion = []
        if portion:
            yield portion

    async def forget_days(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        oldest = now.timestamp() - self._snapshot_lifetime
        await self._run([("ZREMRANGEBYSCORE", keys.snapshot_days(each), "-inf", oldest) for each in students])

    async def strike_off(self, students: Sequence[StudentKey]) -> None:
        await self._run([("SREM", keys.school_students(each.school_id), each.student_id) for each in students])
        # He may have come back in between; whoever brings him lists him again after this at the latest.
        replies = await self._run([("EXISTS", keys.current_mastery(student)) for student in students])
        await self._list([student for student, reply in zip(students, replies, strict=True) if reply])

    async def _list(self, students: Sequence[StudentKey]) -> None:
        if students:
            await self._run([("SADD", keys.school_students(each.school_id), each.student_id) for each in students])

    async def _all_students(self) -> AsyncIterator[StudentKey]:
        # In a cluster this visits every master.
        async for key in self._client.scan_iter(keys.CURRENT_MASTERIES, count=WALK_PORTION):
            if (student := keys.student_of(key)) is not None:
                yield student

    async def _students_of(self, school_id: str) -> AsyncIterator[StudentKey]:
        async for member in self._client.sscan_iter(keys.school_students(school_id), count=WALK_PORTION):
            yield StudentKey(member.decode(), school_id)

    async def _run_script(self, script: Script, calls: Sequence[list[Any]]) -> list[bool]:
        return [reply == 1 for reply in await script.run(self._client, self._guard, calls, self._replicas)]

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        replies = await self._run([("GET", keys.current_mastery(student)) for student in students])
        return [None if reply is None else records.decode_mastery(reply) for reply in replies]

    async def read_snapshot(self, student: StudentKey, day: date) -> Mastery | None:
        [reply] = await self._run([("GET", keys.snapshot(student, day))])
        return None if reply is None else records.decode_mastery(reply)

    async def read_snapshots(
        self, student: StudentKey, first: date | None = None, last: date | None = None
    ) -> dict[date, Mastery]:
        [listed] = await self._run([("ZRANGE", keys.snapshot_days(student), 0, -1)])
        days = sorted(
            day
            for day in (date.fromisoformat(value.decode()) for value in listed)
            if (first or date.min) <= day <= (last or date.max)
        )
        if not days:
            return {}
        [found] = await self._run([("MGET", *(keys.snapshot(student, day) for day in days))])
        return {
            day: records.decode_mastery(value)
            for day, value in zip(days, found, strict=True)
            if value is not None  # else its time has come; the list is shortened by the next write
        }

    async def ping(self) -> None:
        async with self._guard():
            with storage_errors():
                await self._client.ping()

    def _commit_arguments(self, change: StudentChange) -> list[Any]:
        """Returns the number of keys, the keys and the arguments of the commit script."""
        student = change.student
        mastery_json = records.encode_mastery(change.mastery)
        script_keys = [
            keys.current_mastery(student),
            keys.event_log(student),
            keys.activity(student),
            keys.prediction(student),
            keys.path(student),
            keys.erased(student),
            keys.snapshot_days(student),
        ]
        arguments: list[Any] = [
            records.revision_text(Revision(change.expected_version, change.expected_rebuilds)),
            records.encode_current(change, mastery_json, rebuilds=change.expected_rebuilds),
            records.encode_activity(change.state),
            keys.ANNOUNCEMENTS,
            mastery_json,
            *self._lifetimes,
            len(change.applied),
            len(change.snapshots),
        ]
        for applied in change.applied:
            script_keys.append(keys.processed(student, applied.event.event_id))
            arguments += encode_event(applied.event), records.encode_record(applied.record)
        for day, mastery in change.snapshots.items():
            script_keys += keys.day_keys(student, day)
            snapshot = mastery_json if mastery is change.mastery else records.encode_mastery(mastery)
            arguments += *records.day_values(mastery, snapshot), day.isoformat()
        return [len(script_keys), *script_keys, *arguments, *change.forgotten]

    def _rewrite_arguments(self, rewrite: StudentRewrite) -> list[Any]:
        """Returns the number of keys, the keys and the arguments of the rewrite script."""
        student = rewrite.student
        mastery_json = records.encode_mastery(rewrite.mastery)
        script_keys = [
            keys.current_mastery(student),
            keys.activity(student),
            keys.prediction(student),
            keys.path(student),
            keys.erased(student),
            keys.snapshot_days(student),
            keys.event_log(student),
        ]
        arguments: list[Any] = [
            records.revision_text(rewrite.expected),
            records.encode_current(rewrite, mastery_json, rebuilds=rewrite.expected.rebuilds + 1),
            records.encode_activity(rewrite.state),
            keys.ANNOUNCEMENTS,
            mastery_json,
            self._snapshot_lifetime,
            len(rewrite.snapshots),
        ]
        for day, mastery in rewrite.snapshots.items():
            script_keys += keys.day_keys(student, day)
            arguments += *records.day_values(mastery, records.encode_mastery(mastery)), day.isoformat()
        return [len(script_keys), *script_keys, *arguments, *rewrite.forgotten]


def _readable(entries: Any) -> Iterator[LoggedEvent]:
    for entry_id, fields in entries:
        with suppress(InvalidInput, KeyError):
            yield _logged_event(entry_id, fields)


def _logged_event(entry_id: bytes, fields: Any) -> LoggedEvent:
    milliseconds, _, _ = entry_id.partition(b"-")
    values = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return LoggedEvent(
        entry_id=entry_id.decode(),
        written_time=records.time_of(int(milliseconds)),
        event=decode_event(values[b"event"]),
    )


def _seconds(lifetime: timedelta) -> int:
    return max(1, math.ceil(lifetime.total_seconds()))
