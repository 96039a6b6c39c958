"""grpc.health.v1.Health: readiness that follows the storage, liveness that does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from mastery_grpc.domain.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

LIVENESS = "liveness"
OVERALL = ""
LAST_WORD_SECONDS = 0.1
"""How long watchers have to be told NOT_SERVING before their streams end."""

log = structlog.get_logger(__name__)


class _EndingHealthServicer(HealthServicer):
    """The library's servicer, whose watches otherwise hold up a server's stop for the whole of its grace."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(self, request: HealthCheckRequest, context: Any) -> None:  # noqa: N802 - the contract's name
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((watching, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            watching.cancel()

    async def enter_graceful_shutdown(self) -> None:
        await super().enter_graceful_shutdown()
        await asyncio.sleep(LAST_WORD_SECONDS)
        self._ended.set()


class Health:
    """Keeps the status of each service up to date: ready while the storage answers."""

    def __init__(self, *, services: Sequence[str], check: Callable[[], Awaitable[None]], interval: float) -> None:
        """`check` raises Unavailable while nothing can be served; asked every `interval` seconds."""
        self.servicer = _EndingHealthServicer()
        self._names = [OVERALL, *services]
        self._check = check
        self._interval = interval
        self._is_ready: bool | None = None
        self._is_shut_down = False

    async def run(self) -> None:
        """Watches the storage until shut down. The library starts as SERVING; we do not before the first check."""
        await self.servicer.set(LIVENESS, HealthCheckResponse.SERVING)
        await self._report(is_ready=False)
        # Not for ever: a cancellation that meets a reply of the storage can be lost in the driver.
        while not self._is_shut_down:
            await self._report(is_ready=await self._answers())
            await asyncio.sleep(self._interval)

    async def shut_down(self) -> None:
        """Reports NOT_SERVING everywhere, for good."""
        self._is_shut_down = True
        await self.servicer.enter_graceful_shutdown()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._interval):
                await self._check()
        except (Unavailable, TimeoutError):
            return False
        return True

    async def _report(self, *, is_ready: bool) -> None:
        if is_ready == self._is_ready:
            return
        if self._is_ready is not None:
            log.info("readiness changed", ready=is_ready)
        self._is_ready = is_ready
        status = HealthCheckResponse.SERVING if is_ready else HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self.servicer.set(name, status)
