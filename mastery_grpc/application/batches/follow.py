"""The use cases of a batch that was handed in: how far it is, what came of it, and calling it off."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from mastery_grpc.application.batches.store import ItemResult
from mastery_grpc.domain.analytics.samples import SampleStatistics, describe
from mastery_grpc.domain.errors import InvalidPageToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from mastery_grpc.application.batches.store import BatchFeed, BatchStore
    from mastery_grpc.domain.batch import Batch, BatchKey

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
_PLACE_BYTES = 2


@dataclass(frozen=True, slots=True)
class ResultsPage:
    """Results of a batch in the order of its items."""

    results: Sequence[ItemResult]
    summary: SampleStatistics
    """Of the scores of all results, whatever the page."""
    next_page_token: str


class FollowBatch:
    """Tells about batches. Every method raises BatchNotFound and StorageUnavailable."""

    def __init__(self, store: BatchStore, feed: BatchFeed, *, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock

    async def state(self, key: BatchKey) -> Batch:
        """Returns how far a batch is."""
        return await self._store.load(key)

    async def results(self, key: BatchKey, *, page_size: int, page_token: str) -> ResultsPage:
        """Returns a page of results; 0 for the usual size. Raises InvalidPageToken."""
        batch = await self._store.load(key)
        size = min(page_size or DEFAULT_PAGE, LARGEST_PAGE)
        place = _place_in(page_token, key) if page_token else 0
        found: list[ItemResult] = []
        # One more than the page has, to know whether there is another; results lack where chunks are not done.
        while place < batch.item_count and len(found) <= size:
            end = min(place + size + 1, batch.item_count)
            found += await self._store.load_results(key, range(place, end))
            place = end
        page = found[:size]
        token = _token(key, found[size].index) if len(found) > size else ""
        scores = np.array(await self._store.load_scores(key))
        return ResultsPage(page, describe(scores), token)

    async def watch(self, key: BatchKey) -> AsyncIterator[Batch]:
        """Yields how far a batch is, now and after every change, until it has ended.

        To a slow consumer the newest state only. Raises ShuttingDown.
        """
        # Subscribed before reading, so that no change falls between the two.
        async with self._feed.subscribe(key) as news:
            told = None
            while told is None or told.end_time is None:
                batch = await self._store.load(key)
                if batch != told:
                    told = batch
                    yield batch
                else:
                    await news.next()

    async def cancel(self, key: BatchKey) -> Batch:
        """Ends a batch: what is not begun never is. Raises BatchEnded if it has succeeded."""
        return await self._store.cancel(key, self._clock())


def _token(key: BatchKey, index: int) -> str:
    place = UUID(key.batch_id).bytes + index.to_bytes(_PLACE_BYTES, "big")
    return base64.urlsafe_b64encode(place).decode()


def _place_in(token: str, key: BatchKey) -> int:
    """Returns where a page begins. Raises InvalidPageToken for a token that is not of this batch."""
    try:
        place = base64.urlsafe_b64decode(token.encode("ascii"))
    except (binascii.Error, ValueError):
        raise InvalidPageToken from None
    index = int.from_bytes(place[-_PLACE_BYTES:], "big")
    if _token(key, index) != token:
        raise InvalidPageToken
    return index
