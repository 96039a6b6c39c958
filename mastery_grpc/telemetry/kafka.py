"""Records that come from Kafka and go there, by the semantic conventions of messaging.

What is processed together has one span, which is linked to the calls and producers that the records come from.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import SpanKind

from mastery_grpc.telemetry.trace_context import (
    common_parent,
    headers_of_current,
    running_span,
    sampled,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from confluent_kafka import Message
    from opentelemetry.trace import Tracer

    from mastery_grpc.telemetry.instruments import Attributes, Distribution, Histogram, Instruments

Headers = list[tuple[str, str | bytes | None]]
SYSTEM = {"messaging.system": "kafka"}


class Record(Protocol):
    """What is looked at of a record that is sent."""

    @property
    def topic(self) -> str: ...

    @property
    def headers(self) -> Headers: ...


class KafkaTelemetry:
    """The metrics of both ends, and whether traces are kept."""

    def __init__(self, instruments: Instruments, tracer: Tracer | None) -> None:
        self.tracer = tracer
        self.operations = instruments.histogram(
            "messaging.client.operation.duration",
            description="Duration of a poll that brought records, of sending, or of a transaction.",
        )
        self.processing = instruments.histogram(
            "messaging.process.duration", description="Duration of applying the records of one poll."
        )
        self.consumed = instruments.counter(
            "messaging.client.consumed.messages", unit="{message}", description="Records received."
        )
        self.sent = instruments.counter(
            "messaging.client.sent.messages", unit="{message}", description="Records sent, or tried to."
        )
        self.dead_letters = instruments.counter(
            "mastery.dead_letters", unit="{record}", description="Records refused, by the error that they made."
        )

    def consumer(self, topic: str, group: str) -> ConsumerTelemetry:
        """Returns the observer of a worker."""
        return ConsumerTelemetry(self, topic, group)

    def producer(self, topic: str) -> ProducerTelemetry:
        """Returns the observer of what a server sends to a topic."""
        return ProducerTelemetry(self, topic)

    def count_sent(self, topic: str, count: int, error_type: str = "") -> None:
        """Counts what was sent, or not."""
        failed = {"error.type": error_type} if error_type else {}
        place = {"messaging.operation.name": "send", "messaging.destination.name": topic}
        self.sent.at(SYSTEM | place | failed).add(count)


class ConsumerTelemetry:
    """Observes a worker: its receiver, its processing and its publisher, each in a thread of its own."""

    def __init__(self, metrics: KafkaTelemetry, topic: str, group: str) -> None:
        self._metrics = metrics
        place = {"messaging.destination.name": topic, "messaging.consumer.group.name": group}
        self._polls = _Operation("poll", "receive", place, metrics.operations)
        self._commits = _Operation("commit", "settle", place, metrics.operations)
        self._processing = _Operation("process", "process", place, metrics.processing)
        self._consumed = metrics.consumed.at(self._polls.attributes)

    def received(self, count: int, seconds: float) -> None:
        """Takes note of records received together."""
        self._consumed.add(count)
        self._polls.took(seconds)

    @contextmanager
    def processing(self, messages: Sequence[Message]) -> Iterator[None]:
        """Observes the body, which decodes and applies the records."""
        headers: Iterable[Headers] = (message.headers() or [] for message in messages)  # type: ignore[misc]
        with self._processing.timed(), self._span(self._processing, SpanKind.CONSUMER, headers, len(messages)):
            yield

    def dead_letter(self, reason: str) -> None:
        """Takes note of a refused record."""
        self._metrics.dead_letters.at({"reason": reason}).add()

    @contextmanager
    def publishing(self, records: Sequence[Record]) -> Iterator[None]:
        """Observes the body, which sends these records and commits what they were made from."""
        headers = (record.headers for record in records)
        error_type = ""
        try:
            with self._commits.timed(), self._span(self._commits, SpanKind.PRODUCER, headers, len(records)):
                yield
        except BaseException as error:
            error_type = type_of(error)
            raise
        finally:
            for topic, count in Tally(record.topic for record in records).items():
                self._metrics.count_sent(topic, count, error_type)

    def _span(
        self, operation: _Operation, kind: SpanKind, headers: Iterable[Headers], count: int
    ) -> AbstractContextManager[None]:
        if self._metrics.tracer is None:
            return nullcontext()
        contexts = sampled(headers)
        attributes = operation.span_attributes | {"messaging.batch.message_count": count}
        return running_span(
            self._metrics.tracer,
            operation.span_name,
            kind,
            attributes,
            parent=common_parent(contexts),
            links=contexts,
        )


class ProducerTelemetry:
    """Observes what a server sends."""

    def __init__(self, metrics: KafkaTelemetry, topic: str) -> None:
        self._metrics = metrics
        self._topic = topic
        self._sends = _Operation("send", "send", {"messaging.destination.name": topic}, metrics.operations)

    @contextmanager
    def sending(self, count: int) -> Iterator[Headers]:
        """Observes the body, which sends so many records; yields the headers that tie them to the call."""
        error_type = ""
        try:
            with self._sends.timed(), self._span(count):
                yield headers_of_current()
        except BaseException as error:
            error_type = type_of(error)
            raise
        finally:
            self._metrics.count_sent(self._topic, count, error_type)

    def _span(self, count: int) -> AbstractContextManager[None]:
        if self._metrics.tracer is None:
            return nullcontext()
        attributes = self._sends.span_attributes | {"messaging.batch.message_count": count}
        return running_span(self._metrics.tracer, self._sends.span_name, SpanKind.PRODUCER, attributes)


class _Operation:
    """What is done again and again in one place: how long it takes, and what its spans say."""

    def __init__(self, name: str, kind: str, place: Attributes, durations: Histogram) -> None:
        self.attributes = SYSTEM | place | {"messaging.operation.name": name}
        self.span_attributes: dict[str, str | int] = {**self.attributes, "messaging.operation.type": kind}
        self.span_name = f"{name} {place['messaging.destination.name']}"
        self._durations = durations
        self._succeeded: Distribution = durations.at(self.attributes)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.perf_counter()
        failed = None
        try:
            yield
        except BaseException as error:
            failed = self._durations.at(self.attributes | {"error.type": type_of(error)})
            raise
        finally:
            (failed or self._succeeded).record(time.perf_counter() - began)

    def took(self, seconds: float) -> None:
        self._succeeded.record(seconds)
