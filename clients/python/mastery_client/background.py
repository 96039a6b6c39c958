"""The event loop behind the synchronous face: one thread of the process, shared by all clients in it."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterable

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")

MOST_AHEAD = 1000
"""How many items of a blocking iterable are read before the loop has taken them."""
_END = object()


class BackgroundLoop:
    """Runs coroutines for threads that wait for them. Context variables go with them, and so does a trace."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="mastery-client", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Returns what the coroutine does. Raises what it raises; an interrupt of the thread cancels it."""
        if os.getpid() != self._pid:
            coroutine.close()
            raise RuntimeError("the process has forked since the client was made: make it in the child")
        waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    def iterate(self, items: AsyncGenerator[_Item]) -> Generator[_Item]:
        """Yields the items; closed when the generator is."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        finally:
            self.run(items.aclose())

    async def unblocked(self, items: Iterable[_Item]) -> AsyncIterator[_Item]:
        """Yields the items of an iterable that may block, which a thread of its own reads."""
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        room, stopped = threading.Semaphore(MOST_AHEAD), threading.Event()
        failure: list[BaseException] = []

        def read() -> None:
            try:
                for item in items:
                    room.acquire()
                    if stopped.is_set():
                        return
                    self._loop.call_soon_threadsafe(arrived.put_nowait, item)
            except BaseException as error:
                failure.append(error)
            self._loop.call_soon_threadsafe(arrived.put_nowait, _END)

        threading.Thread(target=read, name="mastery-client-events", daemon=True).start()
        try:
            while (item := await arrived.get()) is not _END:
                room.release()
                yield item
            if failure:
                raise failure[0]
        finally:
            stopped.set()
            room.release()


@cache
def background_loop() -> BackgroundLoop:
    """Returns the loop of the process, started when first asked for."""
    return BackgroundLoop()


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=background_loop.cache_clear)


async def _next(items: AsyncIterator[_Item]) -> Any:
    return await anext(items, _END)
