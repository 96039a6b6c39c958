"""Fuzzed records into the decoder, in several processes: a Delivery or InvalidInput, and nothing else."""

import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mastery_grpc.application.event_json import decode_event, encode_event
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.ingest.dead_letters import dead_letter
from mastery_grpc.ingest.records import decode_request
from mastery_grpc.ingest.topics import Topics
from tests.fuzz.records import FuzzedRecord, fuzzed_records

PORTION = 5000
"""Records that one process takes at a time; each portion has a seed of its own."""
PROCESSES = max(1, min(4, os.cpu_count() or 1))
MOST_FAULTS = 20
NOW = datetime(2026, 1, 12, tzinfo=UTC)
TOPICS = Topics()


class RecordInHand:
    """A record as the consumer hands it out."""

    def __init__(self, record: FuzzedRecord) -> None:
        self._record = record

    def value(self) -> bytes | None:
        return self._record.value

    def key(self) -> bytes | None:
        return self._record.key

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self._record.headers) or None

    def topic(self) -> str:
        return TOPICS.requests

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


@dataclass
class Findings:
    """What came of a portion of records, or of all."""

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    """Seconds, and the kind of record."""
    memory: dict[int, list[int]] = field(default_factory=dict)
    """Resident bytes of each process after each of its portions."""

    @property
    def count(self) -> int:
        return self.accepted.total() + self.refused.total()

    def add(self, other: "Findings") -> None:
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults = (self.faults + other.faults)[:MOST_FAULTS]
        self.slowest = max(self.slowest, other.slowest)
        for process, samples in other.memory.items():
            self.memory.setdefault(process, []).extend(samples)


def decode_all(seed: int, count: int) -> Iterator[Findings]:
    """Yields the findings of each portion. Raises BrokenProcessPool if the decoder takes its process down."""
    sizes = [min(PORTION, count - start) for start in range(0, count, PORTION)]
    seeds = [f"{seed}/{number}" for number in range(len(sizes))]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield from pool.map(decode_portion, seeds, sizes)


def decode_portion(seed: str, count: int) -> Findings:
    findings = Findings()
    for number, record in enumerate(fuzzed_records(seed, count)):
        began = time.perf_counter()
        try:
            is_accepted = is_event(record)
        except Exception:
            value = repr(record.value)
            shown = value if len(value) < 2000 else f"{value[:2000]}… ({len(value)} characters)"
            where = f"{record.kind}, record {number} of seed {seed!r}: {shown} {record.headers}"
            findings.faults.append(f"{where}\n{traceback.format_exc(limit=-6)}")
        else:
            (findings.accepted if is_accepted else findings.refused)[record.kind] += 1
        findings.slowest = max(findings.slowest, (time.perf_counter() - began, record.kind))
    findings.memory[os.getpid()] = [resident_bytes(os.getpid())]
    return findings


def is_event(record: FuzzedRecord) -> bool:
    """Returns whether the decoder takes a record. What it takes can be kept, what it refuses set aside."""
    message: Any = RecordInHand(record)
    try:
        delivery = decode_request(message)
    except InvalidInput as refusal:
        letter = dead_letter(message, refusal, topics=TOPICS, now=NOW)
        assert letter.value == record.value
        assert letter.key == record.key
        assert sum(len(value or b"") for name, value in letter.headers if name.startswith("dlq-")) < 5000
        return False
    assert isinstance(delivery, Delivery)
    assert decode_event(encode_event(delivery.event)) == delivery.event
    return True


def resident_bytes(process: int) -> int:
    """Returns how much memory a process has (VmRSS)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(process)
