"""`mastery-grpc serve` as a process: its ports, its children, its signals, and how a wrong setting ends it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.integration.serving import SECRET, Engine, connected, eventually, failure_from
from tests.real.processes import ending_with_us, free_ports

COMMAND = [sys.executable, "-m", "mastery_grpc", "serve"]
DRAIN = 5.0
REDIS_PASSWORD = "a-password-nobody-may-read"


def environment(redis_url: str, port: int, **given: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
    return own | {
        "MASTERY_REDIS_URL": redis_url,
        "MASTERY_GRPC_HOST": "127.0.0.1",
        "MASTERY_GRPC_PORT": str(port),
        "MASTERY_GRPC_DRAIN_TIMEOUT": str(DRAIN),
        "MASTERY_METRICS_PORT": "0",
        "MASTERY_JWT_SECRET": SECRET,
        **given,
    }


class Server:
    """A server process and what it says."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, port: int) -> None:
        self.process = process
        self.port = port
        self._log = log

    def output(self) -> str:
        return self._log.read_text()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output().splitlines()]

    def children(self) -> list[int]:
        """Returns the pids of the processes that serve."""
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in told}
        return [pid for pid, command in commands.items() if b"spawn_main" in command]

    async def ended(self, *, within: float) -> int:
        return await asyncio.to_thread(self.process.wait, within)


@contextmanager
def started(redis_url: str, directory: Path, **given: str) -> Iterator[Server]:
    [port] = free_ports(1)
    log = directory / f"{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            COMMAND,
            env=environment(redis_url, port, **given),
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    with ending_with_us(process):
        yield Server(process, log, port)


@asynccontextmanager
async def serving(redis_url: str, directory: Path, **given: str) -> AsyncIterator[tuple[Server, Engine]]:
    with started(redis_url, directory, **given) as server:
        async with connected(server.port) as engine:

            async def is_ready() -> bool:
                assert server.process.poll() is None, server.output()
                try:
                    return await engine.is_serving()
                except grpc.aio.AioRpcError:
                    return False

            await eventually(is_ready, within=20)
            yield server, engine


# --- several processes ------------------------------------------------------------------------------------


def connected_pids(server: Server) -> set[int]:
    """Returns which processes hold connections to the port just now."""
    inodes: dict[str, int] = {}
    for pid in server.children():
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes[handle.readlink().name] = pid
            except OSError:
                continue
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines():
        fields = line.split()
        if ":" not in fields[1]:
            continue  # the heading
        local, state, inode = fields[1], fields[3], fields[9]
        if int(local.split(":")[1], 16) == server.port and state == "01":
            found.add(inodes.get(f"socket:[{inode}]", 0))
    return found - {0}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into /proc")
async def test_two_workers_share_a_port_log_json_and_are_replaced(redis_url: str, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path, MASTERY_GRPC_WORKERS="2") as (server, engine):
        await engine.client().calculate()

        async def both_serve() -> bool:
            return len([entry for entry in server.entries() if entry["event"] == "serving"]) == 2

        await eventually(both_serve)
        await _both_answer(server)
        killed, survivor = server.children()
        os.kill(killed, signal.SIGKILL)

        async def replaced() -> bool:
            now = server.children()
            return len(now) == 2 and killed not in now and survivor in now

        await eventually(replaced)
        assert (await engine.client().calculate()).mastery.version == 2
        await _both_answer(server)
        server.process.terminate()
        assert await server.ended(within=DRAIN + 5) == 0
        assert {"serving", "server process ended", "stopping"} <= {e["event"] for e in server.entries()}
        assert all({"event", "level", "timestamp"} <= entry.keys() for entry in server.entries())
        assert SECRET not in server.output()


async def _both_answer(server: Server) -> None:
    async def seen() -> bool:
        async with connected(server.port) as one, connected(server.port) as other:
            for engine in (one, other):
                assert await engine.is_serving("liveness")
                answered.update(connected_pids(server))
        return answered >= set(server.children())

    answered: set[int] = set()
    await eventually(seen, within=15)


# --- stopping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_fails_no_accepted_call(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    async with serving(redis_url, tmp_path) as (server, engine):
        refused: list[grpc.aio.AioRpcError] = []
        versions: list[int] = []

        async def load(student_id: str) -> None:
            client = engine.client()
            while not refused:
                try:
                    versions.append((await client.calculate(student_id)).mastery.version)
                except grpc.aio.AioRpcError as error:
                    refused.append(error)

        watch: Any = engine.client().watch("s0")
        students = [f"s{n}" for n in range(20)]
        loads = [asyncio.create_task(load(student_id)) for student_id in students]
        assert (await watch.read()).mastery.student_id == "s0"

        async def is_loaded() -> bool:
            return len(versions) > 100

        await eventually(is_loaded)
        signalled = time.monotonic()
        server.process.send_signal(number)
        await asyncio.gather(*loads)
        assert await server.ended(within=DRAIN + 2) == 0
        assert time.monotonic() - signalled < DRAIN
        # Whoever comes too late is turned away before his call is taken up; nobody is cut off in the middle.
        refusals = {error.code() for error in refused}
        assert refusals <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert await _last_word(watch) == "SHUTTING_DOWN"
    async with serving(redis_url, tmp_path) as (_, engine):
        stored = sum(result.mastery.version for result in await engine.client().batch(*students))
    assert stored == len(versions)


async def _last_word(watch: Any) -> str:
    try:
        while await watch.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return failure_from(error).reason
    return ""


async def test_health_says_not_serving_before_the_server_goes(redis_url: str, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path) as (server, engine):
        call: Any = engine.health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=20)
        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.process.poll() is None
        call.cancel()
        assert await server.ended(within=DRAIN + 2) == 0


# --- wrong settings ---------------------------------------------------------------------------------------

SHORT = "much-too-short"
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "short secret": ({"MASTERY_JWT_SECRET": SHORT}, r"MASTERY_JWT_SECRET: must be at least 32 bytes"),
    "no secret": ({"MASTERY_JWT_SECRET": ""}, r"MASTERY_JWT_SECRET: "),
    "unequal weights": ({"MASTERY_WEIGHT_QUIZ": "0.9"}, r"MASTERY_WEIGHT_.*sum to 1"),
    "weight over one": ({"MASTERY_WEIGHT_QUIZ": "1.5"}, r"MASTERY_WEIGHT_QUIZ: .*less than or equal to 1"),
    "weight is no number": ({"MASTERY_WEIGHT_QUIZ": "much"}, r"MASTERY_WEIGHT_QUIZ: .*number"),
    "port is no number": ({"MASTERY_GRPC_PORT": "http"}, r"MASTERY_GRPC_PORT: .*integer"),
    "port too high": ({"MASTERY_GRPC_PORT": "70000"}, r"MASTERY_GRPC_PORT: .*65535"),
    "no workers": ({"MASTERY_GRPC_WORKERS": "0"}, r"MASTERY_GRPC_WORKERS: .*1"),
    "unknown algorithm": ({"MASTERY_JWT_ALGORITHM": "none"}, r"MASTERY_JWT_ALGORITHM: .*HS256"),
    "redis of another kind": ({"MASTERY_REDIS_URL": f"http://:{REDIS_PASSWORD}@x"}, r"MASTERY_REDIS_URL: "),
    "no model file": ({"MASTERY_FORECAST_MODEL": "/nowhere"}, r"MASTERY_FORECAST_MODEL: /nowhere: No such file"),
    "no model file for the children": (
        {"MASTERY_FORECAST_MODEL": "/nowhere", "MASTERY_GRPC_WORKERS": "2"},
        r"MASTERY_FORECAST_MODEL: /nowhere: No such file",
    ),
    "kafka properties not json": ({"MASTERY_KAFKA_PROPERTIES": "{"}, r"MASTERY_KAFKA_PROPERTIES: "),
}


def stopped(**given: str) -> "subprocess.CompletedProcess[str]":
    """Starts a server that must end by itself."""
    process = subprocess.Popen(
        COMMAND,
        env=environment("redis://127.0.0.1:1/0", 0) | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process, ending_with_us(process):
        stdout, stderr = process.communicate(timeout=6)
    return subprocess.CompletedProcess(COMMAND, process.returncode, stdout, stderr)


def assert_one_clear_line(ended: "subprocess.CompletedProcess[str]", expected: str) -> None:
    assert ended.returncode > 0
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]  # but for the log
    assert len(lines) == 1, ended.stderr
    assert re.search(expected, lines[0]), lines[0]
    for secret in (SECRET, SHORT, REDIS_PASSWORD):
        assert secret not in ended.stderr


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_ends_the_start_with_one_clear_line(kind: str) -> None:
    given, expected = WRONG[kind]
    assert_one_clear_line(stopped(**given), expected)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_taken_port_ends_the_start_with_one_clear_line(workers: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = stopped(MASTERY_GRPC_PORT=port, MASTERY_GRPC_WORKERS=workers)
    assert_one_clear_line(ended, rf"MASTERY_GRPC_PORT: .*{port}: .*in use")


async def test_no_secret_is_in_the_log_of_a_server_without_redis(tmp_path: Path) -> None:
    url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{free_ports(1)[0]}/0"
    with started(url, tmp_path) as server:

        async def has_failed() -> bool:
            return "announcements interrupted" in server.output()

        await eventually(has_failed, within=15)
        server.process.terminate()
        assert await server.ended(within=DRAIN + 2) == 0
        assert SECRET not in server.output()
        assert REDIS_PASSWORD not in server.output()
