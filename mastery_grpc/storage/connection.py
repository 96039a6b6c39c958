"""Clients for Redis, by URL, and the one place that turns a driver's error into ours."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from mastery_grpc.domain.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}

RedisClient = Redis | RedisCluster
Command = tuple[Any, ...]

# What passes: the network, a failover, a server that starts, a full or overloaded one.
_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.ClusterError,
    exceptions.RedisClusterException,  # no node answers; its other uses are calls that we do not make
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
    exceptions.NoScriptError,
    OSError,
)
# Passing as well, but the driver has no class for them: a long script runs, the disk is full, replicas lack.
_PASSING_CODES = ("BUSY", "MISCONF", "NOREPLICAS")


class _PackedInC(Connection):
    """Packs commands with hiredis, as redis-py's synchronous connection does: a commit of 30 arguments takes
    7 µs rather than 45."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return super().pack_command(*args) if " " in args[0] else [pack_command(args)]


def connect(url: str, *, timeout: float) -> RedisClient:
    """Returns a client for `redis://`, `rediss://`, `unix://`, or a cluster as `redis+cluster://`.

    Connects lazily. `timeout` (seconds) bounds each connect and each reply; one retry bridges a connection
    that the server had closed. Repeating a commit is safe, because it is a compare-and-set.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=1),
    }
    scheme, separator, rest = url.partition("://")
    if scheme in CLUSTER_SCHEMES:
        return RedisCluster.from_url(CLUSTER_SCHEMES[scheme] + separator + rest, **options)
    if scheme == "redis":
        options["connection_class"] = _PackedInC
    return Redis.from_url(url, **options)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns the driver's passing errors into StorageUnavailable; all others are bugs and stay."""
    try:
        yield
    except _PASSING as error:
        raise StorageUnavailable(f"redis: {type(error).__name__}") from error
    except exceptions.ResponseError as error:
        code, _, _ = str(error).partition(" ")
        if code not in _PASSING_CODES:
            raise
        raise StorageUnavailable(f"redis: {code}") from error


async def run_pipeline(client: RedisClient, commands: Sequence[Command]) -> list[Any]:
    """Runs commands in one round trip (one per node in a cluster); returns the replies, errors included."""
    with storage_errors():
        pipeline: Any = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def raise_first_error(replies: Sequence[Any]) -> None:
    """Raises the first error among the replies of a pipeline."""
    with storage_errors():
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
