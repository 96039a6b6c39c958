"""What is read back from the audit log: pages of it, everything about one student, and whether it is intact."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from mastery_grpc.domain.audit_chain import (
    AuditEntry,
    AuditFault,
    Chain,
    ChainCheck,
    NotARecord,
    decode_record,
    micros_of,
    micros_within,
)
from mastery_grpc.domain.errors import InvalidPageToken
from mastery_grpc.domain.events import StudentKey, student_violations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mastery_grpc.application.audit.pseudonyms import Pseudonyms
    from mastery_grpc.application.audit.store import AuditStore
    from mastery_grpc.domain.audit_chain import AuditKeys, Mark

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
PORTION = 1000
"""Entries read at a time: more, and one reply would hold up everybody else's calls."""
MOST_SCANNED = 100_000
"""Entries that are looked at for one page; it may then be short, or empty, and not the last."""
CHECKED_AT_ONCE = 500
"""Entries that are checked between two turns of the event loop: 2 ms."""
STUDENT_CALLER = "student:"
"""Begins the name of a caller who is a student; the rest is his pseudonym, nothing if nothing is held of him."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries of a school's log are wanted. All that is given must match."""

    school_id: str = ""
    student: StudentKey | None = None
    """Whose data was accessed."""
    caller: str = ""
    """The `sub` claim of his token, or how an entry names him."""
    method: str = ""
    start_time: datetime | None = None
    """Inclusive."""
    end_time: datetime | None = None
    """Exclusive."""
    page_size: int = 0
    """0 for 100; at most 1000."""
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, newest first."""

    entries: Sequence[AuditEntry]
    next_page_token: str
    """Empty for the last page."""


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """Whether a log is as it was written."""

    intact: bool
    entry_count: int
    """Entries that were checked and found authentic."""
    fault: AuditFault | None = None
    """The first one."""


class AuditReader:
    """Reads the logs in portions, so that their length is no matter of memory."""

    def __init__(self, store: AuditStore, keys: AuditKeys, pseudonyms: Pseudonyms) -> None:
        self._store = store
        self._keys = keys
        self._pseudonyms = pseudonyms

    async def page(self, wanted: AuditFilter) -> AuditPage:
        """Returns a page. Raises InvalidPageToken, StorageUnavailable."""
        before = self._place_in(wanted) if wanted.page_token else 0
        student_hash = None
        if wanted.student is not None:
            pseudonym = await self._pseudonyms.find(wanted.student)
            if pseudonym is None:
                return AuditPage((), "")
            student_hash = pseudonym.hex()
        callers = await self._callers(wanted)
        size = min(wanted.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        found: list[AuditEntry] = []
        scanned = 0
        while True:
            portion = await self._store.load_before(wanted.school_id, before=before, count=PORTION)
            for place, record in portion:
                entry = _entry_if_readable(record, wanted.school_id)
                if entry is not None and _matches(entry, wanted, student_hash, callers):
                    if len(found) == size:
                        return AuditPage(found, self._token(before, wanted))
                    found.append(entry)
                before = place
            scanned += len(portion)
            if len(portion) < PORTION:
                return AuditPage(found, "")
            if scanned >= MOST_SCANNED:
                return AuditPage(found, self._token(before, wanted))

    async def about(self, student: StudentKey) -> AsyncIterator[AuditEntry]:
        """Yields the entries about a student, and those about his own calls, oldest first.

        Raises StorageUnavailable.
        """
        pseudonym = await self._pseudonyms.find(student)
        if pseudonym is None:
            return
        student_hash = pseudonym.hex()
        caller = STUDENT_CALLER + student_hash
        traces = pseudonym, caller.encode()
        after = 0
        while True:
            portion = (await self._store.load(student.school_id, after=after, count=PORTION)).entries
            for _, record in portion:
                if traces[0] in record or traces[1] in record:
                    entry = _entry_if_readable(record, student.school_id)
                    if entry is not None and (entry.student_hash == student_hash or entry.caller == caller):
                        yield entry
            if len(portion) < PORTION or portion[-1][0] <= after:  # the second in a log that was tampered with
                return
            after = portion[-1][0]

    async def verify(self, school_id: str, witness: Mark | None = None) -> AuditVerdict:
        """Checks a log from its beginning to its end. Raises StorageUnavailable.

        `witness`: a place that the log is known to have reached.
        """
        check = ChainCheck(Chain(self._keys, school_id), witness)
        while check.fault is None:
            portion = await self._store.load(school_id, after=check.at.sequence, count=PORTION)
            check.begin(portion.anchor)
            await _follow(check, portion.entries)
            if len(portion.entries) < PORTION:
                # Asked last: whoever has a log has had a head before.
                check.end(portion.head, is_new=not portion.head and not await self._store.has_log(school_id))
                break
        return AuditVerdict(check.fault is None, check.entry_count, check.fault)

    async def trim(self, school_id: str, before: datetime) -> int:
        """Forgets the entries from before a time; returns how many. Raises StorageUnavailable.

        Up to the first one that is younger, and never past a fault: what is cut off cannot be checked any more.
        """
        chain = Chain(self._keys, school_id)
        check = ChainCheck(chain)
        limit = micros_of(before)
        while True:
            portion = await self._store.load(school_id, after=check.at.sequence, count=PORTION)
            check.begin(portion.anchor)
            old = _leading(portion.entries, limit)
            start = check.at.sequence
            await _follow(check, old)
            if check.fault is not None:
                log.error("audit log is not as it was written", school_id=school_id, **_told(check.fault))
            if check.at.sequence > start:
                anchor = chain.sign_anchor(check.at)
                through = check.at.sequence
                if not await self._store.cut(school_id, expected=portion.anchor, anchor=anchor, through=through):
                    return check.entry_count  # somebody else is at it
            if check.fault is not None or len(old) < PORTION:
                return check.entry_count

    async def _callers(self, wanted: AuditFilter) -> frozenset[str]:
        """Returns the names that the caller may have in entries; none if any will do."""
        if not wanted.caller:
            return frozenset()
        names = {wanted.caller}
        as_student = StudentKey(wanted.caller, wanted.school_id)
        if not any(student_violations(as_student)):
            pseudonym = await self._pseudonyms.find(as_student)
            if pseudonym is not None:
                names.add(STUDENT_CALLER + pseudonym.hex())
        return frozenset(names)

    def _token(self, before: int, wanted: AuditFilter) -> str:
        place = before.to_bytes(8, "big")
        return base64.urlsafe_b64encode(place + self._keys.page_mac(place + _terms(wanted))[:16]).decode()

    def _place_in(self, wanted: AuditFilter) -> int:
        try:
            place = base64.urlsafe_b64decode(wanted.page_token.encode("ascii"))[:8]
        except (binascii.Error, ValueError):
            raise InvalidPageToken from None
        before = int.from_bytes(place, "big")
        if not hmac.compare_digest(self._token(before, wanted).encode(), wanted.page_token.encode()):
            raise InvalidPageToken
        return before


async def _follow(check: ChainCheck, entries: Sequence[tuple[int, bytes]]) -> None:
    for start in range(0, len(entries), CHECKED_AT_ONCE):
        check.follow(entries[start : start + CHECKED_AT_ONCE])
        await asyncio.sleep(0)


def _leading(entries: Sequence[tuple[int, bytes]], limit: int) -> Sequence[tuple[int, bytes]]:
    """Returns the entries before the first one of `limit` or later, or that cannot be read."""
    for index, (_, record) in enumerate(entries):
        try:
            is_old = micros_within(record) < limit
        except NotARecord:
            is_old = False
        if not is_old:
            return entries[:index]
    return entries


def _entry_if_readable(record: bytes, school_id: str) -> AuditEntry | None:
    """Returns the entry in a record, None in one that somebody else wrote; that it is there, a check tells."""
    try:
        return decode_record(record, school_id)
    except NotARecord:
        return None


def _matches(entry: AuditEntry, wanted: AuditFilter, student_hash: str | None, callers: frozenset[str]) -> bool:
    return (
        (student_hash is None or entry.student_hash == student_hash)
        and (not callers or entry.caller in callers)
        and (not wanted.method or entry.method == wanted.method)
        and (wanted.start_time is None or entry.create_time >= wanted.start_time)
        and (wanted.end_time is None or entry.create_time < wanted.end_time)
    )


def _terms(wanted: AuditFilter) -> bytes:
    """Returns what a page token is bound to."""
    student = wanted.student
    return repr(
        (
            wanted.school_id,
            student and (student.school_id, student.student_id),
            wanted.caller,
            wanted.method,
            wanted.start_time and micros_of(wanted.start_time),
            wanted.end_time and micros_of(wanted.end_time),
        )
    ).encode(errors="replace")


def _told(fault: AuditFault) -> dict[str, object]:
    return {"sequence": fault.sequence, "kind": fault.kind.value}
