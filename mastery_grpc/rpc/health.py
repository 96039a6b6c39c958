"""grpc.health.v1.Health: readiness that follows the storage, liveness that does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from mastery_grpc.domain.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

LIVENESS = "liveness"
OVERALL = ""

log = structlog.get_logger(__name__)


class Health:
    """Keeps the status of each service up to date: ready while the storage answers."""

    def __init__(self, *, services: Sequence[str], check: Callable[[], Awaitable[None]], interval: float) -> None:
        """`check` raises Unavailable while nothing can be served; asked every `interval` seconds."""
        self.servicer = HealthServicer()
        self._names = [OVERALL, *services]
        self._check = check
        self._interval = interval
        self._is_ready: bool | None = None

    async def run(self) -> None:
        """Watches the storage for ever. The library starts as SERVING; we do not before the first check."""
        await self.servicer.set(LIVENESS, HealthCheckResponse.SERVING)
        await self._report(is_ready=False)
        while True:
            await self._report(is_ready=await self._answers())
            await asyncio.sleep(self._interval)

    async def shut_down(self) -> None:
        """Reports NOT_SERVING everywhere, for good."""
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
