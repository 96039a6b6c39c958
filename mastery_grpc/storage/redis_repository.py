"""The student repository on Redis, standalone or cluster."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.application.ports import LoadedStudent, LoggedEvent
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import raise_first_error, run_pipeline, storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, timedelta

    from mastery_grpc.application.ports import StudentChange
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.student import Mastery
    from mastery_grpc.storage.connection import Command, RedisClient

_COMMIT = files("mastery_grpc.storage").joinpath("commit.lua").read_text()
_COMMIT_SHA = hashlib.sha1(_COMMIT.encode(), usedforsecurity=False).hexdigest()  # how EVALSHA names a script


class RedisStudentRepository:
    """Implements `StudentRepository`."""

    def __init__(self, client: RedisClient, *, retention: keys.Retention) -> None:
        self._client = client
        self._lifetimes = [
            _seconds(lifetime)
            for lifetime in (
                retention.event_log,
                retention.processed,
                retention.activity,
                retention.snapshots,
            )
        ]

    async def load(self, wanted: Mapping[StudentKey, Sequence[str]]) -> list[LoadedStudent]:
        # One MGET per student: his state and the records are of one moment.
        replies = await self._run(
            [
                ("MGET", keys.current_mastery(student), *(keys.processed(student, id_) for id_ in event_ids))
                for student, event_ids in wanted.items()
            ]
        )
        loaded = []
        for (student, event_ids), (current, *found) in zip(wanted.items(), replies, strict=True):
            processed = {
                event_id: records.decode_record(record)
                for event_id, record in zip(event_ids, found, strict=True)
                if record is not None
            }
            loaded.append(records.decode_current(student, current, processed))
        return loaded

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        replies = await self._run([("XRANGE", keys.event_log(student), "-", "+") for student in students])
        return [[_logged_event(entry_id, fields) for entry_id, fields in reply] for reply in replies]

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        arguments = [self._commit_arguments(change) for change in changes]
        with storage_errors():
            replies = await run_pipeline(self._client, [("EVALSHA", _COMMIT_SHA, *args) for args in arguments])
            unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:  # a node that started or took over a moment ago; EVAL teaches it the script
                again = await run_pipeline(
                    self._client, [("EVAL", _COMMIT, *arguments[index]) for index in unknown]
                )
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
            raise_first_error(replies)
        return [reply == 1 for reply in replies]

    async def read_masteries(self, students: Sequence[StudentKey]) -> list[Mastery | None]:
        replies = await self._run([("GET", keys.current_mastery(student)) for student in students])
        return [None if reply is None else records.decode_mastery(reply) for reply in replies]

    async def read_snapshot(self, student: StudentKey, day: date) -> Mastery | None:
        [reply] = await self._run([("GET", keys.snapshot(student, day))])
        return None if reply is None else records.decode_mastery(reply)

    async def ping(self) -> None:
        with storage_errors():
            await self._client.ping()

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        with storage_errors():
            replies = await run_pipeline(self._client, commands)
            raise_first_error(replies)
        return replies

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
        ]
        arguments: list[Any] = [
            change.expected_version,
            records.encode_current(change, mastery_json),
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
            key, scores = keys.snapshot(student, day), mastery.components
            script_keys += (
                key,
                f"{key}:completion",
                f"{key}:quiz",
                f"{key}:quality",
                f"{key}:consistency",
            )
            arguments += (
                mastery_json if mastery is change.mastery else records.encode_mastery(mastery),
                scores.completion,
                scores.quiz,
                scores.quality,
                scores.consistency,
            )
        return [len(script_keys), *script_keys, *arguments, *change.forgotten]


def _logged_event(entry_id: bytes, fields: Any) -> LoggedEvent:
    milliseconds, _, _ = entry_id.partition(b"-")
    values = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return LoggedEvent(
        entry_id=entry_id.decode(),
        written_time=datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC),
        event=decode_event(values[b"event"]),
    )


def _seconds(lifetime: timedelta) -> int:
    return max(1, math.ceil(lifetime.total_seconds()))
