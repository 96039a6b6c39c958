"""Working on batches: chunk by chunk, in as many processes as do this, through the death of any of them."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

import structlog

from mastery_grpc.application.batches.store import CLAIM_SECONDS, BatchItem, ItemOutcome, ItemResult
from mastery_grpc.domain.batch import Batch, order_of
from mastery_grpc.domain.errors import ItemFailed, StudentErased, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from mastery_grpc.application.batches.store import BatchFeed, BatchWork, BegunChunk, TakenChunk
    from mastery_grpc.domain.batch import BatchPriority

    Operations = Callable[[Batch, Mapping[int, BatchItem]], Awaitable[Mapping[int, ItemOutcome]]]

KEEP_SECONDS = CLAIM_SECONDS / 4
"""Between two signs of life of a worker."""
IDLE_SECONDS = 1.0
"""Between two looks at empty queues; an announcement ends the wait."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds to wait while something is away, at first and at last."""
MOST_DELIVERIES = 10
"""A chunk that so many workers took and did not bring to an end is what ends them."""
UPKEEP_SECONDS = 10.0

log = structlog.get_logger(__name__)


class WorkBatches:
    """Takes chunks off the queues and does what their batches ask for, `at_once` of them at a time.

    A chunk stays in its queue until its results are stored: what a process held that died is taken up by another
    one. Whatever is done twice by that has its effect once, because every step is repeatable.
    """

    def __init__(
        self,
        work: BatchWork,
        operations: Operations,
        feed: BatchFeed,
        *,
        at_once: int,
        clock: Callable[[], datetime],
    ) -> None:
        """0 for `at_once` leaves all work to other processes."""
        self._work = work
        self._operations = operations
        self._feed = feed
        self._at_once = at_once
        self._clock = clock
        self._busy: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        """Works until stopped, through outages of whatever is needed."""
        if not self._at_once:
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._work_for_ever())
            group.create_task(self._upkeep())

    async def stop(self, patience: float) -> None:
        """Takes no further chunk, and waits so many seconds for those under way."""
        self._is_stopping = True
        if self._busy:
            await asyncio.wait(self._busy, timeout=patience)

    async def _work_for_ever(self) -> None:
        # In each process the turns begin elsewhere, or all would come to the last priority at the same time.
        turns = count(random.randrange(8))  # noqa: S311
        while not self._is_stopping:
            try:
                await self._turn(order_of(next(turns)))
            except Unavailable:
                await asyncio.sleep(LONGEST_PAUSE)
            except Exception:
                # Whatever it is, the chunk stays in its queue: the server must not go down with it.
                log.exception("a chunk of a batch is left to be taken again")
                await asyncio.sleep(LONGEST_PAUSE)

    async def _turn(self, order: Sequence[BatchPriority]) -> None:
        taken = await self._work.take(order)
        if taken is None:
            await self._feed.until_work(IDLE_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
        elif not self._is_stopping:
            task = asyncio.ensure_future(self._until_done(taken))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
            await task

    async def _until_done(self, taken: TakenChunk) -> None:
        pause = SHORTEST_PAUSE
        async with self._kept(taken):
            while True:
                try:
                    await self._once(taken)
                except Unavailable as error:
                    if self._is_stopping:
                        raise  # it stays in its queue
                    if pause == SHORTEST_PAUSE:
                        log.warning("a chunk of a batch waits", reason=str(error))
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    return

    async def _once(self, taken: TakenChunk) -> None:
        begun = await self._work.begin(taken, self._clock())
        if begun is None:
            return
        if taken.deliveries > MOST_DELIVERIES:
            log.error("a chunk of a batch is given up", deliveries=taken.deliveries, **_named(begun))
            outcomes: Mapping[int, ItemOutcome] = {index: ItemFailed() for index in begun.items}
        else:
            outcomes = await self._outcomes(begun)
        results = [_result(index, item, outcomes[index]) for index, item in begun.items.items()]
        await self._work.finish(begun, results, self._clock())

    async def _outcomes(self, begun: BegunChunk) -> Mapping[int, ItemOutcome]:
        try:
            return await self._operations(begun.batch, begun.items)
        except Unavailable:
            raise
        except Exception:
            log.exception("a chunk of a batch failed: its items are tried one by one", **_named(begun))
        outcomes: dict[int, ItemOutcome] = {}
        for index, item in begun.items.items():
            try:
                outcomes |= await self._operations(begun.batch, {index: item})
            except Unavailable:
                raise
            except Exception:
                log.exception("an item of a batch failed", index=index, **_named(begun))
                outcomes[index] = ItemFailed()
        return outcomes

    @asynccontextmanager
    async def _kept(self, taken: TakenChunk) -> AsyncIterator[None]:
        """Gives signs of life while the context is open."""
        is_done = False

        async def keep() -> None:
            # Not for ever: a cancellation that meets a reply of the storage can be lost in the driver.
            while not is_done:
                await asyncio.sleep(KEEP_SECONDS)
                with suppress(Unavailable):
                    await self._work.keep(taken)

        keeping = asyncio.create_task(keep())
        try:
            yield
        finally:
            is_done = True
            keeping.cancel()

    async def _upkeep(self) -> None:
        while not self._is_stopping:
            try:
                if lost := await self._work.requeue_lost(self._clock()):
                    log.warning("chunks of batches that were lost are queued again", chunks=lost)
            except Unavailable:
                pass
            except Exception:
                log.exception("lost chunks of batches are not looked for")
            await asyncio.sleep(UPKEEP_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311


def _result(index: int, item: BatchItem, outcome: ItemOutcome) -> ItemResult:
    return ItemResult(index, "" if isinstance(outcome, StudentErased) else item.student_id, outcome)


def _named(begun: BegunChunk) -> dict[str, object]:
    chunk = begun.taken.chunk
    return {"batch_id": chunk.batch.batch_id, "school_id": chunk.batch.school_id, "chunk": chunk.number}
