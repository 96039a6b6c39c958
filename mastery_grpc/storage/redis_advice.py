"""Feedback and learning paths on Redis, beside the student's other keys."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.recommend import AdviceRecord, GivenFeedback, KeptPath
from mastery_grpc.domain.errors import InvalidInput, StudentNotFound
from mastery_grpc.domain.recommendations import Feedback
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import Replicas, run_guarded
from mastery_grpc.storage.script import KEEP, Script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import RedisClient

MOST_REQUESTS = 100
"""Requests remembered of one student, so that no caller can fill the memory with them."""
_REVISION = b"revision"
_REQUEST = b"request:"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RECORD = Script("feedback.lua")

_encode = msgspec.json.Encoder().encode
_feedback_decoder = msgspec.json.Decoder(Feedback)
_path_decoder = msgspec.json.Decoder(KeptPath)
_strings_decoder = msgspec.json.Decoder(list[str])


class RedisAdviceStore:
    """Implements `AdviceStore`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        retention: keys.Retention,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._client = client
        self._replicas = replicas
        self._requests = retention.feedback_requests
        self._feedback_lifetime = math.ceil(retention.feedback.total_seconds())
        self._path_lifetime = math.ceil(retention.path.total_seconds())
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)
        self._keep = partial(KEEP.run, client, self._guard)

    async def load(self, student: StudentKey) -> AdviceRecord:
        (current, path), fields = await self._run(
            [
                ("MGET", keys.current_mastery(student), keys.path(student)),
                ("HGETALL", keys.feedback(student)),
            ]
        )
        return AdviceRecord(
            revision=records.revision_of(current),
            mastery=None if current is None else records.decode_mastery(current),
            given=decode_feedback(fields),
            kept=_path_if_readable(path),
        )

    async def load_feedback(self, students: Sequence[StudentKey]) -> list[GivenFeedback]:
        replies = await self._run([("HGETALL", keys.feedback(student)) for student in students])
        return [decode_feedback(reply) for reply in replies]

    async def record(self, student: StudentKey, feedback: Feedback, request_id: str) -> datetime:
        now = feedback.create_time
        call = (
            4,
            keys.feedback(student),
            keys.path(student),
            keys.current_mastery(student),
            keys.erased(student),
            f"{feedback.recommendation_id}:{feedback.verdict}",
            _encode(feedback),
            _REQUEST + request_id.encode() if request_id else b"",
            (now - _EPOCH) // _MICROSECOND,
            (now - self._requests - _EPOCH) // _MICROSECOND,
            MOST_REQUESTS,
            self._feedback_lifetime,
        )
        [recorded] = await _RECORD.run(self._client, self._guard, [call], self._replicas)
        if recorded is None:
            raise StudentNotFound(student.student_id)
        return _EPOCH + int(recorded) * _MICROSECOND

    async def forget_feedback(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        oldest = now - timedelta(seconds=self._feedback_lifetime)
        replies = await self._run([("HGETALL", keys.feedback(student)) for student in students])
        await self._run(
            [
                ("HDEL", keys.feedback(student), f"{each.recommendation_id}:{each.verdict}")
                for student, reply in zip(students, replies, strict=True)
                for each in decode_feedback(reply).feedback
                if each.create_time < oldest
            ]
        )

    async def keep_path(self, student: StudentKey, kept: KeptPath) -> None:
        revision = records.revision_text(kept.terms.revision)
        its_keys = keys.current_mastery(student), keys.path(student)
        await self._keep([(2, *its_keys, revision, _encode_path(kept), self._path_lifetime)])


def decode_feedback(fields: Mapping[bytes, bytes]) -> GivenFeedback:
    """Returns the feedback in a student's hash. A field holds a number, a request's time, or one feedback."""
    if not fields:
        return GivenFeedback()
    feedback = []
    for name, value in fields.items():
        if name != _REVISION and not name.startswith(_REQUEST):
            with suppress(msgspec.DecodeError):  # of another version; not worth stopping the student's events
                feedback.append(_feedback_decoder.decode(value))
    return GivenFeedback(int(fields.get(_REVISION, 0)), tuple(feedback))


def _encode_path(kept: KeptPath) -> bytes:
    """Returns a list of strings: the path with its terms as JSON, then its steps in words, for other readers."""
    return _encode([_encode(kept).decode(), *kept.path.words])


def _path_if_readable(value: bytes | None) -> KeptPath | None:
    """Returns the path in a list of strings, None if there is none or it is not one of ours."""
    try:
        return None if value is None else _path_decoder.decode(_strings_decoder.decode(value)[0])
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput, IndexError):
        return None
