"""Listening to a channel of Redis, through outages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.storage.connection import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from mastery_grpc.storage.connection import RedisClient

RECONNECT_SECONDS = 0.5

log = structlog.get_logger(__name__)


async def listen(
    client: RedisClient, channel: str, *, begin: Callable[[], None], hear: Callable[[bytes], None]
) -> None:
    """Listens for ever: `begin` is called each time from when on all is heard, `hear` with every message."""
    while True:
        try:
            with storage_errors():
                await _listen(client, channel, begin, hear)
        except StorageUnavailable as error:
            log.warning("announcements interrupted", channel=channel, error=str(error))
        await asyncio.sleep(RECONNECT_SECONDS)


async def _listen(
    client: RedisClient, channel: str, begin: Callable[[], None], hear: Callable[[bytes], None]
) -> None:
    await client.initialize()  # a cluster's pubsub must know the slots before its first command
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                begin()
            elif message["type"] == "message":
                hear(message["data"])
