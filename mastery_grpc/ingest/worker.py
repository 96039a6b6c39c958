"""The ingest worker: from `mastery.requests` through the fold to `mastery.results`, batch by batch.

1. read a batch  2. decode and validate, refuse bad records  3. load the students' states  4. fold
5. commit to Redis  6. produce results, dead letters and offsets in one transaction  7. commit it

Bad data becomes a dead letter at once. Bad weather is waited out. A crash after 5 is healed by redelivery:
the records of what was applied hold the results, and they are produced then.

Receiving, applying and publishing go on at the same time. What is applied while a transaction is under way goes
into the next one together, so that the time that a transaction takes keeps no event from being applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaException

from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
from mastery_grpc.application.event_observer import NobodyWatchesEvents
from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.errors import (
    BrokerUnavailable,
    Contention,
    InvalidInput,
    StorageUnavailable,
    StudentErased,
)
from mastery_grpc.domain.results import data_erased
from mastery_grpc.ingest.dead_letters import DeadLetterWatch, PoisonRecord, TooManyDeadLetters, dead_letter
from mastery_grpc.ingest.observation import Unobserved
from mastery_grpc.ingest.records import (
    OutgoingRecord,
    decode_request,
    origin_of,
    result_record,
    trace_headers_of,
)
from mastery_grpc.ingest.session import Batch, KafkaSession, ProcessedBatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from datetime import datetime

    from confluent_kafka import Message

    from mastery_grpc.application.apply_events import ApplyEvents
    from mastery_grpc.application.compliance.student_records import StudentRecords
    from mastery_grpc.application.event_observer import EventObserver
    from mastery_grpc.ingest.dead_letters import DeadLetterLimit
    from mastery_grpc.ingest.observation import ConsumerObserver
    from mastery_grpc.ingest.topics import KafkaAccess

POLL_SECONDS = 0.5
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
MAX_UNPUBLISHED = 8
"""How many applied batches may wait for a transaction before no more are received."""
MAX_CONTENDED = 5
"""How often a batch is tried that other writers keep overtaking; each time it is tried many times already."""
MAX_ATTEMPTS = 3
"""How often a record may break the engine before it counts as poison."""

log = structlog.get_logger(__name__)
_Answer = TypeVar("_Answer")


class _Stopped(Exception):
    """Told to stop while waiting for the weather. Nothing of the batch in hand is committed; it comes again."""


class IngestWorker:
    """Runs until told to stop; outlives every outage of Kafka and Redis."""

    def __init__(
        self,
        access: KafkaAccess,
        apply: ApplyEvents,
        records: StudentRecords,
        *,
        group_id: str,
        transactional: bool,
        batch_size: int,
        dead_letter_limit: DeadLetterLimit,
        clock: Callable[[], datetime],
        observer: ConsumerObserver | None = None,
        events: EventObserver | None = None,
    ) -> None:
        self._access = access
        self._apply = apply
        self._records = records
        self._group_id = group_id
        self._transactional = transactional
        self._batch_size = batch_size
        self._dead_letters = DeadLetterWatch(dead_letter_limit)
        self._clock = clock
        self._observer = observer or Unobserved()
        self._events = events or NobodyWatchesEvents()
        self._session: KafkaSession | None = None
        self._stopping = asyncio.Event()
        self._is_consuming = False
        # librdkafka's calls block: one thread receives, another publishes.
        self._receiver = ThreadPoolExecutor(1, thread_name_prefix="kafka-receive")
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="kafka-publish")

    async def check(self) -> None:
        """Raises BrokerUnavailable unless the worker is joining its group, or a member of it."""
        if not self._is_consuming:
            raise BrokerUnavailable("not consuming")

    def lags(self) -> dict[int, int]:
        """Returns how many records of each partition it holds are not published yet, as far as is known."""
        return {} if (session := self._session) is None else session.lags()

    def stop(self) -> None:
        """Asks `run` to finish the batch in hand and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until stopped."""
        delays, now = _delays(), asyncio.get_running_loop().time
        if not self._transactional:
            log.warning("results are published at least once: transactions are switched off")
        while not self._stopping.is_set():
            began = now()
            try:
                await self._hold_session()
            except KafkaException as error:
                if now() - began > LONGEST_DELAY:  # it had worked
                    delays = _delays()
                delay = next(delays)
                log.warning("kafka session ended", error=str(error), retry_in=round(delay, 2))
                await self._pause(delay)
            except TooManyDeadLetters as error:
                # Nothing of the last batch is committed: after the repair it is read again.
                log.error("stopped consuming", reason=str(error))  # noqa: TRY400 - a verdict, not a crash
                await self._stopping.wait()
            except _Stopped:
                break
            except Exception:
                # A bug, and not of a single record. Nothing of the batch is committed: said aloud, tried again.
                log.exception("unexpected error")
                await self._pause(LONGEST_DELAY)
        self._receiver.shutdown()
        self._publisher.shutdown()

    async def _hold_session(self) -> None:
        """Consumes in one membership of the group until stopped. Raises KafkaException."""
        session = KafkaSession(
            self._access, group_id=self._group_id, transactional=self._transactional, observer=self._observer
        )
        receiving: asyncio.Future[Batch] | None = None
        publishing: asyncio.Future[None] | None = None
        processed: list[ProcessedBatch] = []
        try:
            await self._in(self._receiver, session.open)
            self._is_consuming, self._session = True, session
            while not self._stopping.is_set():
                if receiving is None and not processed:
                    receiving = self._in(self._receiver, session.receive, self._batch_size, POLL_SECONDS)
                under_way = [future for future in (receiving, publishing) if future is not None]
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                if publishing is not None and publishing.done():
                    publishing = publishing.result()
                if receiving is not None and receiving.done():
                    batch, receiving = receiving.result(), None  # 1
                    if len(processed) + 1 < MAX_UNPUBLISHED:
                        receiving = self._in(self._receiver, session.receive, self._batch_size, POLL_SECONDS)
                    if batch.messages:
                        with self._observer.processing(batch.messages):
                            records = await self._process(session, batch.messages)
                        processed.append(ProcessedBatch(batch, records))
                if processed and publishing is None:
                    publishing, processed = self._in(self._publisher, session.publish, processed), []  # 6, 7
            if publishing is not None:
                await publishing
            if processed:
                await self._in(self._publisher, session.publish, processed)
        finally:
            self._is_consuming, self._session = False, None
            under_way = [future for future in (receiving, publishing) if future is not None]
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._in(self._receiver, session.close)

    async def _process(self, session: KafkaSession, messages: Sequence[Message]) -> list[list[OutgoingRecord]]:
        """Returns what each record led to: its results, or the dead letter that became of it."""
        verdicts = [_verdict(message) for message in messages]  # 2
        deliveries = [verdict for verdict in verdicts if isinstance(verdict, Delivery)]
        outcomes = iter(await self._apply_in_any_weather(session, deliveries))  # 3, 4, 5
        topics, now = self._access.topics, self._clock()
        records = []
        for message, verdict in zip(messages, verdicts, strict=True):
            if isinstance(verdict, ErasureAnnouncement):
                records.append(await self._announced(session, message, verdict))
                continue
            if isinstance(verdict, Delivery):
                outcome = next(outcomes)
                self._events.settled(verdict.event, outcome, age=_age(message, now))
            else:
                outcome = Outcome(error=verdict)
                self._events.refused()
            is_suppressed = isinstance(outcome.error, StudentErased)
            self._dead_letters.count(refused=outcome.error is not None and not is_suppressed)
            if is_suppressed:  # and kept nowhere, a dead letter would be a trace of him
                log.info("dropped: its student was erased since", origin=origin_of(message))
                records.append([])
            elif outcome.error is not None:
                reason = type(outcome.error).__name__
                log.info("dead letter", origin=origin_of(message), reason=reason)
                self._observer.dead_letter(reason)
                records.append([dead_letter(message, outcome.error, topics=topics, now=now)])
            else:
                trace_headers = trace_headers_of(message) if outcome.results else []
                records.append([result_record(result, topics, trace_headers) for result in outcome.results])
        return records

    async def _announced(
        self, session: KafkaSession, message: Message, announcement: ErasureAnnouncement
    ) -> list[OutgoingRecord]:
        """Returns what announces an erasure: nothing if it never was, or another record announced it."""
        student, origin = announcement.student, origin_of(message)
        mark = await self._in_any_weather(
            session, lambda: self._records.claim_announcement(student, announcement.receipt_id, origin)
        )
        if mark is None:
            log.warning("dropped: announces no erasure, or one that was announced", origin=origin)
            return []
        told = data_erased(student=student, receipt_id=mark.receipt_id, erase_millis=mark.erase_millis)
        return [result_record(told, self._access.topics, trace_headers_of(message))]

    async def _apply_in_any_weather(
        self, session: KafkaSession, deliveries: Sequence[Delivery]
    ) -> Sequence[Outcome]:
        """Applies the deliveries however long it takes.

        Deliveries that break the engine are tried one by one, so that only the guilty are refused.
        """
        delays, failures, contended = _delays(), 0, 0
        while True:
            try:
                outcomes = await self._in_any_weather(session, lambda: self._apply(deliveries))
            except (_Stopped, KafkaException):
                raise
            except Exception as error:
                failures += 1
                log.exception("unexpected error", deliveries=len(deliveries))
                if len(deliveries) > 1:
                    each = [await self._apply_in_any_weather(session, [delivery]) for delivery in deliveries]
                    return [outcome for [outcome] in each]
                if failures >= MAX_ATTEMPTS:
                    return [Outcome(error=PoisonRecord(error, failures))]
            else:
                is_contended = any(isinstance(outcome.error, Contention) for outcome in outcomes)
                contended += is_contended
                if is_contended and contended < MAX_CONTENDED:
                    await self._wait_out(next(delays))  # what was applied is known; the rest tries again
                    continue
                return outcomes

    async def _in_any_weather(self, session: KafkaSession, work: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Does what needs the storage however long it takes, while the group is told that this member lives."""
        delays, is_paused = _delays(), False
        while True:
            try:
                answer = await work()
            except StorageUnavailable as error:
                delay = next(delays)
                log.warning("storage is away", error=str(error), retry_in=round(delay, 2))
                is_paused = True
                await self._in(self._receiver, session.stay_alive)
                await self._wait_out(delay)
            else:
                if is_paused:
                    await self._in(self._receiver, session.resume)
                return answer

    async def _wait_out(self, seconds: float) -> None:
        """Waits. Raises _Stopped if told to stop meanwhile."""
        await self._pause(seconds)
        if self._stopping.is_set():
            raise _Stopped

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than until told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _in(self, thread: ThreadPoolExecutor, call: Callable[..., _Answer], *args: Any) -> asyncio.Future[_Answer]:
        return asyncio.get_running_loop().run_in_executor(thread, call, *args)


def _verdict(message: Message) -> Delivery | ErasureAnnouncement | InvalidInput:
    try:
        return decode_request(message)
    except InvalidInput as error:
        return error


def _age(message: Message, now: datetime) -> float | None:
    """Returns the seconds since the record was produced, None if it does not say."""
    kind, milliseconds = message.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else now.timestamp() - milliseconds / 1000


def _delays() -> Iterator[float]:
    """Yields waiting times in seconds: capped exponential back-off with jitter."""
    longest = FIRST_DELAY
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311 - spreads retries, guards nothing
        longest = min(2 * longest, LONGEST_DELAY)
