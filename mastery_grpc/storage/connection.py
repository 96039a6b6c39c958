"""Clients for Redis, by URL, and the one place that turns a driver's error into ours."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    Redis,
    RedisCluster,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import PipelineCommand
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialWithJitterBackoff

from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.storage.command_observer import observe, observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from mastery_grpc.storage.command_observer import CommandObserver

RedisClient = Redis | RedisCluster
Command = tuple[Any, ...]

MAX_CONNECTIONS = 100
"""To one server, of one process."""
NO_LIMIT = 1_000_000

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
    exceptions.AskError,  # and MovedError: a slot is on its way, or was
    exceptions.OutOfMemoryError,
    exceptions.NoScriptError,
    OSError,
)
# Passing as well, but the driver has no class for them: a long script runs, the disk is full, replicas lack.
_PASSING_CODES = ("BUSY", "MISCONF", "NOREPLICAS")


class Replicas(NamedTuple):
    """How many replicas must have a write before it counts."""

    required: int = 0
    timeout: float = 1.0
    """How long to wait for them, in seconds; less than the timeout of the connection."""


class _Link(AbstractConnection):
    """What all our connections do in their own way."""

    def pack_command(self, *args: Any) -> list[bytes]:
        # With hiredis, as redis-py's synchronous connection does: 7 µs rather than 45 for the 30 arguments of
        # a commit.
        return super().pack_command(*args) if " " in args[0] else [pack_command(args)]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except exceptions.ReadOnlyError:
            # The address leads to another server since a failover, but not for connections made before it.
            await self.disconnect()
            raise


class _Tcp(_Link, Connection):
    pass


class _Tls(_Link, SSLConnection):
    pass


class _Unix(_Link, UnixDomainSocketConnection):
    pass


class _TcpToMaster(_Link, SentinelManagedConnection):
    pass


class _TlsToMaster(_Link, SentinelManagedSSLConnection):
    pass


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> Any:
        # In a list of this call's own: redis-py puts the one that answered first while other calls walk through
        # the same list, and in time loses the rest of them.
        mine = copy(self)
        mine.sentinels = list(self.sentinels)
        address = await super(_Sentinels, mine).discover_master(service_name)
        self.sentinels = mine.sentinels
        return address


class _PoolToMaster(SentinelConnectionPool, BlockingConnectionPool):
    """Closes the clients of the sentinels with it, because nobody else knows them."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


_CLASSES = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
_CLASSES_TO_MASTER = {Connection: _TcpToMaster, SSLConnection: _TlsToMaster}


def connect(
    url: str,
    *,
    timeout: float,
    max_connections: int = MAX_CONNECTIONS,
    observer: CommandObserver | None = None,
) -> RedisClient:
    """Returns a client for the servers at a URL, which is one of these.

    - `redis://[user:password@]host[:port][/database]`, or `unix://[user:password@]path`
    - `redis+cluster://[user:password@]host[:port]`, any node of a cluster
    - `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]`, the sentinels that know
      the master; user and password are the master's, those of the sentinels are the query parameters
      `sentinel_username` and `sentinel_password`

    With `rediss` for `redis`, all of it is encrypted. Query parameters are redis-py's, such as `ssl_ca_certs`
    (the authority to trust, if not the system's), `ssl_certfile` and `ssl_keyfile` (the client's own
    certificate): paths of PEM files.

    Connects lazily. While all `max_connections` are in use, calls wait for one; but to a cluster, whose driver
    would refuse them, there is no such limit. `timeout` (seconds) bounds that wait, each connect and each reply;
    one retry bridges a connection that the server had closed. Repeating a commit is safe, because it is a
    compare-and-set. Raises ValueError for a URL that is none of these. The `observer` is told of all round trips.
    """
    client = _client(url, timeout, max_connections)
    if observer is not None:
        observe(client, observer)
    return client


def _client(url: str, timeout: float, max_connections: int) -> RedisClient:
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=1),
    }
    scheme, separator, rest = url.partition("://")
    protocol, _, topology = scheme.partition("+")
    if topology == "cluster":
        return RedisCluster.from_url(protocol + separator + rest, max_connections=NO_LIMIT, **options)
    pool = {"max_connections": max_connections, "timeout": timeout}
    if topology == "sentinel":
        return _connect_to_master(protocol + separator + rest, options, pool)
    options |= parse_url(url) | pool
    options["connection_class"] = _CLASSES[options.get("connection_class", Connection)]
    return Redis.from_pool(BlockingConnectionPool(**options))


def _connect_to_master(url: str, options: dict[str, Any], pool: dict[str, Any]) -> Redis:
    parts = urlsplit(url)
    user, _, addresses = parts.netloc.rpartition("@")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not addresses or not service:
        raise ValueError("must be redis+sentinel://host:port,host:port/service")
    options |= parse_url(urlunsplit(parts._replace(netloc=f"{user}@", path=database)))
    connection_class = options.pop("connection_class", Connection)
    of_sentinels = {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
        "ssl": connection_class is SSLConnection,
        **{name: value for name, value in options.items() if name.startswith(("socket_", "ssl_", "retry"))},
    }
    hosts = [urlsplit(f"//{address}") for address in addresses.split(",")]
    sentinel = _Sentinels(  # type: ignore[no-untyped-call]
        [(host.hostname, host.port or 26379) for host in hosts], sentinel_kwargs=of_sentinels
    )
    client: Redis = sentinel.master_for(
        service,
        connection_pool_class=_PoolToMaster,
        connection_class=_CLASSES_TO_MASTER[connection_class],
        **options,
        **pool,
    )
    return client


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
    with storage_errors(), observed(client, commands):
        pipeline: Any = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


async def run_writes(
    client: RedisClient, commands: Sequence[Command], replicas: Replicas
) -> tuple[list[Any], bool]:
    """Runs commands that write; returns the replies, and whether enough replicas have what was written.

    The second holds for commands that did write something just now. Each has its key first, or is a script.
    """
    if not replicas.required:
        return await run_pipeline(client, commands), True
    wait = "WAIT", replicas.required, int(1000 * replicas.timeout)
    if isinstance(client, RedisCluster):
        replies, counts = await _run_on_nodes(client, commands, wait)
    else:
        *replies, count = await run_pipeline(client, [*commands, wait])
        counts = [count]
    raise_first_error(counts)
    return replies, min(counts) >= replicas.required


async def _run_on_nodes(
    client: RedisCluster, commands: Sequence[Command], last: Command
) -> tuple[list[Any], list[Any]]:
    """Runs commands, and the last one once more on each of their nodes; returns the replies to both.

    WAIT speaks for its own connection. So this is not done by redis-py's pipeline, which may follow a slot that
    moved, or try again, on another one. A slot that moved is an error here; the driver learns where it is from
    the read that every next attempt begins with.
    """
    placed = [PipelineCommand(position, *command) for position, command in enumerate(commands)]
    by_node: dict[Any, list[PipelineCommand]] = {}
    with storage_errors():
        await client.initialize()
        for command in placed:
            key = command.args[3 if command.args[0] in ("EVAL", "EVALSHA") else 1]
            by_node.setdefault(client.get_node_from_key(key), []).append(command)
    lasts = [PipelineCommand(len(commands), *last) for _ in by_node]
    for to_node, its_last in zip(by_node.values(), lasts, strict=True):
        to_node.append(its_last)
    with observed(client, commands):
        failures = await asyncio.gather(
            *(node.execute_pipeline(to_node) for node, to_node in by_node.items()), return_exceptions=True
        )
    raise_first_error(failures)
    return [command.result for command in placed], [command.result for command in lasts]


def raise_first_error(replies: Sequence[Any]) -> None:
    """Raises the first error among the replies of a pipeline."""
    with storage_errors():
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply


async def run_guarded(
    client: RedisClient, guard: Callable[[], AbstractAsyncContextManager[Any]], commands: Sequence[Command]
) -> list[Any]:
    """Returns the replies to commands in one round trip, all of which must succeed. Raises StorageUnavailable.

    `guard`: entered for the call, as a circuit breaker's is.
    """
    async with guard():
        replies = await run_pipeline(client, commands)
        raise_first_error(replies)
    return replies
