"""The gRPC door for events: first into the request log, then applied, so callers read their own writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mastery_grpc.application.event_observer import NobodyWatchesEvents
from mastery_grpc.application.student_update import Delivery, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from mastery_grpc.application.apply_events import ApplyEvents
    from mastery_grpc.application.event_observer import EventObserver
    from mastery_grpc.application.ports import RequestLog
    from mastery_grpc.domain.events import LearningEvent


class AcceptEvents:
    """Makes events durable and applies them.

    The ingest worker meets them again on `mastery.requests`, finds them applied by the very record that it
    reads, and publishes their results: so results have a single, transactional producer, whichever door the
    event came through. If this process dies half-way, the worker applies them.
    """

    def __init__(
        self,
        apply: ApplyEvents,
        request_log: RequestLog | None,
        *,
        clock: Callable[[], datetime],
        observer: EventObserver | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a request log events are applied, and no results are published."""
        self._apply = apply
        self._request_log = request_log
        self._clock = clock
        self.observer = observer or NobodyWatchesEvents()
        self._timer = timer

    async def __call__(
        self, events: Sequence[LearningEvent], *, produced_time: datetime | None = None
    ) -> list[Outcome]:
        """Returns what became of each event, in their order. Raises Unavailable; repeating is safe.

        `produced_time`: if they were given to the engine earlier than now.
        """
        accepted_time, arrived = produced_time or self._clock(), self._timer()
        if self._request_log is None:
            origins = [""] * len(events)
        else:
            origins = await self._request_log.append(events, produced_time=produced_time)
        outcomes = await self._apply(
            [Delivery(event, origin, accepted_time) for event, origin in zip(events, origins, strict=True)]
        )
        age = self._timer() - arrived
        for event, outcome in zip(events, outcomes, strict=True):
            self.observer.settled(event, outcome, age=age)
        return outcomes
