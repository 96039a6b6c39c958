"""The ingest worker: from `mastery.requests` through the fold to `mastery.results`, batch by batch.

1. read a batch  2. decode and validate, refuse bad records  3. load the students' states  4. fold
5. commit to Redis  6. produce results, dead letters and offsets in one transaction  7. commit it

Bad data becomes a dead letter at once. Bad weather is waited out. A crash after 5 is healed by redelivery:
the records of what was applied hold the results, and they are produced then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from confluent_kafka import KafkaException

from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.errors import BrokerUnavailable, Contention, InvalidInput, StorageUnavailable
from mastery_grpc.ingest.records import (
    OutgoingRecord,
    dead_letter,
    decode_request,
    origin_of,
    result_record,
)
from mastery_grpc.ingest.session import KafkaSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from confluent_kafka import Message

    from mastery_grpc.application.apply_events import ApplyEvents
    from mastery_grpc.ingest.topics import KafkaAccess

POLL_SECONDS = 0.5
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0

log = structlog.get_logger(__name__)
_Answer = TypeVar("_Answer")


class IngestWorker:
    """Runs until told to stop; outlives every outage of Kafka and Redis."""

    def __init__(
        self,
        access: KafkaAccess,
        apply: ApplyEvents,
        *,
        group_id: str,
        transactional: bool,
        batch_size: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._access = access
        self._apply = apply
        self._group_id = group_id
        self._transactional = transactional
        self._batch_size = batch_size
        self._clock = clock
        self._stopping = asyncio.Event()
        self._is_member = False
        # librdkafka's calls block; one thread makes them all, so that they keep their order.
        self._kafka_thread = ThreadPoolExecutor(1, thread_name_prefix="kafka")

    async def check(self) -> None:
        """Raises BrokerUnavailable unless the worker is joining its group, or a member of it."""
        if not self._is_member:
            raise BrokerUnavailable("not a member of the consumer group")

    def stop(self) -> None:
        """Asks `run` to finish the batch in hand and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until stopped."""
        delays = _delays()
        if not self._transactional:
            log.warning("results are published at least once: transactions are switched off")
        while not self._stopping.is_set():
            try:
                await self._work()
            except KafkaException as error:
                delay = next(delays)
                log.warning("kafka session ended", error=str(error), retry_in=round(delay, 2))
                await self._pause(delay)
        self._kafka_thread.shutdown()

    async def _work(self) -> None:
        """Holds one session with Kafka until stopped. Raises KafkaException."""
        session = KafkaSession(self._access, group_id=self._group_id, transactional=self._transactional)
        try:
            await self._in_kafka_thread(session.open)
            self._is_member = True
            while not self._stopping.is_set():
                messages = await self._in_kafka_thread(session.receive, self._batch_size, POLL_SECONDS)  # 1
                if messages:
                    await self._process(session, messages)
        finally:
            self._is_member = False
            await self._in_kafka_thread(session.close)

    async def _process(self, session: KafkaSession, messages: Sequence[Message]) -> None:
        verdicts = [_verdict(message) for message in messages]  # 2
        deliveries = [verdict for verdict in verdicts if isinstance(verdict, Delivery)]
        outcomes = await self._apply_in_any_weather(session, deliveries)  # 3, 4, 5
        if outcomes is None:
            return  # stopped while waiting: nothing is committed, the batch comes again
        records: list[OutgoingRecord] = []
        following = iter(outcomes)
        for message, verdict in zip(messages, verdicts, strict=True):
            outcome = next(following) if isinstance(verdict, Delivery) else Outcome(error=verdict)
            if outcome.error is not None:
                log.info("dead letter", origin=origin_of(message), reason=type(outcome.error).__name__)
                now, topics = self._clock(), self._access.topics
                records.append(dead_letter(message, outcome.error, topics=topics, now=now))
            records += [result_record(result, self._access.topics) for result in outcome.results]
        await self._in_kafka_thread(session.publish, records, messages)  # 6, 7

    async def _apply_in_any_weather(
        self, session: KafkaSession, deliveries: Sequence[Delivery]
    ) -> Sequence[Outcome] | None:
        """Applies the deliveries however long it takes; returns None if told to stop before it succeeded."""
        delays = _delays()
        while not self._stopping.is_set():
            try:
                outcomes = await self._apply(deliveries)
            except StorageUnavailable as error:
                delay = next(delays)
                log.warning("storage is away", error=str(error), retry_in=round(delay, 2))
                await self._in_kafka_thread(session.stay_alive)
                await self._pause(delay)
            else:
                if not any(isinstance(outcome.error, Contention) for outcome in outcomes):
                    await self._in_kafka_thread(session.resume)
                    return outcomes
        return None

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than until told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _in_kafka_thread(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._kafka_thread, call, *args)


def _verdict(message: Message) -> Delivery | InvalidInput:
    try:
        return decode_request(message)
    except InvalidInput as error:
        return error


def _delays() -> Iterator[float]:
    """Yields waiting times in seconds: capped exponential back-off with jitter."""
    longest = FIRST_DELAY
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311 - spreads retries, guards nothing
        longest = min(2 * longest, LONGEST_DELAY)
