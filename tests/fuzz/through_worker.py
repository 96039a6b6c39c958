"""Fuzzed records among valid ones through a worker process, on a real broker and a real Redis."""

import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from mastery_grpc.application.student_update import Delivery
from mastery_grpc.assembly import kafka_access
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.ingest.records import decode_request
from mastery_grpc.ingest.topics import TopicTerms, create_topics
from mastery_grpc.settings import PREFIX, Settings
from tests.fuzz.decoder import RecordInHand, resident_bytes
from tests.fuzz.records import FuzzedRecord, fuzzed_records, valid_records
from tests.integration.ingesting import Log, Read, Record, assert_folded, causes, settings_for
from tests.real.kafka_brokers import MasteryTopics, kafka
from tests.real.processes import ServerProcess, scratch_directory
from tests.real.redis_servers import standalone
from tests.real_learners import REPOSITORY

WAVES = 20
"""Portions in which the records are sent: what is measured is the worker's memory, and not its backlog."""
VALID_SHARE = 0.5
REPEATED_SHARE = 0.05
PATIENCE = 120.0
SENDING = {"message.max.bytes": 2_000_000, "compression.type": "lz4", "linger.ms": 5}
OWN_HEADERS = "dlq-"

Letter = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


@dataclass
class Passage:
    """What became of the records."""

    broker: str = ""
    produced: int = 0
    accepted: int = 0
    """Records; a repeated one counts each time."""
    events: int = 0
    """Distinct events among them."""
    dead_letters: int = 0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the worker after each wave."""
    faults: list[str] = field(default_factory=list)


class _Worker(ServerProcess):
    """`mastery-grpc ingest`."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        given = settings.model_dump(include=settings.model_fields_set - {"jwt_secret"})
        foreign = [word for name in os.environ if name.startswith(PREFIX) for word in ("-u", name)]
        own = [f"{PREFIX}{name.upper()}={value}" for name, value in given.items()]
        program = [sys.executable, "-m", "mastery_grpc", "ingest"]
        super().__init__(["env", *foreign, f"PYTHONPATH={REPOSITORY}", *own, *program], directory)

    @property
    def resident_bytes(self) -> int:
        assert self._process is not None
        return resident_bytes(self._process.pid)


def pass_through_worker(seed: int, count: int, progress: Callable[[str], None]) -> Passage:
    """Sends the records, waits until they are consumed, and compares what is there with what must be."""
    records = mixed_records(seed, count)
    passage = Passage(produced=len(records))
    with ExitStack() as stack:
        broker = stack.enter_context(kafka())
        redis = stack.enter_context(standalone())
        topics = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
        # No end of dead letters is what is wanted here.
        limits = {"ingest_dead_letters_in_a_row": 1_000_000_000, "ingest_dead_letter_share": 1.0}
        settings = settings_for(broker, topics, redis.url, **limits)
        if broker.isolation:
            create_topics(kafka_access(settings), TopicTerms(replication_factor=1))
        else:
            broker.create_topics(*topics.all)
        log = Log(broker, settings)
        worker = _Worker(settings, stack.enter_context(scratch_directory("mastery-fuzz-")))
        stack.callback(worker.kill)
        worker.start()
        passage.broker = broker.kind
        began = time.monotonic()
        for wave in waves(records):
            log.send((Record(one.value, one.key, one.headers) for one in wave), **SENDING)
            if not _is_consumed(log, worker):
                passage.faults.append(f"not consumed; the worker's last words:\n{worker.last_words()}")
                return passage
            passage.memory.append(worker.resident_bytes)
            share = len(passage.memory) / WAVES
            progress(f"worker: {share:4.0%}, {passage.memory[-1] / 2**20:.0f} MiB")
        passage.seconds = time.monotonic() - began
        if '"unexpected error"' in worker.log.read_text():
            passage.faults.append(f"the engine broke:\n{worker.last_words()}")
        worker.stop()
        accepted, refused = sorted_out(records)
        passage.accepted, passage.events = len(accepted), len(distinct(accepted))
        letters, results = log.dead_letters(), log.results()
        passage.dead_letters = len(letters)
        passage.faults += wrong_with_letters(letters, refused)
        passage.faults += wrong_with_results(results, accepted)
        if passage.accepted + passage.dead_letters != passage.produced:
            passage.faults.append(f"{passage.produced} produced: {passage.accepted} and {passage.dead_letters}")
        try:
            assert_folded(redis, distinct(accepted).values())
        except AssertionError as error:
            passage.faults.append(f"the state is not the fold of what the decoder accepts: {error}")
    return passage


def mixed_records(seed: int, count: int) -> list[FuzzedRecord]:
    """Returns valid records, fuzzed ones, and some of both a second time."""
    rng = random.Random(f"{seed}/mix")
    repeated = round(REPEATED_SHARE * count)
    valid = round(VALID_SHARE * (count - repeated))
    records = [*valid_records(f"{seed}/valid", valid), *fuzzed_records(f"{seed}/fuzzed", count - repeated - valid)]
    records += rng.sample(records, repeated)
    rng.shuffle(records)
    return records


def waves(records: Sequence[FuzzedRecord]) -> list[Sequence[FuzzedRecord]]:
    bounds = [len(records) * number // WAVES for number in range(WAVES + 1)]
    return [records[start:end] for start, end in pairwise(bounds)]


def sorted_out(records: Sequence[FuzzedRecord]) -> tuple[list[LearningEvent], list[FuzzedRecord]]:
    """Returns the events that the decoder finds, and the records that it refuses."""
    accepted, refused = [], []
    for record in records:
        message: Any = RecordInHand(record)
        try:
            decoded = decode_request(message)
            assert isinstance(decoded, Delivery), "nothing here announces an erasure"
            accepted.append(decoded.event)
        except InvalidInput:
            refused.append(record)
    return accepted, refused


def distinct(events: Sequence[LearningEvent]) -> Mapping[tuple[str, str, str], LearningEvent]:
    return {(event.student.school_id, event.student.student_id, event.event_id): event for event in events}


def wrong_with_letters(letters: Sequence[Read], refused: Sequence[FuzzedRecord]) -> list[str]:
    found = Counter(_letter(read.key, read.value, read.headers) for read in letters)
    wanted = Counter(_letter(record.key, record.value, record.headers) for record in refused)
    reasons = Counter(read.header["dlq-error-class"] for read in letters)
    faults = [
        f"{count} dead letters by {reason!r}" for reason, count in reasons.items() if reason != b"InvalidInput"
    ]
    faults += [f"dead letter missing: {str(letter)[:500]}" for letter in list(wanted - found)[:5]]
    faults += [f"dead letter that nobody sent: {str(letter)[:500]}" for letter in list(found - wanted)[:5]]
    return faults


def wrong_with_results(results: Sequence[Read], accepted: Sequence[LearningEvent]) -> list[str]:
    found = causes(results)
    wanted = Counter(event_id for _, _, event_id in distinct(accepted))
    return [
        *(f"no result of {event_id}" for event_id in list(wanted - found)[:5]),
        *(f"result too many of {event_id}" for event_id in list(found - wanted)[:5]),
    ]


def _letter(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> Letter:
    return key, value, tuple(header for header in headers if not header[0].startswith(OWN_HEADERS))


def _is_consumed(log: Log, worker: _Worker) -> bool:
    """Waits until the group has committed every record; returns whether it has."""
    deadline = time.monotonic() + PATIENCE
    while worker.running and time.monotonic() < deadline:
        with suppress(KafkaException):  # a new group has no coordinator yet
            if log.behind() == 0:
                return True
        time.sleep(0.05)
    return False
