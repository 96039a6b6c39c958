"""The dead letters as work: found by reason, time, student or place; sent again, or dropped; done once.

Kafka deletes no single records. What was done about a dead letter is a record of its own, on the same
partition of `mastery.dlq` and without a value: a mark, which names the letter in its headers. A mark is
younger than its letter, so it is there as long as the letter is. Replaying sends the letter and its mark in one
transaction: both are there, or neither.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, cast

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from mastery_grpc.domain.errors import BrokerUnavailable, InvalidInput
from mastery_grpc.ingest.dead_letters import ATTEMPT_COUNT
from mastery_grpc.ingest.records import Headers, OutgoingRecord, headers_of
from mastery_grpc.ingest.session import PUBLISH_TIMEOUT, UNLIMITED, close_producer, produce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mastery_grpc.ingest.topics import KafkaAccess

RESOLVES = "dlq-resolves"
RESOLUTION = "dlq-resolution"
RESOLVED_TIME = "dlq-resolved-time"
RESOLVED_BY = "dlq-resolved-by"

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = PUBLISH_TIMEOUT + 15.0
"""Seconds without any progress. A worker that died leaves its transaction open for as long as its timeout, and
nobody reads past an open transaction."""
POLL_SECONDS = 0.1
LETTERS_PER_TRANSACTION = 100
PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's own codes carry an underscore here
LEADER_CHANGES = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
"""What a partition answers that is new, or whose broker has just gone: to be asked again."""
_place = re.compile(r"(\d{1,9})/(\d{1,18})", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record of `mastery.dlq` stands; the id of a dead letter."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Returns the place that a text names. Raises InvalidInput."""
        if (found := _place(text)) is None:
            raise InvalidInput.of("id", f"{text!r} is not of the form partition/offset")
        return cls(int(found[1]), int(found[2]))


class Resolution(StrEnum):
    """What was done about a dead letter."""

    REPLAYED = "replayed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Mark:
    """The proof that a dead letter is done with."""

    resolution: str
    time: str
    """RFC 3339."""
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One refused record, without its value."""

    place: Place
    key: bytes | None
    size: int
    """Bytes of the value."""
    headers: Headers
    mark: Mark | None = None
    """None as long as nobody has replayed or dropped it."""

    @property
    def student_id(self) -> str:
        return (self.key or b"").decode(errors="replace")

    @property
    def error_class(self) -> str:
        return _header(self.headers, "dlq-error-class")

    @property
    def error_message(self) -> str:
        return _header(self.headers, "dlq-error-message")

    @property
    def origin(self) -> str:
        """Where it was refused, as topic/partition/offset."""
        return "/".join(_header(self.headers, f"dlq-original-{part}") for part in ("topic", "partition", "offset"))

    @property
    def time(self) -> datetime | None:
        """When it was refused; None if it does not say."""
        try:
            refused = datetime.fromisoformat(_header(self.headers, "dlq-time"))
        except ValueError:
            return None
        return refused if refused.tzinfo else refused.replace(tzinfo=UTC)

    @property
    def attempt_count(self) -> str:
        return _header(self.headers, ATTEMPT_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters are meant: those that meet every condition given."""

    places: Collection[Place] = ()
    reason: str = ""
    """Part of the error's class or message, in whatever case."""
    since: datetime | None = None
    until: datetime | None = None
    """Refused before this time; aware, as `since` is."""
    student_id: str = ""
    resolved: bool = False
    """Also those that were replayed or dropped before."""

    def __contains__(self, letter: DeadLetter) -> bool:
        return (
            (self.resolved or letter.mark is None)
            and (not self.places or letter.place in self.places)
            and (not self.student_id or letter.student_id == self.student_id)
            and self._has_reason(letter)
            and self._has_time(letter)
        )

    def _has_reason(self, letter: DeadLetter) -> bool:
        reason = self.reason.casefold()
        return reason in letter.error_class.casefold() or reason in letter.error_message.casefold()

    def _has_time(self, letter: DeadLetter) -> bool:
        if self.since is None and self.until is None:
            return True
        if (refused := letter.time) is None:
            return False
        return (self.since is None or self.since <= refused) and (self.until is None or refused < self.until)


class DeadLetterQueue:
    """Reads `mastery.dlq` without being a member of any group, and resolves what is on it. Everything blocks.

    Raises KafkaException, or BrokerUnavailable if Kafka falls silent.
    """

    def __init__(
        self, access: KafkaAccess, *, transactional: bool, command: str, clock: Callable[[], datetime]
    ) -> None:
        """`command` is who resolves, for the marks. A queue that is not `transactional` may replay a letter
        twice if it dies between the letter and its mark; the event in it is applied once all the same."""
        self._access = access
        self._topic = access.topics.dead_letters
        self._transactional = transactional
        self._command = command
        self._clock = clock

    def find(self, selection: Selection, *, progress: Callable[[int], object] = int) -> list[DeadLetter]:
        """Returns the selected letters in order of their places; reads the topic from beginning to end."""
        letters: dict[Place, DeadLetter] = {}
        marks: dict[Place, Mark] = {}
        for count, message in enumerate(self._read(), 1):
            headers = headers_of(message)
            if resolves := _header(headers, RESOLVES):
                with contextlib.suppress(InvalidInput):
                    marks.setdefault(Place.parse(resolves), _mark(headers))
            else:
                letter = _dead_letter(message, headers)
                letters[letter.place] = letter
            progress(count)
        known = (replace(letter, mark=marks.get(place)) for place, letter in sorted(letters.items()))
        return [letter for letter in known if letter in selection]

    def fetch(self, place: Place) -> tuple[DeadLetter, bytes | None] | None:
        """Returns the letter at a place and its value; None if there is none, or a mark."""
        for message in self._read([place]):
            headers = headers_of(message)
            if not _header(headers, RESOLVES):
                return _dead_letter(message, headers), message.value()
        return None

    def replay(self, places: Collection[Place], *, progress: Callable[[int], object] = int) -> int:
        """Sends letters to where they were refused, and marks them. Returns how many, without those that
        were resolved already.

        A letter goes as it came: key, value and own headers. The dlq-* headers stay on it, so that it counts
        its attempts if it is refused again. Its time is new: by its old one the topic's retention might delete
        it at once.

        Raises InvalidInput for a letter that does not say where it came from.
        """
        return self._resolve(places, Resolution.REPLAYED, progress)

    def drop(self, places: Collection[Place], *, progress: Callable[[int], object] = int) -> int:
        """Marks letters as done with. Returns how many, without those that were resolved already."""
        return self._resolve(places, Resolution.DROPPED, progress)

    def _resolve(
        self, places: Collection[Place], resolution: Resolution, progress: Callable[[int], object]
    ) -> int:
        """Resolves letters, each once, whoever else resolves at the same time.

        With one transactional id for all, the start of this producer ends whatever an earlier one had under
        way, and fences it. Only then are the marks read: nobody else can add to them any more.
        """
        producer = _MarkingProducer(self._access, self._topic, transactional=self._transactional)
        with contextlib.closing(producer):
            producer.open()
            unresolved = [letter.place for letter in self.find(Selection(places=places))] if places else []
            steps: Iterator[_Step]
            if resolution is Resolution.REPLAYED:
                steps = (
                    [_request(each), self._mark(_place_of(each), resolution)] for each in self._read(unresolved)
                )
            else:
                steps = ([self._mark(place, resolution)] for place in unresolved)
            done = 0
            for some in _in_portions(steps, LETTERS_PER_TRANSACTION):
                producer.send([record for step in some for record in step])
                done += len(some)
                progress(done)
        return done

    def _mark(self, place: Place, resolution: Resolution) -> tuple[int, OutgoingRecord]:
        headers: Headers = [
            (RESOLVES, str(place).encode()),
            (RESOLUTION, resolution.encode()),
            (RESOLVED_TIME, self._clock().isoformat().encode()),
            (RESOLVED_BY, self._command.encode()),
        ]
        return place.partition, OutgoingRecord(self._topic, None, None, headers)

    def _read(self, places: Sequence[Place] | None = None) -> Iterator[Message]:
        """Yields the committed records at the given places, or all there are by now."""
        bounds = self._ends()
        wanted = None
        if places is not None:
            wanted = {place for place in places if _is_within(place, bounds)}
            bounds = {
                partition: (min(offsets), max(offsets) + 1)
                for partition in bounds
                if (offsets := [place.offset for place in wanted if place.partition == partition])
            }
        with contextlib.closing(self._consumer("read_committed")) as consumer:
            for message in self._between(consumer, bounds):
                if wanted is None or _place_of(message) in wanted:
                    yield message

    def _between(self, consumer: Consumer, bounds: dict[int, tuple[int, int]]) -> Iterator[Message]:
        """Yields the records of each partition from its start up to its end, which is one past the last."""
        ends = {partition: end for partition, (start, end) in bounds.items() if start < end}
        consumer.assign([TopicPartition(self._topic, partition, bounds[partition][0]) for partition in ends])
        unread = set(ends)
        deadline = time.monotonic() + READ_TIMEOUT
        while unread:
            message = consumer.poll(POLL_SECONDS)
            if message is None:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"kafka: no end of {self._topic} within {READ_TIMEOUT:.0f} s")
                continue
            deadline = time.monotonic() + READ_TIMEOUT
            partition, offset = message.partition() or 0, message.offset() or 0
            error = message.error()
            if error is None:
                if offset < ends[partition]:
                    yield message
                if offset + 1 >= ends[partition]:
                    unread.discard(partition)
            elif error.code() != PARTITION_EOF:
                raise KafkaException(error)
            elif offset >= ends[partition]:  # else a transaction is still open before the end
                unread.discard(partition)

    def _ends(self) -> dict[int, tuple[int, int]]:
        """Returns for each partition its first offset, and the one that its next record will have.

        The end is that of all records, committed or not. To a read-committed client the topic seems to end
        where the oldest open transaction begins, and the marks behind it must not be overlooked.
        """
        with contextlib.closing(self._consumer("read_uncommitted")) as consumer:
            known = consumer.list_topics(self._topic, timeout=CONNECT_TIMEOUT).topics[self._topic]
            if known.error is not None:
                raise KafkaException(known.error)
            return {
                partition: _watermarks(consumer, TopicPartition(self._topic, partition))
                for partition in known.partitions
            }

    def _consumer(self, isolation_level: str) -> Consumer:
        return Consumer(
            self._access.client(
                group_id="mastery-dlq",  # librdkafka asks for one; nobody joins it, for partitions are assigned
                enable_auto_commit=False,
                enable_partition_eof=True,
                auto_offset_reset="earliest",
                isolation_level=isolation_level,
                fetch_wait_max_ms=50,  # how long the broker withholds the end of a partition
            )
        )


class _MarkingProducer:
    """Sends letters together with their marks."""

    def __init__(self, access: KafkaAccess, topic: str, *, transactional: bool) -> None:
        self._transactional = transactional
        properties = access.client(enable_idempotence=True, compression_type="lz4", message_max_bytes=UNLIMITED)
        if transactional:
            properties["transactional.id"] = f"mastery-dlq-{topic}"
            properties["transaction.timeout.ms"] = round(PUBLISH_TIMEOUT * 1000)
        else:
            properties["delivery.timeout.ms"] = round(PUBLISH_TIMEOUT * 1000)
        self._producer = Producer(properties)
        self._delivery_error: KafkaError | None = None

    def open(self) -> None:
        if self._transactional:
            self._producer.init_transactions(PUBLISH_TIMEOUT)

    def send(self, records: Iterable[tuple[int, OutgoingRecord]]) -> None:
        """Produces records, each to its partition: in one transaction, or else one after the other."""
        if not self._transactional:
            self._produce(records)
            if self._producer.flush(PUBLISH_TIMEOUT + 1) or self._delivery_error is not None:
                raise KafkaException(self._delivery_error or KafkaError(KafkaError.REQUEST_TIMED_OUT))
            return
        self._producer.begin_transaction()
        try:
            self._produce(records)
            self._producer.commit_transaction(PUBLISH_TIMEOUT)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                self._producer.abort_transaction(PUBLISH_TIMEOUT)
            raise

    def close(self) -> None:
        close_producer(self._producer)

    def _produce(self, records: Iterable[tuple[int, OutgoingRecord]]) -> None:
        for partition, record in records:
            produce(self._producer, record, self._on_delivery, partition=partition)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._delivery_error = error


_Step = list[tuple[int, OutgoingRecord]]
"""What resolves one letter: records, each with its partition."""


def _request(message: Message) -> tuple[int, OutgoingRecord]:
    """Returns the refused record and the partition that it came from: whatever rule the producer had for
    partitions, a student's events stay together."""
    headers = headers_of(message)
    topic, partition = _header(headers, "dlq-original-topic"), _header(headers, "dlq-original-partition")
    if not topic or not partition.isdecimal():
        raise InvalidInput.of(
            str(_place_of(message)), "does not say where it came from, so it can only be dropped"
        )
    return int(partition), OutgoingRecord(topic, message.key(), message.value(), headers)


def _dead_letter(message: Message, headers: Headers) -> DeadLetter:
    return DeadLetter(
        place=_place_of(message), key=message.key(), size=len(message.value() or b""), headers=headers
    )


def _mark(headers: Headers) -> Mark:
    return Mark(*(_header(headers, name) for name in (RESOLUTION, RESOLVED_TIME, RESOLVED_BY)))


def _header(headers: Headers, name: str) -> str:
    """Returns the last header of a name as text, empty if there is none."""
    values = [value for known, value in headers if known == name]
    return cast("bytes", values[-1] or b"").decode(errors="replace") if values else ""


def _place_of(message: Message) -> Place:
    return Place(message.partition() or 0, message.offset() or 0)


def _watermarks(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    """Returns the first offset of a partition and the one of its next record; waits while its leader changes."""
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while True:
        try:
            return consumer.get_watermark_offsets(place, timeout=CONNECT_TIMEOUT)
        except KafkaException as error:
            if error.args[0].code() not in LEADER_CHANGES or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _is_within(place: Place, ends: dict[int, tuple[int, int]]) -> bool:
    first, end = ends.get(place.partition, (0, 0))
    return first <= place.offset < end


def _in_portions(steps: Iterable[_Step], size: int) -> Iterator[list[_Step]]:
    iterator = iter(steps)
    while portion := list(islice(iterator, size)):
        yield portion
