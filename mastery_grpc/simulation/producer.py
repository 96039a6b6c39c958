"""Sends simulated events to Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaException, Producer
from rich.progress import MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from mastery_grpc.simulation.learners import LearningEventJson

_encode = msgspec.json.Encoder().encode


class EventProducer:
    """Produces events in the flat JSON shape, keyed by student."""

    def __init__(self, client: dict[str, Any], topic: str) -> None:
        """`client` is a librdkafka configuration."""
        self._producer = Producer({"linger.ms": 5, **client})
        self._topic = topic

    def send(self, event: LearningEventJson) -> None:
        """Hands one event to the producer; waits only while its queue is full."""
        while True:
            try:
                self._producer.produce(self._topic, key=event["student_id"], value=_encode(event))
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def flush(self) -> None:
        """Returns when everything has been delivered. Raises KafkaException if the broker stays away."""
        if missing := self._producer.flush(30.0):
            raise KafkaException(f"{missing} events were not delivered")


def send_events(producer: EventProducer, events: Iterable[LearningEventJson], *, console: Console) -> int:
    """Sends events and shows how far it got; returns how many there were."""
    count = 0
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("events sent", total=None)
        for event in events:
            producer.send(event)
            count += 1
            progress.update(task, completed=count)
        producer.flush()
    return count
