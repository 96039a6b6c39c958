"""Kafka records: how a request is read, and how a result is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import msgspec
from google.protobuf.message import DecodeError

from mastery.v1 import events_pb2
from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.application.event_protobuf import event_from_proto
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.results import ResultType

if TYPE_CHECKING:
    from confluent_kafka import Message

    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.domain.results import DataErased, Result
    from mastery_grpc.ingest.topics import Topics

JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"
PRODUCED_TIME = "produced-time"
"""Header: when the engine was given an event that it passes on later, epoch milliseconds."""
ORIGINAL_TIMESTAMP = "dlq-original-timestamp"
"""Header: the time of a record that was refused and is here again."""

TRACE_HEADERS = ("traceparent", "tracestate")
LONGEST_TRACE_HEADER = 512
"""Bytes that everybody must pass on; what is longer is no context."""

_encode = msgspec.json.Encoder().encode
_erasure_decoder = msgspec.json.Decoder(ErasureAnnouncement)


ERASURE = ResultType.DATA_ERASED.encode()
"""Header `event-type` of a record that announces an erasure, in both topics; the worker passes it on."""
LONGEST_TIME = 15
"""Digits of a time; what is longer was not written here."""

Headers = list[tuple[str, str | bytes | None]]


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """A record to be produced."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


def origin_of(message: Message) -> str:
    """Returns where a record stands, as topic/partition/offset."""
    return f"{message.topic()}/{message.partition()}/{message.offset()}"


def decode_request(message: Message) -> Delivery | ErasureAnnouncement:
    """Returns the delivery in a record of `mastery.requests`, or the erasure that it announces.

    Raises InvalidInput.
    """
    value = message.value()
    if not value:
        raise InvalidInput.of("value", "is empty; a tombstone is not an event")
    headers = dict(headers_of(message))
    if headers.get("event-type") == ERASURE:
        return _decode_erasure(value)
    is_protobuf = headers.get("content-type") == PROTOBUF
    event = _decode_protobuf(value) if is_protobuf else decode_event(value)
    return Delivery(event, origin_of(message), datetime.fromtimestamp(produced_millis(message) / 1000, UTC))


def produced_millis(message: Message) -> int:
    """Returns when a record was produced first, in milliseconds since 1970: a replay does not make it younger."""
    _, timestamp = message.timestamp()
    stated = [value or b"" for name, value in headers_of(message) if name in (PRODUCED_TIME, ORIGINAL_TIMESTAMP)]
    earlier = [int(value) for value in stated if value.isdigit() and len(value) <= LONGEST_TIME]
    return max(0, min([timestamp, *earlier]))


def encode_erasure(announcement: ErasureAnnouncement) -> bytes:
    """Returns the value of a record that announces an erasure."""
    return _encode(announcement)


def _decode_erasure(value: bytes) -> ErasureAnnouncement:
    try:
        return _erasure_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidInput.of("value", "is not the announcement of an erasure") from None


def _decode_protobuf(value: bytes) -> LearningEvent:
    try:
        return event_from_proto(events_pb2.LearningEvent.FromString(value))
    except DecodeError:
        raise InvalidInput.of("value", "is not a serialized mastery.v1.LearningEvent") from None


def result_record(result: Result | DataErased, topics: Topics, trace_headers: Headers) -> OutgoingRecord:
    """Returns the record of a result, keyed by student, so that a student's results stay in order."""
    return OutgoingRecord(
        topics.results,
        result.student_id.encode(),
        _encode(result),
        [("event-type", result.event_type.encode()), ("content-type", JSON), *trace_headers],
    )


def trace_headers_of(message: Message) -> Headers:
    """Returns the headers of W3C Trace Context, as they came: what a record leads to belongs to its trace."""
    return [
        (name, value)
        for name, value in headers_of(message)
        if name in TRACE_HEADERS and value is not None and len(value) <= LONGEST_TRACE_HEADER
    ]


def headers_of(message: Message) -> Headers:
    """Returns the headers of a consumed record; a name may occur several times."""
    # The stubs leave open what a consumed record always has: names as text, values as bytes or nothing.
    return cast("Headers", message.headers() or [])
