"""The JSON that Redis holds, straight from the domain's dataclasses: their field names are the format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement, ErasureMark
from mastery_grpc.application.ports import (
    LoadedStudent,
    LoggedEvent,
    ProcessingRecord,
    Revision,
    StoredDay,
    StudentChange,
    StudentHistory,
    StudentRewrite,
)
from mastery_grpc.domain.results import MasteryUpdated, PathRecommended, Result, ResultType, ThresholdReached
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import EMPTY_STATE, Mastery, StudentState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.events import StudentKey


@dataclass(frozen=True, slots=True)
class _Fold:
    """What folding goes on from; kept inside the current mastery, so that both change together."""

    state: StudentState
    base: StudentState | None
    log_start_time: datetime


@dataclass(frozen=True, slots=True)
class _StoredFold:
    """The part of the current mastery that a writer reads."""

    fold: _Fold
    rebuilds: int = 0


@dataclass(frozen=True, slots=True)
class _ActivityData:
    """The value of `activity:recent`."""

    active_days: list[date]
    """Those of the last 30 days, oldest first."""
    last_active_day: date | None
    total_active_days: int
    current_streak: int
    longest_streak: int


@dataclass(frozen=True, slots=True)
class _Record:
    """A processing record; its results are of several kinds, and each says which."""

    processed_time: datetime
    origin: str
    results: tuple[msgspec.Raw, ...]


@dataclass(frozen=True, slots=True)
class _ResultKind:
    event_type: ResultType


_encode = msgspec.json.Encoder().encode
_mastery_decoder = msgspec.json.Decoder(Mastery)
_fold_decoder = msgspec.json.Decoder(_StoredFold)
_record_decoder = msgspec.json.Decoder(_Record)
_erasure_decoder = msgspec.json.Decoder(ErasureAnnouncement)
_mark_decoder = msgspec.json.Decoder(ErasureMark)
_result_kind_decoder = msgspec.json.Decoder(_ResultKind)
_result_decoders: dict[ResultType, msgspec.json.Decoder[Result]] = {
    ResultType.MASTERY_UPDATED: msgspec.json.Decoder(MasteryUpdated),
    ResultType.THRESHOLD_REACHED: msgspec.json.Decoder(ThresholdReached),
    ResultType.PATH_RECOMMENDED: msgspec.json.Decoder(PathRecommended),
}
ERASURE = b'{"version":0,'
"""How the announcement of an erasure begins, and no mastery does."""
_revision_of = re.compile(rb'\{"version":(\d+)(?:,"rebuilds":(\d+))?').match  # as the scripts read it


def time_of(millis: int) -> datetime:
    """Returns the time of so many milliseconds since 1970."""
    return datetime.fromtimestamp(millis / 1000, tz=UTC)


def millis_of(time: datetime) -> int:
    """Returns a time in milliseconds since 1970."""
    return int(time.timestamp() * 1000)


def encode_mastery(mastery: Mastery) -> bytes:
    """Returns a mastery as JSON, `version` first."""
    return _encode(mastery)


def decode_mastery(value: bytes) -> Mastery:
    """Returns the mastery in a current mastery, a snapshot or an announcement."""
    return _mastery_decoder.decode(value)


def encode_current(change: StudentChange | StudentRewrite, mastery_json: bytes, *, rebuilds: int) -> bytes:
    """Returns the current mastery: the mastery's JSON with the fold behind it as one more field.

    `rebuilds`, if there were any, stand behind the version, so that a script can read both.
    """
    base = change.base if change.base.event_count else None
    fold = _encode(_Fold(change.state, base, change.log_start_time))
    return with_rebuilds(mastery_json[:-1] + b',"fold":' + fold + b"}", rebuilds)


def with_rebuilds(current: bytes, least: int) -> bytes:
    """Returns a current mastery whose revision has at least so many rebuilds."""
    has = revision_of(current).rebuilds
    if has >= least:
        return current
    version, _, rest = current.partition(b",")
    return b'%b,"rebuilds":%d,%b' % (version, least, rest.removeprefix(b'"rebuilds":%d,' % has))


def decode_current(
    student: StudentKey,
    value: bytes | None,
    processed: dict[str, ProcessingRecord],
    mark: bytes | None = None,
) -> LoadedStudent:
    """Returns what a current mastery says to a writer; None is a student not seen before, or erased."""
    erasure = None if mark is None else decode_mark(mark)
    erase_time = None if erasure is None else erasure.erase_time
    if value is None:
        return LoadedStudent(
            student=student,
            processed=processed,
            rebuilds=erasure.rebuilds if erasure else 0,
            erase_time=erase_time,
        )
    stored = _fold_decoder.decode(value)
    fold = stored.fold
    return LoadedStudent(
        student=student,
        state=fold.state,
        base=fold.base or EMPTY_STATE,
        log_start_time=fold.log_start_time,
        rebuilds=stored.rebuilds,
        erase_time=erase_time,
        processed=processed,
    )


def revision_of(value: bytes | None, mark: bytes | None = None) -> Revision:
    """Returns the revision of a current mastery, whatever else can be read of it.

    `mark`: of an erasure, which tells what a student who is not there begins with.
    """
    if value is None and mark is not None:
        return Revision(0, decode_mark(mark).rebuilds)
    if value is None or (found := _revision_of(value)) is None:
        return Revision()
    return Revision(int(found[1]), int(found[2] or 0))


def revision_text(revision: Revision) -> str:
    """Returns a revision as the scripts compare it."""
    return f"{revision.version}.{revision.rebuilds}"


def decode_history(
    student: StudentKey, value: bytes | None, mark: bytes | None, log: Sequence[LoggedEvent]
) -> StudentHistory:
    """Returns what a current mastery and the log say to a rebuild; the first may be anything."""
    try:
        fold = None if value is None else _fold_decoder.decode(value).fold
    except (msgspec.DecodeError, UnicodeDecodeError):
        fold = None
    return StudentHistory(
        student=student,
        revision=revision_of(value, mark),
        state=fold.state if fold else None,
        base=(fold.base if fold else None) or EMPTY_STATE,
        log_start_time=fold.log_start_time if fold else None,
        log=log,
    )


def encode_erasure(announcement: ErasureAnnouncement) -> bytes:
    """Returns an announcement as JSON, in the shape of a mastery's as far as everybody reads it."""
    return _encode(announcement)


def decode_erasure(value: bytes) -> ErasureAnnouncement:
    """Returns the announcement in a JSON text. Raises msgspec.DecodeError."""
    return _erasure_decoder.decode(value)


def encode_mark(mark: ErasureMark) -> bytes:
    """Returns the mark of an erasure as JSON, `rebuilds` first."""
    return _encode(mark)


def decode_mark(value: bytes) -> ErasureMark:
    """Returns the mark in a JSON text."""
    return _mark_decoder.decode(value)


def mastery_if_readable(value: bytes | None) -> Mastery | None:
    """Returns the mastery in a JSON text, None if there is none or it cannot be read."""
    try:
        return None if value is None else decode_mastery(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def day_values(mastery: Mastery, mastery_json: bytes) -> tuple[bytes | float, ...]:
    """Returns what stands under the keys of a day: the snapshot and its four scores."""
    scores = mastery.components
    return mastery_json, scores.completion, scores.quiz, scores.quality, scores.consistency


def decode_day(snapshot: bytes | None, *scores: bytes | None) -> StoredDay:
    """Returns a day's snapshot and the four scores beside it; each of them may be anything."""
    try:
        completion, quiz, quality, consistency = (float(score or b"") for score in scores)
    except ValueError:
        return StoredDay(mastery_if_readable(snapshot))
    components = Components(completion=completion, quiz=quiz, quality=quality, consistency=consistency)
    return StoredDay(mastery_if_readable(snapshot), components)


def encode_activity(state: StudentState) -> bytes:
    """Returns the recent activity as JSON."""
    activity = state.activity
    return _encode(
        _ActivityData(
            activity.recent_days(),
            activity.last_day,
            activity.active_days,
            activity.current_streak,
            activity.longest_streak,
        )
    )


def encode_record(record: ProcessingRecord) -> bytes:
    """Returns a processing record as JSON."""
    return _encode(record)


def decode_record(value: bytes) -> ProcessingRecord:
    """Returns the processing record in a JSON text."""
    record = _record_decoder.decode(value)
    results = [_result_decoders[_result_kind_decoder.decode(raw).event_type].decode(raw) for raw in record.results]
    return ProcessingRecord(record.processed_time, record.origin, tuple(results))
