"""The announcements about batches: they wake the workers and drive the watchers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from mastery_grpc.domain.batch import BatchKey
from mastery_grpc.domain.errors import ShuttingDown
from mastery_grpc.storage import keys
from mastery_grpc.storage.announcements import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mastery_grpc.storage.connection import RedisClient


class _News:
    """Remembers that something happened, not what and how often: nobody is ever owed a queue."""

    def __init__(self) -> None:
        self.is_closed = False
        self.happened = asyncio.Event()

    async def next(self) -> None:
        await self.happened.wait()
        if self.is_closed:
            raise ShuttingDown
        self.happened.clear()


class LocalBatchFeed:
    """Implements `BatchFeed` for the announcements that it is told of."""

    def __init__(self) -> None:
        self._news: defaultdict[BatchKey, set[_News]] = defaultdict(set)
        self._waiting: set[asyncio.Event] = set()
        self._is_closed = False

    @asynccontextmanager
    async def subscribe(self, key: BatchKey) -> AsyncIterator[_News]:
        news = _News()
        if self._is_closed:
            _close(news)
        self._news[key].add(news)
        try:
            yield news
        finally:
            self._news[key].discard(news)
            if not self._news[key]:
                del self._news[key]

    async def until_work(self, seconds: float) -> None:
        queued = asyncio.Event()
        self._waiting.add(queued)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await queued.wait()
        finally:
            self._waiting.discard(queued)

    def close(self) -> None:
        """Ends all news with ShuttingDown, those to come included."""
        self._is_closed = True
        for each in self._news.values():
            for news in each:
                _close(news)

    def changed(self, key: BatchKey) -> None:
        """Tells the watchers of a batch."""
        for news in self._news.get(key, ()):
            news.happened.set()

    def queued(self) -> None:
        """Tells those who wait for work."""
        for waiting in self._waiting:
            waiting.set()

    def all_changed(self) -> None:
        """Tells everybody, because something may have been missed."""
        for key in self._news:
            self.changed(key)
        self.queued()


class RedisBatchFeed(LocalBatchFeed):
    """Hears the announcements of all processes; `run` listens until cancelled and reconnects by itself."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__()
        self._client = client

    async def run(self) -> None:
        """Listens for announcements for ever."""
        await listen(self._client, keys.BATCH_ANNOUNCEMENTS, begin=self.all_changed, hear=self._hear)

    def _hear(self, announcement: bytes) -> None:
        if announcement:
            school_id, _, batch_id = announcement.decode(errors="replace").partition("/")
            self.changed(BatchKey(batch_id, school_id))
        else:
            self.queued()


def _close(news: _News) -> None:
    news.is_closed = True
    news.happened.set()
