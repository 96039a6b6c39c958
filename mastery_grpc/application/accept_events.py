"""The gRPC door for events: first into the request log, then applied, so callers read their own writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.student_update import Delivery, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.apply_events import ApplyEvents
    from mastery_grpc.application.ports import RequestLog
    from mastery_grpc.domain.events import LearningEvent


class AcceptEvents:
    """Makes events durable and applies them.

    The ingest worker meets them again on `mastery.requests`, finds them applied by the very record that it
    reads, and publishes their results: so results have a single, transactional producer, whichever door the
    event came through. If this process dies half-way, the worker applies them.
    """

    def __init__(self, apply: ApplyEvents, request_log: RequestLog | None) -> None:
        """Without a request log events are applied, and no results are published."""
        self._apply = apply
        self._request_log = request_log

    async def __call__(self, events: Sequence[LearningEvent]) -> list[Outcome]:
        """Returns what became of each event, in their order. Raises Unavailable; repeating is safe."""
        if self._request_log is None:
            origins = [""] * len(events)
        else:
            origins = await self._request_log.append(events)
        return await self._apply([Delivery(*pair) for pair in zip(events, origins, strict=True)])
