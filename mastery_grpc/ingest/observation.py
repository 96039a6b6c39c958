"""Who is told of what goes to Kafka and comes from it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

    from mastery_grpc.ingest.records import Headers, OutgoingRecord


class ConsumerObserver(Protocol):
    """Observes the worker."""

    def received(self, count: int, seconds: float) -> None:
        """Takes note of records received together."""

    def processing(self, messages: Sequence[Message]) -> AbstractContextManager[None]:
        """Observes the body, which decodes and applies the records."""

    def dead_letter(self, reason: str) -> None:
        """Takes note of a refused record; the reason is the name of an error."""

    def publishing(self, records: Sequence[OutgoingRecord]) -> AbstractContextManager[None]:
        """Observes the body, which sends these records and commits what they were made from."""


class ProducerObserver(Protocol):
    """Observes what a server sends to the requests."""

    def sending(self, count: int) -> AbstractContextManager[Headers]:
        """Observes the body, which sends so many records; yields the headers that tie them to the call."""


class Unobserved:
    """Implements both: nobody looks."""

    def received(self, count: int, seconds: float) -> None:
        pass

    def processing(self, messages: Sequence[Message]) -> AbstractContextManager[None]:
        return nullcontext()

    def dead_letter(self, reason: str) -> None:
        pass

    def publishing(self, records: Sequence[OutgoingRecord]) -> AbstractContextManager[None]:
        return nullcontext()

    def sending(self, count: int) -> AbstractContextManager[Headers]:
        return nullcontext([])
