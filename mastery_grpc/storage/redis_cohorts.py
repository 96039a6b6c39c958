"""Cohorts on Redis: a profile, a set of members and the requests of each, and an index of those of a school.

A cohort's own keys share a slot, and one script changes them. The index is in another one, so it is written on its
own, always more rather than less: an id stands in it before there is a cohort, and may stand in it when there is
none any more. Whoever reads it asks for the profiles too.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.cohorts.store import StoredCohort
from mastery_grpc.domain.cohorts import Cohort, CohortKey, CohortProfile
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import Replicas, raise_first_error, run_guarded, run_writes
from mastery_grpc.storage.script import Script, require

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.cohorts.store import CohortWrite
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import Command, RedisClient

MOST_REQUESTS = 100
"""Requests remembered of one cohort, so that no caller can fill the memory with them."""
PORTION = 500
"""Cohorts that are asked at a time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LOAD, _WRITE = Script("cohort_load.lua"), Script("cohort_write.lua")

_encode = msgspec.json.Encoder().encode
_profile_decoder = msgspec.json.Decoder(CohortProfile)


class RedisCohortStore:
    """Implements `CohortStore`."""

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
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)
        self._requests = retention.cohort_requests
        self._requests_lifetime = math.ceil(retention.cohort_requests.total_seconds())

    async def load(self, key: CohortKey, request_id: str = "") -> StoredCohort:
        call = 3, *_keys_of(key), request_id
        [(profile, members, request)] = await _LOAD.run(self._client, self._guard, [call])
        cohort = None
        if profile:
            cohort = Cohort(_profile_decoder.decode(profile), frozenset(member.decode() for member in members))
        return StoredCohort(cohort, request.decode().partition(" ")[2])

    async def write(self, write: CohortWrite) -> bool:
        key = write.key
        if write.profile is not None and not write.expected_etag:
            await self._index(key)
        call = 3, *_keys_of(key), *self._arguments(write)
        [reply] = await _WRITE.run(self._client, self._guard, [call], self._replicas)
        if not reply:
            return False
        if write.profile is None:
            await self._unindex(key)
        else:
            # Again, in case that a deletion took it out meanwhile; and it heals an index that was lost.
            await self._index(key)
        return True

    async def confirm(self, key: CohortKey) -> None:
        # A write, because replicas are waited for after writes.
        await self._write(("EXPIRE", keys.cohort_requests(key), self._requests_lifetime))

    async def page(self, school_id: str, *, after: str, count: int) -> list[CohortProfile]:
        found: list[CohortProfile] = []
        while len(found) < count:
            lowest, limit = f"({after}" if after else "-", min(count - len(found), PORTION)
            command = "ZRANGE", keys.cohort_index(school_id), lowest, "+", "BYLEX", "LIMIT", 0, limit
            ids = [id_.decode() for id_ in (await self._run([command]))[0]]
            found += await self._profiles(CohortKey(id_, school_id) for id_ in ids)
            if len(ids) < limit:
                break
            after = ids[-1]
        return found

    async def listing(self, student: StudentKey) -> list[CohortProfile]:
        [ids] = await self._run([("ZRANGE", keys.cohort_index(student.school_id), 0, -1)])
        found: list[CohortProfile] = []
        for start in range(0, len(ids), PORTION):
            portion = [CohortKey(id_.decode(), student.school_id) for id_ in ids[start : start + PORTION]]
            replies = await self._run(
                [("SISMEMBER", keys.cohort_members(key), student.student_id) for key in portion]
            )
            found += await self._profiles(
                key for key, is_listed in zip(portion, replies, strict=True) if is_listed
            )
        return found

    async def _profiles(self, wanted: Iterable[CohortKey]) -> list[CohortProfile]:
        replies = await self._run([("GET", keys.cohort(key)) for key in wanted])
        return [_profile_decoder.decode(reply) for reply in replies if reply is not None]

    async def _index(self, key: CohortKey) -> None:
        await self._write(("ZADD", keys.cohort_index(key.school_id), 0, key.cohort_id))

    async def _unindex(self, key: CohortKey) -> None:
        await self._write(("ZREM", keys.cohort_index(key.school_id), key.cohort_id))
        [is_there] = await self._run([("EXISTS", keys.cohort(key))])
        if is_there:  # created again meanwhile
            await self._index(key)

    async def _write(self, command: Command) -> None:
        async with self._guard():
            replies, is_replicated = await run_writes(self._client, [command], self._replicas)
            raise_first_error(replies)
        require(is_replicated)

    def _arguments(self, write: CohortWrite) -> list[Any]:
        request_id, digest = write.request or ("", "")
        return [
            write.expected_etag,
            "" if write.profile is None else write.profile.etag,
            "" if write.profile is None else _encode(write.profile),
            request_id,
            digest,
            (write.time - _EPOCH) // _MICROSECOND,
            (write.time - self._requests - _EPOCH) // _MICROSECOND,
            MOST_REQUESTS,
            self._requests_lifetime,
            len(write.removed),
            *write.removed,
            *write.added,
        ]


def _keys_of(key: CohortKey) -> tuple[str, str, str]:
    return keys.cohort(key), keys.cohort_members(key), keys.cohort_requests(key)
