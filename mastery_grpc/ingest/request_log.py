"""The producer of `mastery.requests`, for events that come in by gRPC."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException, Producer

from mastery_grpc.application.event_json import encode_event
from mastery_grpc.domain.errors import BrokerUnavailable
from mastery_grpc.ingest.observation import Unobserved
from mastery_grpc.ingest.records import ERASURE, JSON, PRODUCED_TIME, encode_erasure, origin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confluent_kafka import KafkaError, Message

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.ingest.observation import ProducerObserver
    from mastery_grpc.ingest.records import Headers
    from mastery_grpc.ingest.topics import KafkaAccess

POLL_SECONDS = 0.1


class _Appending:
    """Collects the delivery reports of one append, in librdkafka's thread."""

    def __init__(self, count: int, done: Callable[[list[str] | KafkaError], object]) -> None:
        self._origins = [""] * count
        self._missing = count
        self._done = done
        self._error: KafkaError | None = None

    def report_to(self, index: int) -> Callable[[KafkaError | None, Message], None]:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._error = error
            else:
                self._origins[index] = origin_of(message)
            self._missing -= 1
            if not self._missing:
                self._done(self._origins if self._error is None else self._error)

        return on_delivery


class KafkaRequestLog:
    """Implements `RequestLog`: an append returns once all in-sync replicas have the events."""

    def __init__(
        self,
        access: KafkaAccess,
        *,
        timeout: float,
        breaker: CircuitBreaker,
        observer: ProducerObserver | None = None,
    ) -> None:
        """`timeout` in seconds is how long the broker may take before it counts as away."""
        self._breaker = breaker
        self._observer = observer or Unobserved()
        self._topic = access.topics.requests
        self._producer = Producer(
            access.client(
                enable_idempotence=True,
                linger_ms=2,
                compression_type="lz4",
                delivery_timeout_ms=round(timeout * 1000),
            )
        )
        self._closing = threading.Event()
        self._reports = threading.Thread(target=self._serve_reports, name="kafka-reports", daemon=True)
        self._reports.start()

    async def append(self, events: Sequence[LearningEvent], *, produced_time: datetime | None = None) -> list[str]:
        headers: Headers = [("content-type", JSON)]
        if produced_time is not None:
            headers.append((PRODUCED_TIME, b"%d" % (produced_time.timestamp() * 1000)))
        values = [(event.student.student_id, encode_event(event)) for event in events]
        async with self._breaker.guard():
            with self._observer.sending(len(values)) as trace_headers:
                return await self._append(values, [*headers, *trace_headers])

    async def append_erasure(self, announcement: ErasureAnnouncement) -> None:
        headers: Headers = [("content-type", JSON), ("event-type", ERASURE)]
        async with self._breaker.guard():
            with self._observer.sending(1) as trace_headers:
                value = announcement.student_id, encode_erasure(announcement)
                await self._append([value], [*headers, *trace_headers])

    def close(self) -> None:
        """Delivers what is under way, as long as its timeout allows."""
        self._producer.flush()
        self._closing.set()
        self._reports.join()

    async def _append(self, values: Sequence[tuple[str, bytes]], headers: Headers) -> list[str]:
        """Appends values, each with the student that is its key."""
        loop = asyncio.get_running_loop()
        appended: asyncio.Future[list[str]] = loop.create_future()

        def settle(answer: list[str] | KafkaError) -> None:
            if appended.done():  # the caller has gone
                return
            if isinstance(answer, list):
                appended.set_result(answer)
            else:
                appended.set_exception(BrokerUnavailable(f"kafka: {answer.name()}"))

        appending = _Appending(len(values), lambda answer: loop.call_soon_threadsafe(settle, answer))
        try:
            for index, (student_id, value) in enumerate(values):
                self._producer.produce(
                    self._topic,
                    key=student_id,
                    value=value,
                    headers=headers,
                    on_delivery=appending.report_to(index),
                )
        except (BufferError, KafkaException) as error:
            raise BrokerUnavailable(f"kafka: {error}") from error
        return await appended

    def _serve_reports(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(POLL_SECONDS)
