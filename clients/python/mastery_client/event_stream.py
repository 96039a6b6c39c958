"""Sending any number of events over StreamEvents, through any number of broken connections."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from mastery.v1 import mastery_service_pb2 as pb
from mastery_client.errors import MasteryError, ServerFault, error_of
from mastery_client.reconnecting import Backoff, ended_early

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable

    from mastery.v1.events_pb2 import LearningEvent

WINDOW = 1000
"""How many events may be under way without an acknowledgement."""
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]


class EventSender:
    """Sends events in order and yields one acknowledgement for each.

    An event stays in the window until it is acknowledged. When the stream breaks, what is in the window is sent
    again on the next one: an event that had been applied has no second effect, by its id.
    """

    def __init__(
        self,
        events: AsyncIterable[LearningEvent] | Iterable[LearningEvent],
        call: Callable[[AsyncIterator[pb.StreamEventsRequest]], AsyncGenerator[pb.StreamEventsResponse]],
        *,
        patience: float,
    ) -> None:
        self._events = events
        self._call = call
        self._backoff = Backoff(patience)
        self._window: deque[LearningEvent] = deque()
        self._sent = 0
        """How many of the window were sent on the stream that is open now."""
        self._position = 0
        self._exhausted = False
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(WINDOW)

    async def acknowledgements(self) -> AsyncGenerator[pb.StreamEventsResponse]:
        """Raises what the source of events raised, after the acknowledgements of the events before it."""
        reading = asyncio.create_task(self._read_events())
        self._backoff.succeeded()  # patience begins now
        try:
            while not (self._exhausted and not self._window):
                error = ended_early()
                self._sent = 0
                try:
                    async with aclosing(self._call(self._requests())) as responses:
                        async for response in responses:
                            yield self._acknowledged(response)
                except MasteryError as broken:
                    error = broken
                if not self._exhausted or self._window:
                    await self._backoff.wait(error)
            await reading
        finally:
            reading.cancel()

    def _acknowledged(self, response: pb.StreamEventsResponse) -> pb.StreamEventsResponse:
        """Takes an event out of the window. Raises MasteryError if it has to be sent again."""
        if not self._window or response.event_id != self._window[0].event_id:
            raise ServerFault("an acknowledgement is out of order", grpc.StatusCode.INTERNAL, reason="INTERNAL")
        if response.error.code == _UNAVAILABLE:
            raise error_of(response.error)
        self._backoff.succeeded()
        self._window.popleft()
        self._room.release()
        self._sent -= 1
        self._position += 1
        response.sequence = self._position
        return response

    async def _read_events(self) -> None:
        """Fills the window from the source, which goes on from where it is whatever becomes of the stream."""
        try:
            async for event in _in_turn(self._events):
                await self._room.acquire()
                self._window.append(event)
                self._changed.set()
        finally:
            self._exhausted = True
            self._changed.set()

    async def _requests(self) -> AsyncGenerator[pb.StreamEventsRequest]:
        while True:
            while self._sent < len(self._window):
                self._sent += 1
                yield pb.StreamEventsRequest(event=self._window[self._sent - 1])
            if self._exhausted:
                return
            self._changed.clear()
            await self._changed.wait()


async def _in_turn(events: Any) -> AsyncIterator[LearningEvent]:
    if hasattr(events, "__aiter__"):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event
