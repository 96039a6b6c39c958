"""What must be true in the end, and how far Redis and the results are from it."""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import redis
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.chaos.traffic import EventJson
from tests.real.kafka_brokers import Topic
from tests.reference_fold import ReferenceMastery, ReferenceRules, fold_student

EXACT = 1e-9
DETAILS = 20
_RULES = ReferenceRules()


@dataclass
class Faults:
    """How many things are not as they must be. All zero: exactly once."""

    lost_in_log: int = 0
    lost_in_state: int = 0
    """Students whose state is not the fold of their events, for another reason than that one counted twice."""
    lost_in_results: int = 0
    doubled_in_log: int = 0
    doubled_in_state: int = 0
    """Students whose state counts more events than there are."""
    doubled_in_results: int = 0
    doubled_on_the_way: int = 0
    """Updates beyond the number of events, when a round had just ended."""
    inconsistent_results: int = 0
    """Gaps in a student's versions, ids that occur twice, levels that do not follow from each other."""
    dead_letters: int = 0
    hanging_transactions: int = 0
    """Nobody works on them any more, and the broker has not ended them: what stands behind is not to be seen."""
    not_caught_up: int = 0
    """The group stood still for longer than anybody would wait."""
    details: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(value for value in self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name != "details"}

    def note(self, kind: str, detail: str, count: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        if len(self.details) < DETAILS:
            self.details.append(f"{kind}: {detail}")


class Ledger:
    """Every distinct event that was sent, by student."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, EventJson]] = {}

    def expect(self, events: Iterable[EventJson]) -> None:
        for event in events:
            self.events.setdefault(event["student_id"], {})[event["event_id"].lower()] = event

    @property
    def count(self) -> int:
        return sum(map(len, self.events.values()))

    def check_redis(self, client: redis.Redis, students: Iterable[str], faults: Faults) -> None:
        """Compares the logs, the current states and the snapshots of the students."""
        for student in students:
            events = self.events[student]
            reference = fold_student(events, _RULES)
            key = f"student:{{{student}}}"
            pipeline = client.pipeline(transaction=False)
            pipeline.xrange(f"{key}:events")
            pipeline.mget(f"{key}:profile:current_mastery", *(f"{key}:mastery:{day}" for day in reference.days))
            entries, (current, *days) = pipeline.execute()
            logged = Counter(json.loads(entry["event"])["event_id"] for _, entry in entries)
            _compare(logged, events, "log", student, faults)
            stored = json.loads(current) if current else None
            if stored and stored["version"] > reference.mastery.version:
                faults.note("doubled_in_state", f"{student} is at version {stored['version']}")
            elif not _is_same(stored, reference.mastery):
                faults.note("lost_in_state", f"{student}: {current} is not {reference.mastery}")
            for day, text in zip(reference.days, days, strict=True):
                if not _is_same(json.loads(text) if text else None, reference.days[day]):
                    faults.note("lost_in_state", f"{student} on {day}: {text} is not {reference.days[day]}")

    def check_results(self, results: list[dict[str, Any]], faults: Faults) -> None:
        """Compares the results, as a read-committed reader met them."""
        for result_id, count in Counter(result["event_id"] for result in results).items():
            if count > 1:
                faults.note("inconsistent_results", f"result {result_id} occurs {count} times")
        by_student: dict[str, list[dict[str, Any]]] = {student: [] for student in self.events}
        for result in results:
            by_student.setdefault(result["student_id"], []).append(result)
        for student, told in by_student.items():
            updates = [result for result in told if result["event_type"] == "mastery.updated"]
            causes = Counter(update["cause_event_id"] for update in updates)
            _compare(causes, self.events.get(student, {}), "results", student, faults)
            versions = [update["mastery"]["version"] for update in updates]
            if versions != list(range(1, len(self.events.get(student, {})) + 1)):
                faults.note("inconsistent_results", f"{student}: versions {versions}")
            _check_levels(student, told, updates, faults)


class TopicReader:
    """Reads a topic read-committed, once, from its beginning to its end."""

    def __init__(self, bootstrap_servers: str, topic: Topic) -> None:
        self._topic = topic
        self._consumers = {
            isolation: Consumer(
                {
                    "bootstrap.servers": bootstrap_servers,
                    "group.id": uuid.uuid4().hex,
                    "isolation.level": isolation,
                    "enable.partition.eof": True,
                    "enable.auto.commit": False,
                    "log_level": 0,
                }
            )
            for isolation in ("read_committed", "read_uncommitted")
        }
        self._reader = self._consumers["read_committed"]

    def read(self) -> list[dict[str, Any]]:
        """Returns the records that are committed."""
        records: list[dict[str, Any]] = []
        self._reader.assign(self._places())
        reached = set[int]()
        while len(reached) < self._topic.partitions:
            for message in self._reader.consume(2000, 1.0):
                if (error := message.error()) is None:
                    records.append(json.loads(message.value() or b"null"))
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached.add(message.partition() or 0)
        return records

    def has_open_transactions(self) -> bool:
        """Whether a read-committed reader is still kept from the end of the topic."""
        ends = [
            [consumer.get_watermark_offsets(place, timeout=20)[1] for place in self._places()]
            for consumer in self._consumers.values()
        ]
        return ends[0] != ends[1]

    def close(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()

    def _places(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic.name, number, 0) for number in range(self._topic.partitions)]


def _compare(
    found: Counter[str], wanted: Mapping[str, EventJson], where: str, student: str, faults: Faults
) -> None:
    for event_id in wanted.keys() - found.keys():
        faults.note(f"lost_in_{where}", f"{student}: {event_id}")
    for event_id, count in found.items():
        extra = count - (event_id in wanted)
        if extra:
            faults.note(f"doubled_in_{where}", f"{student}: {event_id} occurs {count} times", extra)


def _check_levels(student: str, told: list[dict[str, Any]], updates: list[dict[str, Any]], faults: Faults) -> None:
    """The level before is the level of the version before, and a threshold is told if and only if they differ."""
    crossed = Counter(one["cause_event_id"] for one in told if one["event_type"] == "mastery.threshold.reached")
    level = "beginner"
    wanted = Counter[str]()
    for update in updates:
        if update["previous_level"] != level:
            faults.note("inconsistent_results", f"{student}: {update} follows {level}")
        level = update["mastery"]["level"]
        if level != update["previous_level"]:
            wanted[update["cause_event_id"]] += 1
    if crossed != wanted:
        faults.note("inconsistent_results", f"{student}: thresholds {crossed}, not {wanted}")


def _is_same(stored: dict[str, Any] | None, reference: ReferenceMastery) -> bool:
    if stored is None:
        return False
    scores = {part["component"]: part["score"] for part in stored["breakdown"]}
    return (
        abs(stored["mastery_score"] - reference.score) <= EXACT
        and stored["level"] == reference.level
        and stored["version"] == reference.version
        and datetime.fromisoformat(stored["update_time"]).astimezone(UTC) == reference.update_time
        and scores.keys() == reference.components.keys()
        and all(abs(scores[name] - score) <= EXACT for name, score in reference.components.items())
    )
