"""The product's own server, with a fate: it ends at the n-th time it comes by a named step of a batch.

The hooks are put around the product's classes here, in this process; the product knows nothing of them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any

from mastery_grpc.app import serve
from mastery_grpc.application.batches.operations import BatchOperations
from mastery_grpc.application.ports import StudentChange
from mastery_grpc.commands.process import run_async
from mastery_grpc.settings import read_settings
from mastery_grpc.storage.redis_batch_work import RedisBatchWork
from mastery_grpc.storage.redis_batches import RedisBatchStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.telemetry.logs import configure_logs


class BatchStep(StrEnum):
    """Where a server can end; in the order in which a batch comes by."""

    AFTER_STORED = "after_stored"
    """The batch is there, and neither noted with its students nor queued."""
    AFTER_NOTED = "after_noted"
    """Nor queued."""
    AFTER_SUBMITTED = "after_submitted"
    """All is done but the answer."""
    AFTER_TAKEN = "after_taken"
    AFTER_BEGUN = "after_begun"
    AMID_COMMIT = "amid_commit"
    """Half of a portion of the students are written, the others not."""
    AMID_CHUNK = "amid_chunk"
    """One portion of the students is written, the others not."""
    BEFORE_RESULTS = "before_results"
    AFTER_RESULTS = "after_results"
    """The results are stored, and the chunk is still in its queue."""
    AFTER_FINISHED = "after_finished"


class BatchFate:
    """Ends the process, or stops it as a stalled host does, at the n-th time at a step."""

    def __init__(self, step: BatchStep, nth: int, number: signal.Signals) -> None:
        self._step = step
        self._left = nth
        self._number = number

    def comes_at(self, step: BatchStep) -> bool:
        """Whether this is the time; it comes once."""
        if step is not self._step:
            return False
        self._left -= 1
        return self._left == 0

    def strike(self) -> None:
        os.kill(os.getpid(), self._number)

    def at(self, step: BatchStep) -> None:
        if self.comes_at(step):
            self.strike()


def lay_hooks(fate: BatchFate) -> None:
    """Lets the steps of every batch be seen by the fate."""
    around(RedisBatchStore, "queue_all", lambda: fate.at(BatchStep.AFTER_STORED), None)
    around(RedisBatchStore, "_note", None, lambda: fate.at(BatchStep.AFTER_NOTED))
    around(RedisBatchStore, "submit", None, lambda: fate.at(BatchStep.AFTER_SUBMITTED))
    around(RedisBatchWork, "begin", lambda: fate.at(BatchStep.AFTER_TAKEN), lambda: fate.at(BatchStep.AFTER_BEGUN))
    around(BatchOperations, "_calculated", None, lambda: fate.at(BatchStep.AMID_CHUNK))
    around(
        RedisBatchWork,
        "finish",
        lambda: fate.at(BatchStep.BEFORE_RESULTS),
        lambda: fate.at(BatchStep.AFTER_FINISHED),
    )
    around(RedisBatchWork, "_settle", lambda: fate.at(BatchStep.AFTER_RESULTS), None)
    commit = RedisStudentRepository.commit

    async def watched_commit(self: RedisStudentRepository, changes: Sequence[StudentChange]) -> list[bool]:
        if fate.comes_at(BatchStep.AMID_COMMIT):
            await commit(self, changes[: (len(changes) + 1) // 2])
            fate.strike()
        return await commit(self, changes)

    RedisStudentRepository.commit = watched_commit  # type: ignore[method-assign]


def around(owner: type, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
    """Puts calls around a method."""
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        if before is not None:
            before()
        answer = await method(self, *arguments, **options)
        if after is not None:
            after()
        return answer

    setattr(owner, name, watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", type=BatchStep, choices=list(BatchStep))
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead of SIGKILL")
    options = parser.parse_args()
    lay_hooks(BatchFate(options.step, options.nth, signal.SIGSTOP if options.stop else signal.SIGKILL))
    configure_logs(sys.stderr)
    run_async(serve(read_settings()))


if __name__ == "__main__":
    main()
