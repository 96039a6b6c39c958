"""Learning events in files: JSON lines in the flat shape of the topic `mastery.requests`, or CSV with its names.

Types are checked here, ranges by the service.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import uuid
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseError

from mastery.v1.events_pb2 import LearningEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GZIP_MAGIC = b"\x1f\x8b"
COMMON = ("event_id", "student_id", "source", "school_id", "course_id")
PAYLOADS = {
    field.name.replace("_", "."): field for field in LearningEvent.DESCRIPTOR.oneofs_by_name["payload"].fields
}
"""By event type, such as "quiz.performance.submitted"."""
DERIVED_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "masteryctl:events")
_INTEGER, _TEXT = FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_STRING


class BadLine(Exception):
    """A line holds no event; the message names the field and the reason."""


def json_lines(raw: io.BufferedReader) -> Iterator[tuple[int, Any]]:
    """Yields the number of each line that is not empty, and the object in it or BadLine."""
    for number, line in enumerate(_unzipped(raw), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadLine(f"is no JSON: {error}")


def csv_lines(raw: io.BufferedReader) -> Iterator[tuple[int, Any]]:
    """Yields the number of each row's last line, and its cells that are not empty, by their headings."""
    rows = csv.DictReader(io.TextIOWrapper(_unzipped(raw), encoding="utf-8-sig", newline=""), strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, BadLine(f"is no CSV: {error}")
        else:
            yield rows.line_num, {name: cell for name, cell in row.items() if name and cell}


def event_of(fields: Any, *, is_text: bool, derive_id: bool) -> LearningEvent:
    """Returns the event that a line describes; in CSV numbers are text too. Raises BadLine.

    With `derive_id` an event without an id gets one made of what the line says: the same line is the same event.
    """
    if not isinstance(fields, dict):
        raise fields if isinstance(fields, BadLine) else BadLine("is not the JSON object of an event")
    if "event_id" not in fields and derive_id:
        said = json.dumps(fields, sort_keys=True)
        fields = {**fields, "event_id": str(uuid.uuid5(DERIVED_IDS, said))}
    for name in ("event_id", "student_id", "event_type", "timestamp"):
        if name not in fields:
            raise BadLine(f"{name}: is missing")
    payload = PAYLOADS.get(fields["event_type"]) if isinstance(fields["event_type"], str) else None
    if payload is None:
        raise BadLine(f"event_type: {str(fields['event_type'])[:64]!r} is not known")
    event = LearningEvent()
    for name in COMMON:
        if name in fields:
            _set(event, LearningEvent.DESCRIPTOR.fields_by_name[name], fields[name], is_text=is_text)
    _set_time(event, fields["timestamp"], is_text=is_text)
    _set_payload(event, payload, fields, is_text=is_text)
    return event


def _set_payload(
    event: LearningEvent, payload: FieldDescriptor, fields: Mapping[str, Any], *, is_text: bool
) -> None:
    message = getattr(event, payload.name)
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if field.name == "components":
            values = fields if is_text else fields.get("components")
            if not isinstance(values, dict):
                raise BadLine("components: must be an object with all four")
            for each in message.components.DESCRIPTOR.fields:
                if each.name in values:
                    _set(message.components, each, values[each.name], is_text=is_text)
        elif fields.get(field.name) is None:
            continue
        elif field.name == "time_spent":
            message.time_spent.FromSeconds(_integer(field.name, fields[field.name], is_text=is_text))
        else:
            _set(message, field, fields[field.name], is_text=is_text)


def _set(message: Any, field: FieldDescriptor, value: Any, *, is_text: bool) -> None:
    if field.cpp_type == _TEXT:
        if not isinstance(value, str):
            raise BadLine(f"{field.name}: must be text")
    elif field.cpp_type == _INTEGER:
        value = _integer(field.name, value, is_text=is_text)
    else:
        value = _number(field.name, value, is_text=is_text)
    try:
        setattr(message, field.name, value)
    except ValueError as error:
        raise BadLine(f"{field.name}: {error}") from None


def _integer(name: str, value: Any, *, is_text: bool) -> int:
    try:
        value = int(value) if is_text else value
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise BadLine(f"{name}: must be a whole number")
    return value


def _number(name: str, value: Any, *, is_text: bool) -> float:
    try:
        value = float(value) if is_text else value
    except ValueError:
        value = None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadLine(f"{name}: must be a number")
    return float(value)


def _set_time(event: LearningEvent, value: Any, *, is_text: bool) -> None:
    if is_text and value.strip().isdigit():
        value = int(value)
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            event.event_time.FromMilliseconds(value)
        elif isinstance(value, str):
            event.event_time.FromJsonString(value)
        else:
            raise BadLine("timestamp: must be epoch milliseconds or an RFC 3339 time")
    except (ValueError, OverflowError, ParseError):
        raise BadLine("timestamp: must be epoch milliseconds or an RFC 3339 time") from None


def _unzipped(raw: io.BufferedReader) -> Any:
    return gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZIP_MAGIC) else raw
