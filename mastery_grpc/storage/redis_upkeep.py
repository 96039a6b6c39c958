"""Claims of upkeep on Redis."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import run_guarded

if TYPE_CHECKING:
    from mastery_grpc.storage.connection import RedisClient


class RedisUpkeepClaims:
    """Implements `UpkeepClaims`. No breaker: upkeep goes on behind the calls."""

    def __init__(self, client: RedisClient) -> None:
        self._run = partial(run_guarded, client, nullcontext)

    async def claim(self, work: str, seconds: int) -> bool:
        [reply] = await self._run([("SET", keys.upkeep(work), 1, "NX", "EX", seconds)])
        return reply is not None
