"""The product's own worker, with a fate: once armed by SIGUSR1 it ends at the n-th time it comes by a named step.

The hooks are put around the product's classes here, in this process; the product knows nothing of them.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from types import FrameType
from typing import Any

from confluent_kafka import Producer

from mastery_grpc.app import ingest
from mastery_grpc.application.ports import StudentChange
from mastery_grpc.commands.process import run_async
from mastery_grpc.ingest import session
from mastery_grpc.ingest.session import KafkaSession
from mastery_grpc.settings import read_settings
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.telemetry.logs import configure_logs


class Step(StrEnum):
    """Where a worker can end; in the order in which a batch comes by."""

    AMID_REDIS_COMMIT = "amid_redis_commit"
    """Half of the batch's students are written, the others not."""
    AFTER_REDIS_COMMIT = "after_redis_commit"
    BEFORE_PRODUCE = "before_produce"
    BEFORE_OFFSETS = "before_offsets"
    """The results are produced, the offsets not yet part of the transaction."""
    BEFORE_TRANSACTION_COMMIT = "before_transaction_commit"
    AMID_TRANSACTION_COMMIT = "amid_transaction_commit"
    """The request to commit is on its way; the broker may have heard of it, or not."""
    AFTER_TRANSACTION_COMMIT = "after_transaction_commit"


class Fate:
    """Ends the process, or stops it as a stalled host does, at the n-th time at a step."""

    def __init__(self, step: Step | None, nth: int, number: signal.Signals) -> None:
        self._step = step
        self._left = nth
        self._number = number
        self._is_armed = False
        self._lock = threading.Lock()

    def arm(self, number: int, frame: FrameType | None) -> None:
        self._is_armed = True

    def comes_at(self, step: Step) -> bool:
        """Whether this is the time; it comes once."""
        with self._lock:
            if not self._is_armed or step is not self._step:
                return False
            self._left -= 1
            return self._left == 0

    def strike(self) -> None:
        os.kill(os.getpid(), self._number)

    def at(self, step: Step) -> None:
        if self.comes_at(step):
            self.strike()


def lay_hooks(fate: Fate) -> None:
    """Lets the steps of every batch be seen by the fate."""
    commit, publish = RedisStudentRepository.commit, KafkaSession.publish

    async def watched_commit(self: RedisStudentRepository, changes: Sequence[StudentChange]) -> list[bool]:
        if fate.comes_at(Step.AMID_REDIS_COMMIT):
            await commit(self, changes[: (len(changes) + 1) // 2])
            fate.strike()
        written = await commit(self, changes)
        fate.at(Step.AFTER_REDIS_COMMIT)
        return written

    def watched_publish(self: KafkaSession, *arguments: Any) -> None:
        fate.at(Step.BEFORE_PRODUCE)
        publish(self, *arguments)

    class WatchedProducer(Producer):
        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            fate.at(Step.BEFORE_OFFSETS)
            super().send_offsets_to_transaction(*arguments)

        def commit_transaction(self, *arguments: Any) -> None:
            fate.at(Step.BEFORE_TRANSACTION_COMMIT)
            if fate.comes_at(Step.AMID_TRANSACTION_COMMIT):
                threading.Timer(0.002, fate.strike).start()
            super().commit_transaction(*arguments)
            fate.at(Step.AFTER_TRANSACTION_COMMIT)

    RedisStudentRepository.commit = watched_commit  # type: ignore[method-assign]
    KafkaSession.publish = watched_publish  # type: ignore[method-assign, assignment]
    session.Producer = WatchedProducer  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=Step, choices=list(Step))
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead of SIGKILL")
    options = parser.parse_args()
    fate = Fate(options.step, options.nth, signal.SIGSTOP if options.stop else signal.SIGKILL)
    signal.signal(signal.SIGUSR1, fate.arm)
    lay_hooks(fate)
    configure_logs(sys.stderr)
    run_async(ingest(read_settings()))


if __name__ == "__main__":
    main()
