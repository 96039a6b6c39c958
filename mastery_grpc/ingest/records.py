"""Kafka records: how a request is read, and how results and dead letters are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec
from google.protobuf.message import DecodeError

from mastery.v1 import events_pb2
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.application.event_protobuf import event_from_proto
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import InvalidInput, MasteryError

if TYPE_CHECKING:
    from datetime import datetime

    from confluent_kafka import Message

    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.domain.results import Result
    from mastery_grpc.ingest.topics import Topics

JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"
DEAD_LETTER_HEADER = "dlq-"
ATTEMPT_COUNT = "dlq-attempt-count"
MAX_ERROR_MESSAGE = 1000

_encode = msgspec.json.Encoder().encode


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


def decode_request(message: Message) -> Delivery:
    """Returns the delivery in a record of `mastery.requests`. Raises InvalidInput."""
    value = message.value()
    if not value:
        raise InvalidInput.of("value", "is empty; a tombstone is not an event")
    is_protobuf = dict(_headers_of(message)).get("content-type") == PROTOBUF
    event = _decode_protobuf(value) if is_protobuf else decode_event(value)
    return Delivery(event, origin_of(message))


def _decode_protobuf(value: bytes) -> LearningEvent:
    try:
        return event_from_proto(events_pb2.LearningEvent.FromString(value))
    except DecodeError:
        raise InvalidInput.of("value", "is not a serialized mastery.v1.LearningEvent") from None


def result_record(result: Result, topics: Topics) -> OutgoingRecord:
    """Returns the record of a result, keyed by student, so that a student's results stay in order."""
    return OutgoingRecord(
        topics.results,
        result.student_id.encode(),
        _encode(result),
        [("event-type", result.event_type.encode()), ("content-type", JSON)],
    )


def dead_letter(message: Message, error: MasteryError, *, topics: Topics, now: datetime) -> OutgoingRecord:
    """Returns a refused record byte for byte, with its own headers and those that say why it is here."""
    headers = _headers_of(message)
    attempts = next((int(value or 0) for name, value in headers if name == ATTEMPT_COUNT), 0) + 1
    _, timestamp = message.timestamp()
    return OutgoingRecord(
        topics.dead_letters,
        message.key(),
        message.value(),
        [
            *((name, value) for name, value in headers if not name.startswith(DEAD_LETTER_HEADER)),
            ("dlq-error-class", type(error).__name__.encode()),
            ("dlq-error-message", str(error)[:MAX_ERROR_MESSAGE].encode(errors="replace")),
            ("dlq-original-topic", (message.topic() or "").encode()),
            ("dlq-original-partition", str(message.partition()).encode()),
            ("dlq-original-offset", str(message.offset()).encode()),
            ("dlq-original-timestamp", str(timestamp).encode()),
            ("dlq-time", now.isoformat().encode()),
            (ATTEMPT_COUNT, str(attempts).encode()),
        ],
    )


def _headers_of(message: Message) -> Headers:
    # The stubs leave open what a consumed record always has: names as text, values as bytes or nothing.
    return cast("Headers", message.headers() or [])
