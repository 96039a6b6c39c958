"""Streams that go on by themselves when the connection breaks, and skip and repeat nothing."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from mastery.v1 import batch_service_pb2
from mastery_client.errors import MasteryError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from mastery.v1 import mastery_pb2, mastery_service_pb2

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
QUIET_SECONDS = 60.0
"""A call that was open for so long was connected: to fail to connect takes 20 s at most."""

_ENDED = (batch_service_pb2.BATCH_STATE_SUCCEEDED, batch_service_pb2.BATCH_STATE_CANCELLED)

_Response = TypeVar("_Response")
_Contra = TypeVar("_Contra", contravariant=True)


def ended_early() -> MasteryError:
    """Returns what a stream is told to have failed with that ended without an error and before its time."""
    return Unavailable("the stream ended early", grpc.StatusCode.UNAVAILABLE)


class Reader(Protocol[_Contra]):
    """Remembers what a stream has told, over all the calls that it takes."""

    is_done: bool
    """Whether there is nothing more to come."""

    def is_news(self, response: _Contra) -> bool:
        """Takes note of a response and tells whether the user has not seen it yet."""


class MasteryReader:
    """Reads WatchMastery, which tells the current states anew with each call."""

    is_done = False

    def __init__(self) -> None:
        self._seen: dict[str, mastery_pb2.Mastery] = {}

    def is_news(self, response: mastery_service_pb2.WatchMasteryResponse) -> bool:
        kind = response.WhichOneof("update")
        if kind == "erased":
            self._seen.pop(response.erased.student_id, None)
            return True
        if kind != "mastery":
            return False  # a kind that this version does not know
        new, last = response.mastery, self._seen.get(response.mastery.student_id)
        # Found at the beginning of a call, a state that is not newer than the last and not the same either is
        # that of another life: the student was erased meanwhile.
        if last and new.version <= last.version and (new == last or not response.initial):
            return False
        self._seen[new.student_id] = new
        return True


class BatchReader:
    """Reads WatchBatch, which ends with the batch."""

    def __init__(self) -> None:
        self.is_done = False
        self._last: batch_service_pb2.Batch | None = None

    def is_news(self, response: batch_service_pb2.WatchBatchResponse) -> bool:
        self.is_done = response.batch.state in _ENDED
        is_same, self._last = response.batch == self._last, response.batch
        return not is_same


class Backoff:
    """Waits between the calls of one stream: longer each time, with chance, and as long as the service asks.

    Gives up after `patience` seconds without success.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.succeeded()

    def succeeded(self) -> None:
        """Takes note that the service is there."""
        self._failures = 0
        self._last_success = self._last_attempt = time.monotonic()

    async def wait(self, error: MasteryError) -> None:
        """Waits before the next call. Raises the error if another call is no use, or patience is at its end."""
        now = time.monotonic()
        if now - self._last_attempt > QUIET_SECONDS:
            self.succeeded()  # there was just nothing to tell
        if not error.is_passing or now + (error.retry_delay or 0) - self._last_success > self._patience:
            raise error
        pause = random.uniform(0.5, 1) * min(SHORTEST_PAUSE * 2**self._failures, LONGEST_PAUSE)  # noqa: S311
        self._failures += 1
        log.info("a stream broke: %s; it goes on", error.reason or error.code.name)
        await asyncio.sleep(max(pause, error.retry_delay or 0))
        self._last_attempt = time.monotonic()


async def keep_reading(
    call: Callable[[], AsyncGenerator[_Response]], reader: Reader[_Response], *, patience: float
) -> AsyncGenerator[_Response]:
    """Yields what is news, calling again whenever the stream breaks. Raises MasteryError."""
    backoff = Backoff(patience)
    while True:
        error = ended_early()
        try:
            async with aclosing(call()) as responses:
                async for response in responses:
                    backoff.succeeded()
                    if reader.is_news(response):
                        yield response
        except MasteryError as broken:
            error = broken
        if reader.is_done:
            return
        await backoff.wait(error)
