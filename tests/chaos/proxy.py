"""A TCP proxy that lives in a thread of its own and can be told to misbehave."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 65_536


class BadProxy:
    """While `is_bad`, any reply may come late, be swallowed, or end the connection instead.

    Requests always pass: what is lost is the reply to something that was done.
    """

    def __init__(self, target_port: int, rng: random.Random) -> None:
        self.port = 0
        self.is_bad = False
        self.delayed = self.cut = self.swallowed = 0
        self._target_port = target_port
        self._rng = rng
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bad-proxy", daemon=True)

    @property
    def faults(self) -> int:
        return self.delayed + self.cut + self.swallowed

    @contextmanager
    def running(self) -> Iterator["BadProxy"]:
        self._thread.start()
        self._ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        under_way = asyncio.all_tasks(self._loop)
        for task in under_way:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*under_way, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            its_reader, its_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            ways = {
                asyncio.ensure_future(self._requests(reader, its_writer)),
                asyncio.ensure_future(self._replies(its_reader, writer)),
            }
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            its_writer.close()
        writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                writer.write(chunk)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_mute = False
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                chance = self._rng.random() if self.is_bad else 1.0
                if chance < 0.08:
                    self.cut += 1
                    return
                if chance < 0.16:
                    self.swallowed += 1
                    is_mute = True  # for good: what came later would be taken for the reply that is missing
                elif chance < 0.40:
                    self.delayed += 1
                    await asyncio.sleep(self._rng.uniform(0.01, 0.4))
                if not is_mute:
                    writer.write(chunk)
                    await writer.drain()
