"""Dead letters: refused records, kept byte for byte with the reason; and the limit above which it is not them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mastery_grpc.domain.errors import MasteryError
from mastery_grpc.ingest.records import ORIGINAL_TIMESTAMP, Headers, OutgoingRecord, headers_of, produced_millis

if TYPE_CHECKING:
    from datetime import datetime

    from confluent_kafka import Message

    from mastery_grpc.ingest.topics import Topics

PREFIX = "dlq-"
ATTEMPT_COUNT = "dlq-attempt-count"
MAX_ERROR_MESSAGE = 1000
LONGEST_ATTEMPT_COUNT = 9
"""Digits; what is longer was not written here, and Python refuses to read numbers of thousands."""


class PoisonRecord(MasteryError):
    """A record that broke the engine each time it was tried, for a reason of its own."""

    def __init__(self, cause: Exception, attempts: int) -> None:
        super().__init__(f"failed {attempts} times: {type(cause).__name__}")
        self.cause = cause


class TooManyDeadLetters(Exception):
    """So many refusals that the fault lies with the engine or a producer, and not with single records."""


def dead_letter(message: Message, error: MasteryError, *, topics: Topics, now: datetime) -> OutgoingRecord:
    """Returns a refused record as it came, with its own headers and those that say why it is here."""
    headers = headers_of(message)
    error_class = type(error.cause if isinstance(error, PoisonRecord) else error).__name__
    reasons: Headers = [
        ("dlq-error-class", error_class.encode()),
        ("dlq-error-message", str(error)[:MAX_ERROR_MESSAGE].encode(errors="replace")),
        ("dlq-original-topic", (message.topic() or "").encode()),
        ("dlq-original-partition", str(message.partition()).encode()),
        ("dlq-original-offset", str(message.offset()).encode()),
        (ORIGINAL_TIMESTAMP, str(produced_millis(message)).encode()),
        ("dlq-time", now.isoformat().encode()),
        (ATTEMPT_COUNT, str(_earlier_attempts(headers) + 1).encode()),
    ]
    own = [(name, value) for name, value in headers if not name.startswith(PREFIX)]
    return OutgoingRecord(topics.dead_letters, message.key(), message.value(), own + reasons)


def _earlier_attempts(headers: Headers) -> int:
    """Returns how often the record was a dead letter before, if it says so in a number."""
    stated = [value or b"" for name, value in headers if name == ATTEMPT_COUNT]
    is_count = bool(stated) and stated[-1].isdigit() and len(stated[-1]) <= LONGEST_ATTEMPT_COUNT
    return int(stated[-1]) if is_count else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterLimit:
    """How many dead letters are taken for bad records."""

    in_a_row: int
    share: float
    """Of the last `window` records, once there have been so many."""
    window: int


class DeadLetterWatch:
    """Counts refusals against the limit."""

    def __init__(self, limit: DeadLetterLimit) -> None:
        self._limit = limit
        self._recent: deque[bool] = deque(maxlen=limit.window)
        self._refused_recently = 0
        self._in_a_row = 0

    def count(self, *, refused: bool) -> None:
        """Counts one record. Raises TooManyDeadLetters once the limit is passed."""
        if len(self._recent) == self._limit.window:
            self._refused_recently -= self._recent[0]
        self._recent.append(refused)
        self._refused_recently += refused
        self._in_a_row = self._in_a_row + 1 if refused else 0
        if self._in_a_row > self._limit.in_a_row:
            raise TooManyDeadLetters(f"{self._in_a_row} dead letters in a row")
        is_full = len(self._recent) == self._limit.window
        if is_full and self._refused_recently > self._limit.share * self._limit.window:
            raise TooManyDeadLetters(f"{self._refused_recently} of the last {self._limit.window} records refused")
