"""The audit log on Redis: a stream for each school, and its two signed ends."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mastery_grpc.application.audit.store import Appended, ChainEnd, Portion
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import Replicas, raise_first_error, run_guarded, run_writes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    from mastery_grpc.application.audit.store import SealedEntries
    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.storage.connection import RedisClient

FIELD = b"e"
_scripts = files("mastery_grpc.storage").joinpath("lua")
_APPEND, _LOAD, _CUT, _SALT = (
    _scripts.joinpath(f"audit_{name}.lua").read_text() for name in ("append", "load", "cut", "salt")
)


class RedisAuditStore:
    """Implements `AuditStore`. Scripts go by their text: each call of them carries far more than that."""

    def __init__(
        self,
        client: RedisClient,
        *,
        retention: timedelta,
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._client = client
        self._replicas = replicas
        self._salt_lifetime = math.ceil(retention.total_seconds())
        self._registered: set[str] = set()
        self._guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, self._guard)

    async def append(self, school_id: str, sealed: SealedEntries) -> Appended:
        command = (
            "EVAL",
            _APPEND,
            2,
            keys.audit_log(school_id),
            keys.audit_head(school_id),
            sealed.expected,
            sealed.head,
            sealed.first,
            *sealed.records,
        )
        async with self._guard():
            replies, is_replicated = await run_writes(self._client, [command], self._replicas)
            raise_first_error(replies)
        [(is_done, head, newest)] = replies
        if is_done and school_id not in self._registered:
            await self._run([("SADD", keys.AUDIT_SCHOOLS, school_id)])
            self._registered.add(school_id)
        return Appended(bool(is_done), is_replicated, ChainEnd(head, _place(newest)))

    async def has_log(self, school_id: str) -> bool:
        [reply] = await self._run([("SISMEMBER", keys.AUDIT_SCHOOLS, school_id)])
        return bool(reply)

    async def load(self, school_id: str, *, after: int, count: int) -> Portion:
        its_keys = keys.audit_log(school_id), keys.audit_head(school_id), keys.audit_anchor(school_id)
        [(head, anchor, entries)] = await self._run([("EVAL", _LOAD, 3, *its_keys, after, count)])
        return Portion(head, anchor, [_entry(id_, fields) for id_, fields in entries])

    async def load_before(self, school_id: str, *, before: int, count: int) -> list[tuple[int, bytes]]:
        newest = f"({before}-0" if before else "+"
        [entries] = await self._run([("XREVRANGE", keys.audit_log(school_id), newest, "-", "COUNT", count)])
        return [_entry(id_, [part for pair in fields.items() for part in pair]) for id_, fields in entries]

    async def cut(self, school_id: str, *, expected: bytes, anchor: bytes, through: int) -> bool:
        its_keys = keys.audit_log(school_id), keys.audit_anchor(school_id)
        [reply] = await self._run([("EVAL", _CUT, 2, *its_keys, expected, anchor, through + 1)])
        return bool(reply)

    async def schools(self) -> list[str]:
        [members] = await self._run([("SMEMBERS", keys.AUDIT_SCHOOLS)])
        return sorted(member.decode() for member in members)

    async def claim_upkeep(self, seconds: int) -> bool:
        [reply] = await self._run([("SET", keys.AUDIT_UPKEEP, 1, "NX", "EX", seconds)])
        return reply is not None

    async def salts(self, students: Sequence[StudentKey]) -> list[bytes | None]:
        return await self._run(
            [("GETEX", keys.audit_salt(student), "EX", self._salt_lifetime) for student in students]
        )

    async def give_salts(
        self, fresh: Mapping[StudentKey, bytes], newcomers: Collection[StudentKey]
    ) -> list[bytes | None]:
        return await self._run(
            [
                (
                    "EVAL",
                    _SALT,
                    3,
                    keys.audit_salt(student),
                    keys.current_mastery(student),
                    keys.erased(student),
                    salt,
                    self._salt_lifetime,
                    int(student in newcomers),
                )
                for student, salt in fresh.items()
            ]
        )

    async def take_salt(self, student: StudentKey) -> bytes | None:
        [salt] = await self._run([("GETDEL", keys.audit_salt(student))])
        return salt  # type: ignore[no-any-return]


def _place(id_: bytes) -> int:
    return int(id_.partition(b"-")[0])


def _entry(id_: bytes, fields: Sequence[Any]) -> tuple[int, bytes]:
    """Returns the place of an entry and its record; an empty one for what the engine did not write."""
    place, _, rest = id_.partition(b"-")
    is_ours = rest == b"0" and len(fields) == 2 and fields[0] == FIELD
    return int(place), fields[1] if is_ours else b""
