"""The JSON lines in which a student's records are exported, and from which they are put back.

Each line is what Redis holds, with where it stood and when it expires.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.verification import IssuedForecast
from mastery_grpc.storage import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mastery_grpc.domain.events import StudentKey

OWN_KINDS = frozenset(
    {
        DataKind.CURRENT_MASTERY,
        DataKind.SNAPSHOT,
        DataKind.EVENT,
        DataKind.PROCESSING_RECORD,
        DataKind.ACTIVITY,
        DataKind.PREDICTION,
        DataKind.LEARNING_PATH,
        DataKind.FEEDBACK,
    }
)
"""The kinds of what is kept under a student's own keys."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Line(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One record. Of the fields that say where it stood, each kind has its own."""

    date: date | None = None
    """Of a snapshot."""
    entry_id: str = ""
    """Of an event: its place in the log, which tells when it was written."""
    event_id: str = ""
    """Of a processing record."""
    field: str = ""
    """Of feedback."""
    expire_time: datetime | None = None
    """Absent for what stays until it is erased."""
    value: msgspec.Raw

    @property
    def expire_millis(self) -> int:
        """When it expires, in milliseconds since 1970; 0 for never."""
        return 0 if self.expire_time is None else (self.expire_time - _EPOCH) // _MILLISECOND


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Line)
_issued_decoder = msgspec.json.Decoder(IssuedForecast)


def line(value: bytes, expire_millis: int = 0, **place: date | str) -> bytes:
    """Returns the line of a record; `value` is JSON."""
    expire_time = _EPOCH + expire_millis * _MILLISECOND if expire_millis else None
    return _encode(Line(value=msgspec.Raw(value), expire_time=expire_time, **place))  # type: ignore[arg-type]


def read_lines(texts: Iterable[bytes]) -> list[Line]:
    """Returns the records in lines. Raises InvalidInput."""
    try:
        return [_decoder.decode(text) for text in texts]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput.of("record", f"is not one of an export: {error}") from None


def encode_issued(forecast: IssuedForecast) -> bytes:
    """Returns an issued forecast as JSON."""
    return _encode(forecast)


def issued_in(texts: Iterable[bytes]) -> dict[date, IssuedForecast]:
    """Returns the issued forecasts among lines, by the day that they are for. Raises InvalidInput."""
    try:
        return {each.date: _issued_decoder.decode(each.value) for each in read_lines(texts) if each.date}
    except msgspec.DecodeError as error:
        raise InvalidInput.of("prediction", f"is not one of an export: {error}") from None


def check_owner(student: StudentKey, current: Line, events: Sequence[Line]) -> None:
    """Raises InvalidInput if a mastery or an event is another student's, or cannot be read."""
    try:
        owners = {records.decode_mastery(bytes(current.value)).student}
        records.decode_current(student, bytes(current.value), {})
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput.of("current_mastery", f"is not one of an export: {error}") from None
    owners |= {decode_event(bytes(event.value)).student for event in events}
    if owners != {student}:
        raise InvalidInput.of("student_id", "is not the same in all records")
