"""The JSON that Redis holds, straight from the domain's dataclasses: their field names are the format."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.ports import LoadedStudent, ProcessingRecord, StudentChange
from mastery_grpc.domain.student import EMPTY_STATE, Mastery, StudentState

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class _ActivityData:
    """The value of `activity:recent`."""

    active_days: list[date]
    """Those of the last 30 days, oldest first."""
    last_active_day: date | None
    total_active_days: int
    current_streak: int
    longest_streak: int


_encode = msgspec.json.Encoder().encode
_mastery_decoder = msgspec.json.Decoder(Mastery)
_fold_decoder = msgspec.json.Decoder(_StoredFold)
_record_decoder = msgspec.json.Decoder(ProcessingRecord)


def encode_mastery(mastery: Mastery) -> bytes:
    """Returns a mastery as JSON, `version` first."""
    return _encode(mastery)


def decode_mastery(value: bytes) -> Mastery:
    """Returns the mastery in a current mastery, a snapshot or an announcement."""
    return _mastery_decoder.decode(value)


def encode_current(change: StudentChange, mastery_json: bytes) -> bytes:
    """Returns the current mastery: the mastery's JSON with the fold behind it as one more field."""
    base = change.base if change.base.event_count else None
    fold = _encode(_Fold(change.state, base, change.log_start_time))
    return mastery_json[:-1] + b',"fold":' + fold + b"}"


def decode_current(
    student: StudentKey, value: bytes | None, processed: dict[str, ProcessingRecord]
) -> LoadedStudent:
    """Returns what a current mastery says to a writer; None is a student not seen before."""
    if value is None:
        return LoadedStudent(student=student, processed=processed)
    fold = _fold_decoder.decode(value).fold
    return LoadedStudent(
        student=student,
        state=fold.state,
        base=fold.base or EMPTY_STATE,
        log_start_time=fold.log_start_time,
        processed=processed,
    )


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
    return _record_decoder.decode(value)
