"""The audit log as a chain: each entry authenticated over its predecessor, its end and its beginning signed.

What is stored of an entry is a record: the 32 bytes of its MAC, then its body. With || for concatenation,

    MAC(n) = HMAC-SHA256(k, MAC(n - 1) || school || body(n)),    MAC(0) = 32 zero bytes,

where the body begins with n. The head says where the chain ends, the anchor where it begins since its older part
was cut off at the end of its lifetime; each is signed with a key of its own. So whoever has no key can change
nothing without `ChainCheck` finding it. One thing it cannot find: everything put back together to a state that
was once true. A head that was noted elsewhere tells that.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MAC_SIZE = 32
PSEUDONYM_SIZE = 16
LONGEST_TEXT = 255
"""Characters; of a longer text the beginning is kept."""
_FIXED = struct.Struct(">QqBB")
"""Sequence, microseconds since 1970, code, length of the student's hash."""
_MARK = struct.Struct(">Q32s32s")
"""Sequence, MAC, signature."""
_LENGTH = struct.Struct(">H")
_IN_BINARY = _LENGTH.pack(0xFFFF)
"""Stands for the length of a text of 32 hexadecimal digits that is kept as 16 bytes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Mac = bytes


class FaultKind(StrEnum):
    """A way in which a log was tampered with, as in `mastery.v1.AuditFaultKind`."""

    NOT_AUTHENTIC = "not_authentic"
    OUT_OF_SEQUENCE = "out_of_sequence"
    TRUNCATED = "truncated"
    HEAD_INVALID = "head_invalid"


class AuditFault(NamedTuple):
    """The first place at which a log is not as it was written."""

    sequence: int
    """Of the entry, from 1."""
    kind: FaultKind


class Mark(NamedTuple):
    """A place in a chain: the entry it is at, and that entry's MAC. Place 0 is before the first."""

    sequence: int = 0
    mac: Mac = bytes(MAC_SIZE)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One access to one student's data, or one refused, as in `mastery.v1.AuditEntry`."""

    sequence: int
    create_time: datetime
    caller: str
    role: str
    school_id: str
    method: str
    student_hash: str
    """Hexadecimal; empty where no student's data was accessed, or nothing is held of him."""
    code: int
    request_id: str
    mac: Mac


class NotARecord(ValueError):
    """Bytes that are no entry of an audit log."""


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """One key for each purpose, so that nothing made for one can serve for another."""

    entries: hmac.HMAC = field(repr=False)
    heads: hmac.HMAC = field(repr=False)
    anchors: hmac.HMAC = field(repr=False)
    pseudonyms: hmac.HMAC = field(repr=False)
    pages: hmac.HMAC = field(repr=False)

    @classmethod
    def derived_from(cls, secret: bytes) -> AuditKeys:
        """Returns the keys by HKDF-SHA256 (RFC 5869) from one secret."""
        root = hmac.digest(b"mastery.v1 audit log", secret, "sha256")
        labels = (b"entries", b"heads", b"anchors", b"pseudonyms", b"pages")
        return cls(
            *(hmac.new(hmac.digest(root, label + b"\x01", "sha256"), digestmod="sha256") for label in labels)
        )

    def pseudonym(self, school_id: str, student_id: str, salt: bytes) -> bytes:
        """Returns what stands for a student in the log; without the salt it cannot be told whose it is."""
        return _mac(self.pseudonyms, salt + _text(school_id) + _text(student_id))[:PSEUDONYM_SIZE]

    def page_mac(self, content: bytes) -> bytes:
        """Returns the code that makes a page token ours."""
        return _mac(self.pages, content)


class Draft(NamedTuple):
    """An entry that has no place in a chain yet."""

    micros: int
    """Microseconds since 1970."""
    code: int
    student_hash: bytes
    call: bytes
    """From `encode_call`."""


def encode_call(*, role: str, caller: str, method: str, request_id: str) -> bytes:
    """Returns the canonical bytes of what the entries of one call have in common."""
    return b"".join((_text(role), _text(caller), _text(method), _identifier(request_id)))


def _encode_body(sequence: int, draft: Draft) -> bytes:
    """Returns the canonical bytes of an entry; no two entries have the same."""
    micros, code, student_hash, call = draft
    return _FIXED.pack(sequence, micros, code, len(student_hash)) + student_hash + call


def decode_record(record: bytes, school_id: str) -> AuditEntry:
    """Returns the entry in a record. Raises NotARecord."""
    try:
        sequence, micros, code, size = _FIXED.unpack_from(record, MAC_SIZE)
        at = MAC_SIZE + _FIXED.size
        student_hash = record[at : at + size]
        role, at = _read_text(record, at + size)
        caller, at = _read_text(record, at)
        method, at = _read_text(record, at)
        request_id, at = _read_text(record, at)
        time = _EPOCH + micros * _MICROSECOND
    except (struct.error, UnicodeDecodeError, OverflowError):
        raise NotARecord("cannot be read") from None
    if at != len(record):
        raise NotARecord("has a wrong length")
    return AuditEntry(
        sequence, time, caller, role, school_id, method, student_hash.hex(), code, request_id, record[:MAC_SIZE]
    )


def micros_within(record: bytes) -> int:
    """Returns the time of the entry in a record, in microseconds since 1970. Raises NotARecord."""
    try:
        micros: int = _FIXED.unpack_from(record, MAC_SIZE)[1]
    except struct.error:
        raise NotARecord("cannot be read") from None
    return micros


def micros_of(time: datetime) -> int:
    """Returns a time as microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


class Chain:
    """The chain of one school: what links its entries, and what signs its ends."""

    def __init__(self, keys: AuditKeys, school_id: str) -> None:
        self._keys = keys
        self._school = _text(school_id)
        self.broken = _mac(keys.entries, b"broken" + self._school)
        """Stands for the predecessor's MAC where the head before it had been lost: the break stays to be seen."""

    def seal(self, after: Mark, drafts: Sequence[Draft]) -> tuple[list[bytes], Mark]:
        """Returns the records of entries that follow `after`, and the mark of the last."""
        sequence, mac = after
        entries, school = self._keys.entries, self._school
        records = []
        for draft in drafts:
            sequence += 1
            body = _encode_body(sequence, draft)
            mac = _mac(entries, mac + school + body)
            records.append(mac + body)
        return records, Mark(sequence, mac)

    def is_authentic(self, record: bytes, previous: Mac) -> bool:
        """Tells whether a record is an entry of this chain after the one with the MAC `previous`."""
        expected = _mac(self._keys.entries, previous + self._school + record[MAC_SIZE:])
        return hmac.compare_digest(expected, record[:MAC_SIZE])

    def sign_head(self, mark: Mark) -> bytes:
        """Returns the head of a chain that ends at `mark`."""
        return self._signed(self._keys.heads, mark)

    def sign_anchor(self, mark: Mark) -> bytes:
        """Returns the anchor of a chain whose entries up to `mark` were cut off."""
        return self._signed(self._keys.anchors, mark)

    def head_in(self, signed: bytes) -> Mark | None:
        """Returns where a signed head says that the chain ends; None if it is not ours."""
        return self._mark_in(self._keys.heads, signed)

    def anchor_in(self, signed: bytes) -> Mark | None:
        """Returns where a signed anchor says that the chain begins; None if it is not ours."""
        return self._mark_in(self._keys.anchors, signed)

    def _signed(self, key: hmac.HMAC, mark: Mark) -> bytes:
        return _MARK.pack(*mark, _mac(key, self._school + _MARK.pack(*mark, b"")))

    def _mark_in(self, key: hmac.HMAC, signed: bytes) -> Mark | None:
        if len(signed) != _MARK.size:
            return None
        mark = Mark(*_MARK.unpack(signed)[:2])
        return mark if hmac.compare_digest(self._signed(key, mark), signed) else None


class ChainCheck:
    """Walks a chain from its beginning, portion by portion, and stops at the first fault."""

    def __init__(self, chain: Chain, witness: Mark | None = None) -> None:
        """`witness`: a place that the chain is known to have reached, from elsewhere than the log itself."""
        self._chain = chain
        self._witness = witness
        self.at = Mark()
        """The last entry that was checked, or cut off at the end of its lifetime."""
        self.entry_count = 0
        self.fault: AuditFault | None = None

    def begin(self, anchor: bytes) -> None:
        """Takes up the anchor that is stored now; it may have moved on while the chain is walked."""
        if not anchor:
            return
        mark = self._chain.anchor_in(anchor)
        if mark is None:
            self._found(FaultKind.HEAD_INVALID)
        elif mark.sequence > self.at.sequence:
            self.at = mark

    def follow(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Checks the next entries: the place in the log at which each stands, and its record."""
        for place, record in entries:
            if self.fault is not None:
                return
            expected = self.at.sequence + 1
            stated = int.from_bytes(record[MAC_SIZE : MAC_SIZE + 8], "big")
            if place != expected:
                self._found(FaultKind.OUT_OF_SEQUENCE)
            elif self._chain.is_authentic(record, self.at.mac):
                self._step(Mark(expected, record[:MAC_SIZE]))
            elif self._chain.is_authentic(record, self._chain.broken):
                self._found(FaultKind.HEAD_INVALID)
            else:
                self._found(FaultKind.NOT_AUTHENTIC if stated == expected else FaultKind.OUT_OF_SEQUENCE)

    def end(self, head: bytes, *, is_new: bool) -> None:
        """Compares the end of the chain with the head that was stored at the same moment.

        `is_new`: there never was a head.
        """
        if self.fault is not None:
            return
        mark = self._chain.head_in(head) if head else Mark()
        if mark is None or not (head or (is_new and self.at == Mark())):
            self._found(FaultKind.HEAD_INVALID)
        elif mark.sequence > self.at.sequence:
            self._found(FaultKind.TRUNCATED)
        elif mark != self.at:
            self.fault = AuditFault(min(mark.sequence + 1, self.at.sequence), FaultKind.HEAD_INVALID)
        elif self._witness is not None and self._witness.sequence > self.at.sequence:
            self._found(FaultKind.TRUNCATED)

    def _step(self, mark: Mark) -> None:
        witness = self._witness
        if witness is not None and witness.sequence == mark.sequence and witness.mac != mark.mac:
            # The log was cut off before this place, and went on from there.
            self.fault = AuditFault(mark.sequence, FaultKind.TRUNCATED)
            return
        self.at = mark
        self.entry_count += 1

    def _found(self, kind: FaultKind) -> None:
        self.fault = AuditFault(self.at.sequence + 1, kind)


def _mac(key: hmac.HMAC, content: bytes) -> Mac:
    # A copy of a prepared key is more than twice as fast as hmac.digest.
    mac = key.copy()
    mac.update(content)
    return mac.digest()


@lru_cache(maxsize=10_000)
def _text(value: str) -> bytes:
    encoded = value[:LONGEST_TEXT].encode(errors="replace")
    return _LENGTH.pack(len(encoded)) + encoded


def _identifier(value: str) -> bytes:
    if len(value) == 32:
        try:
            packed = bytes.fromhex(value)
        except ValueError:
            pass
        else:
            if packed.hex() == value:
                return _IN_BINARY + packed
    encoded = value[:LONGEST_TEXT].encode(errors="replace")
    return _LENGTH.pack(len(encoded)) + encoded


def _read_text(record: bytes, at: int) -> tuple[str, int]:
    (size,) = _LENGTH.unpack_from(record, at)
    at += _LENGTH.size
    if record[at - _LENGTH.size : at] == _IN_BINARY:
        return record[at : at + 16].hex(), at + 16
    return record[at : at + size].decode(), at + size
