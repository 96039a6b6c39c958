"""A Lua script, and how it is run on many keys in one round trip."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.storage.connection import Replicas, raise_first_error, run_writes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from mastery_grpc.storage.connection import RedisClient


class Script:
    """A script that is called by its digest, and sent only where it is not known."""

    def __init__(self, name: str) -> None:
        """`name` of a file in `lua`."""
        self.text = files("mastery_grpc.storage").joinpath("lua", name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self,
        client: RedisClient,
        guard: Callable[[], AbstractAsyncContextManager[Any]],
        calls: Sequence[Sequence[Any]],
        replicas: Replicas = Replicas(),  # noqa: B008 - immutable
    ) -> list[Any]:
        """Returns the reply to each call: the number of keys, the keys, the arguments. Raises StorageUnavailable.

        `guard`: entered for the calls, as a circuit breaker's is.
        """
        async with guard():
            replies, is_replicated = await run_writes(
                client, [("EVALSHA", self.sha, *call) for call in calls], replicas
            )
            unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:  # a node that started or took over a moment ago; EVAL teaches it the script
                again, is_again_replicated = await run_writes(
                    client, [("EVAL", self.text, *calls[index]) for index in unknown], replicas
                )
                is_replicated &= is_again_replicated
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
            raise_first_error(replies)
        require(is_replicated)
        return replies


KEEP = Script("keep.lua")


def require(is_replicated: bool) -> None:
    """Raises StorageUnavailable unless enough replicas have what was written.

    To be called outside a breaker's guard: the server answers, and reads may go on.
    """
    if not is_replicated:
        raise StorageUnavailable("redis: too few replicas have the write")
