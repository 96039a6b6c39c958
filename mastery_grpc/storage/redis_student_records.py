"""A student's own keys on Redis, as one thing."""

from __future__ import annotations

import math
from contextlib import nullcontext
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.erasure_mark import announcement_of
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import Replicas, run_guarded
from mastery_grpc.storage.record_lines import OWN_KINDS, check_owner, line, read_lines
from mastery_grpc.storage.script import Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.compliance.erasure_mark import ErasureMark
    from mastery_grpc.application.compliance.student_records import Records
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import RedisClient
    from mastery_grpc.storage.record_lines import Line

_HELD, _ERASE, _RESTORE, _FINISH = map(Script, ("held.lua", "erase.lua", "restore.lua", "finish_erasure.lua"))
_SINGLE = (DataKind.CURRENT_MASTERY, DataKind.ACTIVITY, DataKind.PREDICTION, DataKind.LEARNING_PATH)
"""The kinds of which a student has one record, in the order in which the scripts return them."""


class RedisStudentRecords:
    """Implements `StudentRecords`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        retention: keys.Retention,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._mark_lifetime = math.ceil(retention.erasure_mark.total_seconds())
        self._snapshot_lifetime = retention.snapshots
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)
        self._read = partial(_HELD.run, client, guard)
        self._erase, self._restore, self._finish = (
            partial(script.run, client, guard, replicas=replicas) for script in (_ERASE, _RESTORE, _FINISH)
        )

    async def held(self, student: StudentKey) -> Records:
        its_keys = (
            keys.current_mastery(student),
            keys.event_log(student),
            keys.snapshot_days(student),
            keys.activity(student),
            keys.prediction(student),
            keys.path(student),
            keys.feedback(student),
        )
        prefixes = keys.snapshot_prefix(student), keys.processed(student, "")
        [reply] = await self._read([(len(its_keys), *its_keys, *prefixes)])
        *singles, (entries, log_end), (feedback, feedback_end), snapshots, processed = reply
        found = {
            kind: [line(value, end)]
            for kind, (value, end) in zip(_SINGLE, singles, strict=True)
            if value is not None
        }
        found[DataKind.SNAPSHOT] = sorted(
            line(value, end, date=date.fromisoformat(day.decode())) for day, value, end in snapshots
        )
        found[DataKind.EVENT] = [line(value, log_end, entry_id=id_.decode()) for id_, (_, value) in entries]
        found[DataKind.PROCESSING_RECORD] = [
            line(value, end, event_id=id_.decode()) for id_, value, end in processed
        ]
        found[DataKind.FEEDBACK] = sorted(
            line(value, feedback_end, field=field.decode())
            for field, value in zip(feedback[::2], feedback[1::2], strict=True)
        )
        return {kind: found[kind] for kind in DataKind if found.get(kind)}

    async def marks_of(self, students: Sequence[StudentKey]) -> list[ErasureMark | None]:
        replies = await self._run([("GET", keys.erased(student)) for student in students])
        return [None if value is None else records.decode_mark(value) for value in replies]

    async def erase(self, student: StudentKey, mark: ErasureMark) -> ErasureMark:
        its_keys = (
            keys.current_mastery(student),
            keys.erased(student),
            keys.event_log(student),
            keys.snapshot_days(student),
            keys.activity(student),
            keys.prediction(student),
            keys.path(student),
            keys.feedback(student),
            keys.audit_salt(student),
        )
        call = (
            len(its_keys),
            *its_keys,
            records.encode_mark(mark),
            mark.receipt_id,
            self._mark_lifetime,
            keys.ANNOUNCEMENTS,
            records.encode_erasure(announcement_of(student, mark)),
            keys.snapshot_prefix(student),
            keys.processed(student, ""),
        )
        [left] = await self._erase([call])
        return records.decode_mark(left)

    async def finish(self, student: StudentKey, mark: ErasureMark) -> None:
        await self._finish([(1, keys.erased(student), mark.receipt_id, records.encode_mark(mark), "")])

    async def claim_announcement(self, student: StudentKey, receipt_id: str, origin: str) -> ErasureMark | None:
        [left] = await self._finish([(1, keys.erased(student), receipt_id, "", origin)])
        if left is None:
            return None
        mark = records.decode_mark(left)
        return mark if mark.origin == origin else None

    async def restore(self, student: StudentKey, records_: Mapping[DataKind, Sequence[bytes]]) -> bool:
        lines = {kind: read_lines(texts) for kind, texts in records_.items() if kind in OWN_KINDS}
        if len(lines.get(DataKind.CURRENT_MASTERY, ())) != 1:
            raise InvalidInput.of("current_mastery", "must be there once")
        [current] = lines[DataKind.CURRENT_MASTERY]
        check_owner(student, current, lines.get(DataKind.EVENT, []))
        [mark, _] = await self._run(
            [
                ("GET", keys.erased(student)),
                ("SADD", keys.school_students(student.school_id), student.student_id),
            ]
        )
        [is_done] = await self._restore([self._restore_arguments(student, current, lines, mark)])
        return bool(is_done)

    def _restore_arguments(
        self, student: StudentKey, current: Line, lines: Mapping[DataKind, Sequence[Line]], mark: bytes | None
    ) -> list[Any]:
        events, feedback, snapshots = (
            lines.get(kind, ()) for kind in (DataKind.EVENT, DataKind.FEEDBACK, DataKind.SNAPSHOT)
        )
        since = self._snapshot_lifetime.total_seconds()
        days = [(each.expire_millis / 1000 - since, each.date) for each in snapshots]
        values = list(self._values(student, lines))
        its_keys = [
            keys.current_mastery(student),
            keys.erased(student),
            keys.event_log(student),
            keys.snapshot_days(student),
            keys.feedback(student),
            *(key for key, _, _ in values),
        ]
        arguments: list[Any] = [
            mark or b"",
            records.with_rebuilds(bytes(current.value), records.decode_mark(mark).rebuilds if mark else 0),
            len(events),
            len(days),
            len(feedback),
            *(max((each.expire_millis for each in some), default=0) for some in (events, snapshots, feedback)),
        ]
        for event in events:
            arguments += event.entry_id, bytes(event.value)
        for written, day in days:
            arguments += written, str(day)
        for given in feedback:
            arguments += given.field, bytes(given.value)
        for _, value, expire_millis in values:
            arguments += value, expire_millis
        return [len(its_keys), *its_keys, *arguments]

    def _values(
        self, student: StudentKey, lines: Mapping[DataKind, Sequence[Line]]
    ) -> Iterator[tuple[str, Any, int]]:
        """Yields the key, the value and the expiry of what is kept as a plain value."""
        for each in lines.get(DataKind.SNAPSHOT, ()):
            if each.date is None:
                raise InvalidInput.of("date", "is missing in a snapshot")
            mastery = records.decode_mastery(bytes(each.value))
            parts = records.day_values(mastery, bytes(each.value))
            for key, value in zip(keys.day_keys(student, each.date), parts, strict=True):
                yield key, value, each.expire_millis
        for each in lines.get(DataKind.PROCESSING_RECORD, ()):
            yield keys.processed(student, each.event_id), bytes(each.value), each.expire_millis
        places = {
            DataKind.ACTIVITY: keys.activity(student),
            DataKind.PREDICTION: keys.prediction(student),
            DataKind.LEARNING_PATH: keys.path(student),
        }
        for kind, key in places.items():
            for each in lines.get(kind, ()):
                if each.date is not None:
                    continue  # a forecast that is kept with others of its day
                yield key, bytes(each.value), each.expire_millis
