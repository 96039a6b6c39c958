"""One membership in the consumer group: from joining to leaving, or to the first error that ends it."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from mastery_grpc.ingest.observation import Unobserved
from mastery_grpc.ingest.records import OutgoingRecord
from mastery_grpc.ingest.topics import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mastery_grpc.ingest.observation import ConsumerObserver
    from mastery_grpc.ingest.topics import KafkaAccess

GATHER_SECONDS = 0.005
"""How long a batch that has begun waits for more: next to nothing, so that a lone event need not wait."""
PUBLISH_TIMEOUT = 30.0
COMMITTED_TIMEOUT = 5.0
"""Not for long: the group may be waiting for this member to take part in a rebalance."""
ENDS_TIMEOUT = 0.5
ANY_PARTITION = -1
"""Leaves the partition to the key."""
UNLIMITED = 1_000_000_000
"""Bytes, librdkafka's most. It counts before compression, and would refuse what the broker had taken."""
# librdkafka's own codes are public there and carry an underscore here.
NOT_DELIVERED: int = KafkaError._MSG_TIMED_OUT  # noqa: SLF001
ASSIGNMENT_LOST: int = KafkaError._ASSIGNMENT_LOST  # noqa: SLF001

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records received together."""

    messages: Sequence[Message]
    revocations: int
    """How many revocations the session had seen when it began to receive them."""


@dataclass(frozen=True, slots=True)
class ProcessedBatch:
    """A batch and what each of its records led to."""

    batch: Batch
    consequences: Sequence[Sequence[OutgoingRecord]]


class KafkaSession:
    """A consumer and its producer. Everything here blocks; `receive` and `stay_alive` belong to one thread,
    `publish` to another.

    Raises KafkaException. After one the session is to be closed and a new one begun: it goes on from the
    committed offsets, so nothing is lost by that.
    """

    def __init__(
        self,
        access: KafkaAccess,
        *,
        group_id: str,
        transactional: bool,
        observer: ConsumerObserver | None = None,
    ) -> None:
        """A session that is not `transactional` publishes at least once: a crash may repeat results."""
        self._topics = access.topics
        self._observer = observer or Unobserved()
        self._transactional = transactional
        self._consumer = Consumer(
            access.client(
                group_id=group_id,
                enable_auto_commit=False,  # offsets are committed with the results that they led to
                enable_auto_offset_store=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                partition_assignment_strategy="cooperative-sticky",
                fetch_message_max_bytes=MAX_RECORD_BYTES,
            )
        )
        properties = access.client(
            enable_idempotence=True, linger_ms=0, compression_type="lz4", message_max_bytes=UNLIMITED
        )
        if transactional:
            # The name may be new each time: a zombie is fenced by the generation of its group membership.
            properties["transactional.id"] = f"{group_id}-{uuid.uuid4()}"
            properties.setdefault("transaction.timeout.ms", round(PUBLISH_TIMEOUT * 1000))
            # The broker tells a new transaction to try again while it completes the one before: soon, then.
            properties["retry.backoff.ms"], properties["retry.backoff.max.ms"] = 2, 100
            # librdkafka keeps waiting, past its own timeout, for a group coordinator that went away (its issues
            # 5456, 5511) until any connection changes its state and what it remembers of the broker is stale.
            properties["connections.max.idle.ms"] = properties["metadata.max.age.ms"] = 5000
        self._producer = Producer(properties)
        self._delivery_error: KafkaError | None = None
        # A partition is given away only between two publications, never during one: the broker checks that
        # the committing member belongs to the group, not that the partition is still his.
        self._publishing = threading.Lock()
        self._revocations = 0
        self._revoked_at: dict[int, int] = {}
        # What the publisher needs of the consumer is noted by the receiver: a call of one waits until the other
        # has left `poll`, and that may itself be waiting, in `_on_revoke`, for the publisher.
        self._assigned: set[int] = set()
        self._begun: set[int | None] = set()
        """Partitions that are known to be read from where the group had come to."""
        self._membership: Any = None
        self._done: dict[int, int] = {}
        """For each partition the offset up to which all is published."""
        self._ends: dict[int, int] = {}
        self._published: deque[list[TopicPartition]] = deque()
        """Offsets that the receiver is to commit, without transactions."""

    def open(self) -> None:
        """Joins the group."""
        if self._transactional:
            self._producer.init_transactions(PUBLISH_TIMEOUT)
        self._consumer.subscribe(
            [self._topics.requests],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )

    def receive(self, most: int, timeout: float) -> Batch:
        """Returns up to `most` records, none after `timeout` seconds without any."""
        self._commit_published()
        revocations = self._revocations
        began = time.perf_counter()
        first = self._consumer.poll(timeout)
        messages = [] if first is None else [first, *self._consumer.consume(most - 1, GATHER_SECONDS)]
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        self._check_start(messages)
        if messages:
            self._observer.received(len(messages), time.perf_counter() - began)
        self._note_ends(cached=True)
        self._membership = self._consumer.consumer_group_metadata()
        return Batch(messages, revocations)

    def publish(self, processed: Sequence[ProcessedBatch]) -> None:
        """Produces what the batches led to and commits their offsets, in one transaction.

        Records of partitions that were given away since are left out: their new owner does them again.
        """
        with self._publishing:
            outgoing: list[OutgoingRecord] = []
            done: list[Message] = []
            for one in processed:
                stale = self._stale_partitions(one.batch)
                for message, consequences in zip(one.batch.messages, one.consequences, strict=True):
                    if message.partition() not in stale:
                        outgoing += consequences
                        done.append(message)
            if not done:
                return
            offsets = _next_offsets(done)
            with self._observer.publishing(outgoing):
                if self._transactional:
                    self._publish_in_transaction(outgoing, offsets)
                else:
                    self._publish_at_least_once(outgoing, offsets)
            self._done.update((place.partition, place.offset) for place in offsets)

    def lags(self) -> dict[int, int]:
        """Returns how many records of each partition are not published yet, as far as is known. From any
        thread."""
        ends, done = self._ends.copy(), self._done.copy()
        return {
            partition: max(0, ends[partition] - offset) for partition, offset in done.items() if partition in ends
        }

    def stay_alive(self) -> None:
        """Tells the group that this member lives, while it cannot take more records."""
        self._consumer.pause(self._consumer.assignment())
        # Partitions assigned by this very poll were not paused: what it hands out is put back.
        message = self._consumer.poll(0)
        if message is not None and message.error() is None:
            self._consumer.seek(_position(message, message.offset()))
        self._note_ends(cached=False)

    def resume(self) -> None:
        """Takes records again after `stay_alive`."""
        self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """Leaves the group; a transaction under way is aborted."""
        with suppress(KafkaException):  # not committed: published once more, then
            self._commit_published()
        self._consumer.close()
        close_producer(self._producer)

    def _publish_in_transaction(self, records: Iterable[OutgoingRecord], offsets: list[TopicPartition]) -> None:
        self._producer.begin_transaction()
        try:
            self._produce(records)
            self._producer.send_offsets_to_transaction(offsets, self._membership, PUBLISH_TIMEOUT)
            self._producer.commit_transaction(PUBLISH_TIMEOUT)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                self._producer.abort_transaction(PUBLISH_TIMEOUT)
            raise

    def _publish_at_least_once(self, records: Iterable[OutgoingRecord], offsets: list[TopicPartition]) -> None:
        self._produce(records)
        if self._producer.flush(PUBLISH_TIMEOUT) or self._delivery_error is not None:
            raise KafkaException(self._delivery_error or KafkaError(NOT_DELIVERED))
        self._published.append(offsets)

    def _commit_published(self) -> None:
        while self._published:
            self._consumer.commit(offsets=self._published.popleft(), asynchronous=False)

    def _produce(self, records: Iterable[OutgoingRecord]) -> None:
        for record in records:
            produce(self._producer, record, self._on_delivery)
        self._producer.poll(0)

    def _check_start(self, messages: Sequence[Message]) -> None:
        """Raises KafkaException if a partition is read from before the committed offset.

        While a transaction that commits it is open, as after the death of its producer, the broker does not tell
        the offset. librdkafka 2.16 asks again, but if partitions are revoked meanwhile it takes the missing answer
        for "none", begins at `auto.offset.reset`, and results long published would be published once more.
        """
        firsts: dict[int | None, Message] = {}
        for message in messages:
            if message.partition() not in self._begun:
                firsts.setdefault(message.partition(), message)
        if not firsts:
            return
        places = [_position(message, None) for message in firsts.values()]
        for committed in self._consumer.committed(places, COMMITTED_TIMEOUT):
            if (firsts[committed.partition].offset() or 0) < committed.offset:
                raise KafkaException(KafkaError(ASSIGNMENT_LOST))
        self._begun.update(firsts)
        self._done.update((partition or 0, message.offset() or 0) for partition, message in firsts.items())

    def _note_ends(self, *, cached: bool) -> None:
        """Notes where the partitions end: as was told with the last records, or, while none are fetched, anew."""
        with suppress(KafkaException):
            for partition in self._assigned:
                place = TopicPartition(self._topics.requests, partition)
                found = self._consumer.get_watermark_offsets(place, timeout=ENDS_TIMEOUT, cached=cached)
                if found is not None and found[1] >= 0:
                    self._ends[partition] = found[1]

    def _stale_partitions(self, batch: Batch) -> set[int | None]:
        """Returns the partitions of a batch that were given away since it was received.

        Raises KafkaException if one of them has come back: the reader has moved past records that were not
        done, and only a new session goes back to them.
        """
        stale = {
            message.partition()
            for message in batch.messages
            if self._revoked_at.get(message.partition() or 0, 0) > batch.revocations
        }
        if stale & self._assigned:
            raise KafkaException(KafkaError(ASSIGNMENT_LOST))
        return stale

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned.update(partition.partition for partition in partitions)
        self._membership = consumer.consumer_group_metadata()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Not for ever: a publication that hangs belongs to the generation that ends here, and is fenced with it.
        is_held = self._publishing.acquire(timeout=PUBLISH_TIMEOUT)
        try:
            with suppress(KafkaException):
                self._commit_published()
            self._revocations += 1
            self._assigned.difference_update(partition.partition for partition in partitions)
            self._begun.difference_update(partition.partition for partition in partitions)
            for partition in partitions:
                self._revoked_at[partition.partition] = self._revocations
                self._done.pop(partition.partition, None)
        finally:
            if is_held:
                self._publishing.release()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._delivery_error = error


def produce(
    producer: Producer,
    record: OutgoingRecord,
    on_delivery: Callable[[KafkaError | None, Message], None],
    *,
    partition: int = ANY_PARTITION,
) -> None:
    """Hands a record to the producer; waits only while its queue is full."""
    while True:
        try:
            producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                headers=record.headers,
                partition=partition,
                on_delivery=on_delivery,
            )
            break
        except BufferError:
            producer.poll(0.1)


def close_producer(producer: Producer) -> None:
    """Closes a producer; a transaction under way is aborted."""
    # Of one that was fenced, confluent-kafka 2.16 says so in a way that Python takes for a fault of its own.
    with suppress(SystemError):
        producer.close()


def _next_offsets(messages: Sequence[Message]) -> list[TopicPartition]:
    """Returns for each partition the offset of the record after the last one consumed."""
    last = {message.partition(): message for message in messages}
    return [_position(message, (message.offset() or 0) + 1) for message in last.values()]


def _position(message: Message, offset: int | None) -> TopicPartition:
    return TopicPartition(message.topic() or "", message.partition() or 0, offset or 0)
