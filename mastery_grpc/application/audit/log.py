"""Who accessed whose data: what is written about every call, in batches behind the calls.

What makes an entry: each student whom a call is about makes one; those of whom nothing is held make one between
them, with an empty hash, for nobody's data was seen. A call about no student makes one if it failed, or if it is
of the ComplianceService; else none. Calls turned away by a limit before their request was read make one a minute
for each caller and method: nobody's data was accessed, and a flood of calls is not to become a flood of entries.

What a crash can cost: the entries of the last `FLUSH_INTERVAL`, or of the time that Redis has been away. Never
more than `MOST_WAITING`: then calls are refused, because an access that cannot be taken down shall not happen.

What the log itself cannot show: that all of it, head included, was put back to an older state. Therefore the
head goes into the process's own log every hour and at its end, and while the process lives it is a witness
itself. A failover that loses writes which Redis had confirmed is told in the same way, because it is the same.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import structlog
from cachetools import TTLCache

from mastery_grpc.application.audit.chain_end import OpenChain
from mastery_grpc.application.audit.pseudonyms import Pseudonyms
from mastery_grpc.application.audit.reader import STUDENT_CALLER, AuditReader
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.domain.audit_chain import Draft, encode_call, micros_of
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.events import StudentKey, student_violations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import timedelta

    from mastery_grpc.application.audit.reader import AuditFilter, AuditPage, AuditVerdict
    from mastery_grpc.application.audit.store import AuditStore
    from mastery_grpc.domain.audit_chain import AuditEntry, AuditKeys

FLUSH_INTERVAL = 0.2
"""Seconds."""
FLUSH_SIZE = 1000
"""So many entries are written without waiting for the interval to end."""
MOST_WAITING = 100_000
SEALED_AT_ONCE = 500
"""Entries of one attempt, or those of one call if they are more: sealing them holds the event loop up for 3 ms."""
UPKEEP_INTERVAL = 3600.0
TURNED_AWAY_ONCE_IN = 60.0
_TURNED_AWAY_CAPACITY = 10_000
_COMPLIANCE = "mastery.v1.ComplianceService/"
_OK, _RESOURCE_EXHAUSTED = 0, 8

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCall:
    """One call, as it ended."""

    time: datetime
    caller: Caller
    school_id: str
    """Of the log that it goes into."""
    method: str
    """Such as "mastery.v1.MasteryService/GetMastery"."""
    students: tuple[StudentKey, ...]
    """Whose data it was about; empty for a call about nobody's."""
    code: int
    """A number of `google.rpc.Code`."""
    request_id: str


class _Access(NamedTuple):
    """What one call adds to the log of one school."""

    call: AuditedCall
    students: Sequence[StudentKey]
    is_whole: bool
    """Whether there is nobody else whom it is about."""


class AuditLog:
    """Takes down accesses, writes them to the logs of their schools, and reads them back."""

    def __init__(
        self,
        store: AuditStore,
        keys: AuditKeys,
        *,
        retention: timedelta,
        writers: Collection[str],
        clock: Callable[[], datetime],
        timer: Callable[[], float],
    ) -> None:
        """`writers`: the methods whose calls may be the first that is known of a student."""
        self._store = store
        self._keys = keys
        self._retention = retention
        self._writers = frozenset(writers)
        self._clock = clock
        self._timer = timer
        self._pseudonyms = Pseudonyms(store, keys, timer=timer)
        self._reader = AuditReader(store, keys, self._pseudonyms)
        self._calls: deque[AuditedCall] = deque()
        self._waiting = 0
        self._is_away = False
        self._queues: dict[str, deque[_Access]] = {}
        self._chains: dict[str, OpenChain] = {}
        self._turned_away: TTLCache[tuple[str, str], bool] = TTLCache(
            _TURNED_AWAY_CAPACITY, TURNED_AWAY_ONCE_IN, timer
        )
        self._due = asyncio.Event()
        self._flushing = asyncio.Lock()

    def record(self, call: AuditedCall) -> None:
        """Takes a call down, to be written soon; does not wait. Raises StorageUnavailable if too many wait."""
        if not call.students and not self._is_kept(call):
            return
        size = len(call.students) or 1
        if self._waiting + size > MOST_WAITING:
            raise StorageUnavailable("audit log: too many entries wait to be written")
        self._calls.append(call)
        self._waiting += size
        if self._waiting >= FLUSH_SIZE:
            self._due.set()

    async def run(self) -> None:
        """Writes for ever what is taken down, through outages of the storage; and does the upkeep.

        When it is cancelled, `close` writes the rest.
        """
        upkeep = self._timer()
        while True:
            try:
                # With jitter, so that processes started together do not race for the end of a log every time.
                async with asyncio.timeout(FLUSH_INTERVAL * random.uniform(0.75, 1.0)):  # noqa: S311
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            has_failed = not await self._surviving(self.flush)
            if self._timer() >= upkeep:
                upkeep = self._timer() + UPKEEP_INTERVAL
                self._tell_heads()
                await self._surviving(self._upkeep)
            if has_failed:
                await asyncio.sleep(FLUSH_INTERVAL)  # because a long queue is always due

    async def close(self) -> None:
        """Writes what is still waiting, and notes where the logs end."""
        await self._surviving(self.flush)
        self._tell_heads()
        if self._waiting:
            log.error("audit entries are lost", entries=self._waiting)

    async def flush(self) -> None:
        """Writes what was taken down until now. Raises StorageUnavailable; then what is not written waits."""
        async with self._flushing:
            while self._calls:
                self._enqueue(self._calls.popleft())
            failure = None
            for school_id in list(self._queues):
                try:
                    await self._write(school_id)
                except StorageUnavailable as error:
                    failure = error  # of one school's node; the others may be well
            if failure is not None:
                raise failure

    async def entries(self, wanted: AuditFilter) -> AuditPage:
        """Returns a page of entries, newest first. Raises InvalidPageToken, StorageUnavailable."""
        return await self._reader.page(wanted)

    async def about(self, student: StudentKey) -> AsyncIterator[AuditEntry]:
        """Yields the entries about a student or his own calls, oldest first. Raises StorageUnavailable."""
        await self.flush()
        async for entry in self._reader.about(student):
            yield entry

    async def verify(self, school_id: str) -> AuditVerdict:
        """Checks the log of a school from its beginning to its end. Raises StorageUnavailable."""
        chain = self._chains.get(school_id)
        return await self._reader.verify(school_id, None if chain is None else chain.witness)

    async def trim(self, now: datetime) -> int:
        """Forgets the entries that are past retention; returns how many. Raises StorageUnavailable."""
        return sum(
            [
                await self._reader.trim(school_id, now - self._retention)
                for school_id in await self._store.schools()
            ]
        )

    async def pseudonym_of(self, student: StudentKey) -> bytes | None:
        """Returns what stands for a student in the log, None for nothing. Raises StorageUnavailable."""
        return await self._pseudonyms.find(student)

    async def forget(self, student: StudentKey) -> bytes:
        """Cuts a student who is erased off from what stands for him, and returns that.

        To be called before his keys are deleted, `keys.audit_salt` among them: a call may give him another
        pseudonym in between. Raises StorageUnavailable; repeating it within a minute returns the same.
        """
        await self.flush()
        return await self._pseudonyms.forget(student)

    def drop(self, student: StudentKey) -> None:
        """Does not rely on what is remembered of a student any more; to be called when he is erased elsewhere."""
        self._pseudonyms.drop(student)

    def _is_kept(self, call: AuditedCall) -> bool:
        """Tells whether a call about nobody makes an entry."""
        if call.code == _OK:
            return call.method.startswith(_COMPLIANCE)
        if call.code == _RESOURCE_EXHAUSTED:
            about = call.caller.subject, call.method
            if about in self._turned_away:
                return False
            self._turned_away[about] = True
        return True

    def _enqueue(self, call: AuditedCall) -> None:
        """Puts a call into the queues of the schools whose logs it belongs into.

        A student's school is the one whose log it is. Only who is confined to a school cannot write into another
        one's log: of what he tries there, his own has one entry.
        """
        students = call.students
        own = call.school_id
        if not _is_school(own):  # refused before it was validated
            own = call.caller.school_id if _is_school(call.caller.school_id) else ""
        if all(student.school_id == own for student in students):
            self._queues.setdefault(own, deque()).append(_Access(call, students, True))
            return
        groups: dict[str, list[StudentKey]] = {}
        for student in students:
            if student.school_id == own or (_is_school(student.school_id) and not call.caller.is_confined):
                groups.setdefault(student.school_id, []).append(student)
            else:
                groups.setdefault(own, [])
        kept = sum(map(len, groups.values()))
        self._waiting += sum(len(group) or 1 for group in groups.values()) - len(students)
        for school_id, group in groups.items():
            is_whole = kept == len(students) or school_id != own
            self._queues.setdefault(school_id, deque()).append(_Access(call, group, is_whole))

    async def _write(self, school_id: str) -> None:
        queue = self._queues[school_id]
        chain = self._chains.get(school_id)
        if chain is None:
            chain = self._chains[school_id] = OpenChain(self._store, self._keys, school_id)
        self._written(queue, await chain.finish())
        while queue:
            part = _first(queue, SEALED_AT_ONCE)
            await chain.append(await self._drafts(part), len(part))
            self._written(queue, len(part))
        del self._queues[school_id]

    def _written(self, queue: deque[_Access], count: int) -> None:
        for _ in range(count):
            access = queue.popleft()
            self._waiting -= len(access.students) or 1

    async def _drafts(self, part: Sequence[_Access]) -> list[Draft]:
        wanted: dict[StudentKey, bool] = {}
        for call, students, _ in part:
            is_first_word = call.code == _OK and call.method in self._writers
            for student in students:
                wanted[student] = is_first_word or wanted.get(student, False)
            if call.caller.role is Role.STUDENT:
                wanted[_as_student(call.caller)] = True  # he is believed: he has a token
        pseudonyms = await self._pseudonyms.for_entries(wanted)
        drafts = []
        for call, students, is_whole in part:
            caller = call.caller.subject
            if call.caller.role is Role.STUDENT:
                caller = STUDENT_CALLER + pseudonyms.get(_as_student(call.caller), b"").hex()
            told = encode_call(
                role=call.caller.role.value, caller=caller, method=call.method, request_id=call.request_id
            )
            micros, code = micros_of(call.time), call.code
            known = [pseudonyms[student] for student in students if student in pseudonyms]
            drafts += [Draft(micros, code, pseudonym, told) for pseudonym in known]
            if len(known) < len(students) or not is_whole or not students:
                drafts.append(Draft(micros, code, b"", told))
        return drafts

    async def _upkeep(self) -> None:
        if await self._store.claim_upkeep(int(UPKEEP_INTERVAL * 0.9)):
            count = await self.trim(self._clock())
            if count:
                log.info("audit entries past retention are forgotten", entries=count)

    def _tell_heads(self) -> None:
        for school_id, chain in self._chains.items():
            if chain.witness is not None:
                sequence, mac = chain.witness
                log.info("audit log head", school_id=school_id, sequence=sequence, mac=mac.hex())

    async def _surviving(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Does one thing, and lives on if it fails; returns whether it went well."""
        try:
            await work()
        except StorageUnavailable as error:
            if not self._is_away:
                log.warning("audit entries wait: the storage is away", entries=self._waiting, error=str(error))
            self._is_away = True
        except Exception:
            # Whatever it is, entries wait and are bounded: the server must not go down with its audit log.
            log.exception("audit log is not written", entries=self._waiting)
        else:
            if self._is_away:
                log.info("audit entries are written again")
            self._is_away = False
            return True
        return False


def _first(queue: deque[_Access], most_entries: int) -> list[_Access]:
    """Returns the accesses at the beginning of a queue, so many that they make about as many entries."""
    part, entries = [], 0
    for access in queue:
        part.append(access)
        entries += len(access.students) or 1
        if entries >= most_entries:
            break
    return part


@lru_cache(maxsize=1000)
def _is_school(school_id: str) -> bool:
    """Tells whether an id can be a school's; calls are recorded even if their requests are not valid."""
    return not any(student_violations(StudentKey("any", school_id)))


def _as_student(caller: Caller) -> StudentKey:
    return StudentKey(caller.subject, caller.school_id)
