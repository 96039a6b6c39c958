"""BatchService: convert, call the use case, convert."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mastery.v1 import batch_service_pb2 as pb
from mastery_grpc.application.batches.submit import Submission
from mastery_grpc.domain.batch import BatchKey
from mastery_grpc.rpc.convert_analytics import statistics_to_proto
from mastery_grpc.rpc.convert_batch import (
    batch_to_proto,
    item_from_proto,
    operation_from_proto,
    priority_from_proto,
    result_to_proto,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from mastery_grpc.application.batches.follow import FollowBatch
    from mastery_grpc.application.batches.submit import SubmitBatch
    from mastery_grpc.rpc.access import Call

CONVERTED_AT_ONCE = 100
"""Items between two turns of the event loop, which other calls wait for."""


class BatchServicer:
    """Serves `mastery.v1.BatchService`."""

    def __init__(self, *, submit: SubmitBatch, follow: FollowBatch, clock: Callable[[], datetime]) -> None:
        self._submit = submit
        self._follow = follow
        self._clock = clock

    async def SubmitBatch(self, request: pb.SubmitBatchRequest, call: Call) -> pb.SubmitBatchResponse:
        operation = operation_from_proto(request.operation)
        items = []
        for number, item in enumerate(request.items):
            if number % CONVERTED_AT_ONCE == 0:
                await asyncio.sleep(0)
            items.append(item_from_proto(item, operation))
        batch = await self._submit(
            Submission(
                caller=call.caller,
                school_id=call.school_id,
                operation=operation,
                priority=priority_from_proto(request.priority),
                items=items,
                request_id=request.request_id.lower(),
            )
        )
        return pb.SubmitBatchResponse(batch=batch_to_proto(batch, self._clock()))

    async def GetBatch(self, request: pb.GetBatchRequest, call: Call) -> pb.GetBatchResponse:
        batch = await self._follow.state(_key(request, call))
        return pb.GetBatchResponse(batch=batch_to_proto(batch, self._clock()))

    async def ListBatchResults(
        self, request: pb.ListBatchResultsRequest, call: Call
    ) -> pb.ListBatchResultsResponse:
        page = await self._follow.results(
            _key(request, call), page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListBatchResultsResponse(
            results=map(result_to_proto, page.results),
            summary=statistics_to_proto(page.summary),
            next_page_token=page.next_page_token,
        )

    async def CancelBatch(self, request: pb.CancelBatchRequest, call: Call) -> pb.CancelBatchResponse:
        batch = await self._follow.cancel(_key(request, call))
        return pb.CancelBatchResponse(batch=batch_to_proto(batch, self._clock()))

    async def WatchBatch(self, request: pb.WatchBatchRequest, call: Call) -> AsyncIterator[pb.WatchBatchResponse]:
        async for batch in self._follow.watch(_key(request, call)):
            yield pb.WatchBatchResponse(batch=batch_to_proto(batch, self._clock()))


def _key(
    request: pb.GetBatchRequest | pb.ListBatchResultsRequest | pb.CancelBatchRequest | pb.WatchBatchRequest,
    call: Call,
) -> BatchKey:
    return BatchKey(request.batch_id.lower(), call.school_id)
