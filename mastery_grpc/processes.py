"""Several server processes on one port: a parent that starts them, replaces the fallen, and passes signals on."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnProcess
    from types import FrameType

RESTART_DELAY = 1.0

log = structlog.get_logger(__name__)


def run_processes(target: Callable[[int], None], count: int) -> None:
    """Runs `target(0)` to `target(count - 1)` in processes until SIGTERM or SIGINT; returns when all have ended.

    They are spawned, not forked: neither gRPC nor librdkafka survives a fork.
    """
    context = multiprocessing.get_context("spawn")
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def start(index: int) -> SpawnProcess:
        process = context.Process(target=target, args=(index,), name=f"server-{index}")
        process.start()
        return process

    children = [start(index) for index in range(count)]
    while not stopping.wait(RESTART_DELAY):
        for index, child in enumerate(children):
            if not child.is_alive():
                log.error("server process ended", name=child.name, exit_code=child.exitcode)
                children[index] = start(index)
    for child in children:
        child.terminate()
    for child in children:
        child.join()
