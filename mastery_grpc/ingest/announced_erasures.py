"""The erasures that `mastery.results` tells of: what a Redis put back from a backup does not know."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
from mastery_grpc.domain.errors import BrokerUnavailable
from mastery_grpc.domain.results import DataErased
from mastery_grpc.ingest.records import ERASURE, headers_of
from mastery_grpc.ingest.session import PUBLISH_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from confluent_kafka import Message

    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.ingest.topics import KafkaAccess

CONNECT_TIMEOUT = 10.0
SILENCE = PUBLISH_TIMEOUT + 15.0
"""Seconds without any progress: the transaction of a worker that died ends before."""
AT_ONCE = 1000
POLL_SECONDS = 0.1
PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's own codes carry an underscore here

_decode = msgspec.json.Decoder(DataErased).decode


def announced_erasures(access: KafkaAccess, since: datetime) -> list[ErasureAnnouncement]:
    """Returns the latest erasure of each student who was announced as erased since then. Blocks.

    Raises KafkaException, BrokerUnavailable. The results are believed because only the worker may write there.
    """
    latest: dict[StudentKey, ErasureAnnouncement] = {}
    for message in _read(access, since):
        if dict(headers_of(message)).get("event-type") == ERASURE:
            told = _announcement(message)
            before = latest.get(told.student)
            if before is None or before.erase_millis < told.erase_millis:
                latest[told.student] = told
    return list(latest.values())


def _announcement(message: Message) -> ErasureAnnouncement:
    told = _decode(message.value() or b"")
    return ErasureAnnouncement(
        student_id=told.student_id,
        school_id=told.school_id,
        receipt_id=told.receipt_id,
        erase_millis=told.timestamp,
    )


def _read(access: KafkaAccess, since: datetime) -> Iterator[Message]:
    """Yields the committed results from a time to the end."""
    properties = access.client(
        group_id="mastery-erase-again",  # librdkafka asks for one; nobody joins it, for partitions are assigned
        enable_auto_commit=False,
        enable_partition_eof=True,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    topic = access.topics.results
    with contextlib.closing(Consumer(properties)) as consumer:
        known = consumer.list_topics(topic, timeout=CONNECT_TIMEOUT).topics[topic]
        if known.error is not None:
            raise KafkaException(known.error)
        millis = round(since.timestamp() * 1000)
        wanted = [TopicPartition(topic, partition, millis) for partition in known.partitions]
        places = consumer.offsets_for_times(wanted, timeout=CONNECT_TIMEOUT)
        unread = {place.partition for place in places if place.offset != OFFSET_END}
        consumer.assign([place for place in places if place.partition in unread])
        deadline = time.monotonic() + SILENCE
        while unread:
            messages = consumer.consume(AT_ONCE, POLL_SECONDS)
            if messages:
                deadline = time.monotonic() + SILENCE
            elif time.monotonic() > deadline:
                raise BrokerUnavailable(f"kafka: no end of {topic} within {SILENCE:.0f} s")
            for message in messages:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == PARTITION_EOF:
                    unread.discard(message.partition() or 0)
                else:
                    raise KafkaException(error)
