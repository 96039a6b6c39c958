"""The announcements of committed changes: they freshen the cache and drive the watchers."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
from mastery_grpc.domain.errors import ShuttingDown
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.announcements import listen
from mastery_grpc.storage.records import ERASURE, decode_erasure, decode_mastery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from mastery_grpc.domain.student import Mastery
    from mastery_grpc.storage.cache import CachedMasteryReader
    from mastery_grpc.storage.connection import RedisClient

# Most announcements concern nobody here: whom they concern is read without decoding them.
_student_of = re.compile(rb'\{"version":\d+,"student_id":"([^"]*)","school_id":"([^"]*)"').match


class _Subscription:
    """Holds the newest mastery of each changed student until the watcher takes it.

    Bounded by the number of students: a slow watcher skips what lies between, he is never owed a queue.
    """

    def __init__(self) -> None:
        self._changed: dict[StudentKey, Mastery] = {}
        self._erased: dict[StudentKey, ErasureAnnouncement] = {}
        self._must_read = False
        self._closed = False
        self._news = asyncio.Event()

    async def next(self) -> Sequence[Mastery | ErasureAnnouncement] | None:
        await self._news.wait()
        if self._closed:
            raise ShuttingDown
        self._news.clear()
        changed, self._changed = self._changed, {}
        erased, self._erased = self._erased, {}
        must_read, self._must_read = self._must_read, False
        return None if must_read else [*erased.values(), *changed.values()]

    def push(self, news: Mastery | ErasureAnnouncement) -> None:
        if isinstance(news, ErasureAnnouncement):
            self._erased[news.student] = news
            self._changed.pop(news.student, None)
        else:
            self._changed[news.student] = news
        self._news.set()

    def lose(self) -> None:
        self._must_read = True
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()


class RedisMasteryFeed:
    """Implements `MasteryFeed`; `run` listens until cancelled and reconnects by itself."""

    def __init__(self, client: RedisClient, *, cache: CachedMasteryReader) -> None:
        self._client = client
        self._cache = cache
        self._subscriptions: defaultdict[StudentKey, set[_Subscription]] = defaultdict(set)
        self._closed = False
        self._erasure_listeners: list[Callable[[StudentKey], None]] = []

    def on_erased(self, listener: Callable[[StudentKey], None]) -> None:
        """Has a listener told of every student who is erased, whichever process does it."""
        self._erasure_listeners.append(listener)

    @asynccontextmanager
    async def subscribe(self, students: Sequence[StudentKey]) -> AsyncIterator[_Subscription]:
        subscription = _Subscription()
        if self._closed:
            subscription.close()
        for student in students:
            self._subscriptions[student].add(subscription)
        try:
            yield subscription
        finally:
            for student in students:
                self._subscriptions[student].discard(subscription)
                if not self._subscriptions[student]:
                    del self._subscriptions[student]

    def close(self) -> None:
        """Ends every subscription with ShuttingDown, those to come included."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.close()

    async def run(self) -> None:
        """Listens for announcements for ever. What is cached stays while the storage is away: better 30 s old than
        nothing."""
        await listen(self._client, keys.ANNOUNCEMENTS, begin=self._begin_anew, hear=self._hear)

    def _hear(self, announcement: bytes) -> None:
        if (match := _student_of(announcement)) is None:
            return
        student = StudentKey(match[1].decode(), match[2].decode())
        self._cache.drop(student)
        is_erasure = announcement.startswith(ERASURE)
        if is_erasure:
            for listener in self._erasure_listeners:
                listener(student)
        if subscriptions := self._subscriptions.get(student):
            news = decode_erasure(announcement) if is_erasure else decode_mastery(announcement)
            for subscription in subscriptions:
                subscription.push(news)

    def _begin_anew(self) -> None:
        """What was announced before this moment was not heard: nobody may rely on what he has."""
        self._cache.clear()
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.lose()
