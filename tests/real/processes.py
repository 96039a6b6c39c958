"""Server processes that never outlive the test run, their scratch directories and their ports."""

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.real import reaper

# Below every system's ephemeral range: a client that keeps dialling a dead server's ephemeral port can be
# given that very port as its own, connect to itself, and keep the server from coming back.
PORTS = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nothing listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class _Reaper:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self._owner = os.getpid()
        atexit.register(self._close)

    def note(self, verb: str, kind: str, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {kind} {what}\n")

    def _close(self) -> None:
        if os.getpid() == self._owner:
            self._process.communicate()


@cache
def _reaper() -> _Reaper:
    return _Reaper()


@contextmanager
def scratch_directory(prefix: str, within: Path | None = None) -> Iterator[Path]:
    """A temporary directory that goes away even when the test run is killed."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=within, ignore_cleanup_errors=True) as name:
        _reaper().note("remember", "directory", name)
        yield Path(name)
    _reaper().note("forget", "directory", name)


@contextmanager
def ending_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that leads its own group when the block ends, or when the test run does."""
    _reaper().note("remember", "group", str(process.pid))
    try:
        yield
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        _reaper().note("forget", "group", str(process.pid))
        process.wait()


class ServerProcess:
    """One server, in a process group of its own: Ctrl-C ends the tests first, and the server after them."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "output.log"

    @property
    def running(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            self._forget()
        return self._process is not None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"already running: {self._command[0]}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _reaper().note("remember", "group", str(self._process.pid))

    def signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            raise RuntimeError(f"not running: {self._command[0]}")
        os.killpg(self._process.pid, number)

    def stop(self, patience: float = 10.0) -> None:
        """End it the polite way, and the other way when it takes too long."""
        if self._process is None or not self.running:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a paused process would never see the first
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self._forget()

    def kill(self) -> None:
        if self._process is None or not self.running:
            return
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._forget()

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def _forget(self) -> None:
        assert self._process is not None
        _reaper().note("forget", "group", str(self._process.pid))
        self._process = None
