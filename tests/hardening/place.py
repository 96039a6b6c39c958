"""A served engine in a process of its own, on a Redis of its own, and a bystander who must not notice attacks."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc

from mastery_grpc.application.callers import Role
from tests.fuzz.decoder import resident_bytes
from tests.integration.serving import Client, Engine, bearer, quiz_event, token
from tests.integration.test_server_process import Server, serving
from tests.real.processes import free_ports, scratch_directory
from tests.real.redis_servers import RedisServer, standalone

SLOWEST = 2.0
"""Seconds that a call of a bystander may take while others misbehave."""
MOST_GROWTH = 96 * 2**20
"""Bytes that the server's memory may grow by during one attack."""
CALLS_OF_ONE = 50
REDIS_PASSWORD = secrets.token_urlsafe(24)
STUDENT = "bystander"


class Fault(Exception):
    """What an attack did, and should not have done."""


@dataclass
class Place:
    """The server under attack."""

    server: Server
    engine: Engine
    redis: RedisServer
    metrics_port: int
    token: str
    told: list[str] = field(default_factory=list)
    """Messages of all statuses that were provoked, with their details."""

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def client(self) -> Client:
        return self.engine.client_with(bearer(self.token))

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self.server.process.pid)

    def is_alive(self) -> None:
        if self.server.process.poll() is not None:
            raise Fault(f"the server has ended:\n{self.server.output()[-2000:]}")

    @asynccontextmanager
    async def unnoticed(self) -> AsyncIterator[list[str]]:
        """Raises Fault if a bystander is refused or kept waiting, or memory grows, while the context is open.

        What the context is given is the remark, filled in at the end.
        """
        before, remarks, latencies = self.resident_bytes, list[str](), list[float]()
        async with _connected(self.port) as engine:
            await engine.client().get(STUDENT)
            watching = asyncio.create_task(_call_again_and_again(engine, latencies))
            try:
                yield remarks
                await asyncio.sleep(0.3)
            finally:
                watching.cancel()
                failures = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(failures[0], grpc.aio.AioRpcError):
                raise Fault(f"a bystander was refused: {failures[0].code().name} {failures[0].details()}")
            await engine.client().get(STUDENT)
        self.is_alive()
        slowest, growth = max(latencies), self.resident_bytes - before
        if slowest > SLOWEST:
            raise Fault(f"a bystander waited {slowest:.1f} s")
        if growth > MOST_GROWTH:
            raise Fault(f"memory grew by {growth / 2**20:.0f} MiB")
        remarks.append(
            f"{len(latencies)} other calls, slowest {1000 * slowest:.0f} ms, memory {growth / 2**20:+.1f} MiB"
        )


async def _call_again_and_again(engine: Engine, latencies: list[float]) -> None:
    """Calls as many others would, each no oftener than he may."""
    while True:
        bystander = engine.client(Role.SERVICE, f"bystander-{len(latencies) // CALLS_OF_ONE}")
        began = time.perf_counter()
        await bystander.get(STUDENT)
        latencies.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[Engine]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Engine(port, channel)


@contextmanager
def redis_with_password() -> Iterator[tuple[RedisServer, str]]:
    """A server, and an address with a password in it."""
    with standalone() as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "mastery", "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all")
        yield server, f"redis://mastery:{REDIS_PASSWORD}@127.0.0.1:{server.port}/0"


@asynccontextmanager
async def place(**given: str) -> AsyncIterator[Place]:
    """Serves with reflection off and these settings."""
    async with AsyncExitStack() as stack:
        redis, url = stack.enter_context(redis_with_password())
        directory = stack.enter_context(scratch_directory("mastery-hardening-"))
        [metrics_port] = free_ports(1)
        settings = {
            "MASTERY_FORECASTER": "persistence",
            "MASTERY_GRPC_REFLECTION": "false",
            "MASTERY_METRICS_PORT": str(metrics_port),
        } | given
        server, engine = await stack.enter_async_context(serving(url, directory, **settings))
        found = Place(server, engine, redis, metrics_port, token(Role.SERVICE, "hardening"))
        await found.client.ingest(quiz_event(student_id=STUDENT))
        yield found
