"""The use case that makes nothing outlive its time where no expiry of a key does it: inside logs and hashes.

A log forgets its old entries whenever its student has a new event. This is for the students who have none.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from mastery_grpc.application.forget_events import forget
from mastery_grpc.application.ports import StudentRewrite
from mastery_grpc.domain.errors import InvalidInput, StorageUnavailable
from mastery_grpc.domain.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date, datetime

    from mastery_grpc.application.ports import LoadedStudent, StoredMasteries, StudentHistory, StudentRepository
    from mastery_grpc.application.retention import Retention
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.scoring import ScoringRules

PORTION = 100
"""Students whose logs are read at a time: they are folded between two turns of the event loop."""
INTERVAL_SECONDS = 600.0
RETRY_SECONDS = 30.0

log = structlog.get_logger(__name__)


class RetentionStore(Protocol):
    """What the enforcement needs besides the students. Raises StorageUnavailable."""

    async def claim(self, day: date) -> bool:
        """Returns False if somebody else works on the day, or has finished it; a claim ends after a while."""

    async def keep_claim(self, day: date) -> None:
        """Lets one's own claim last longer."""

    async def finish(self, day: date) -> None:
        """Makes the claim last until the day is long over."""

    async def forget_feedback(self, students: Sequence[StudentKey], now: datetime) -> int:
        """Forgets what is past retention among the students' feedback and requests; returns how much it was."""


class Forgotten(NamedTuple):
    """What one walk did."""

    students: int
    """How many were looked at."""
    events: int
    """How many log entries had had their time."""
    feedback: int


class EnforceRetention:
    """Walks all students once a day, one process for all of them, and makes them forget."""

    def __init__(
        self,
        repository: StudentRepository,
        store: RetentionStore,
        *,
        rules: ScoringRules,
        retention: Retention,
        clock: Callable[[], datetime],
        pause: float = 0.1,
    ) -> None:
        """`pause` (seconds) between two portions of the walk, because nobody waits for it to end."""
        self._repository = repository
        self._store = store
        self._rules = rules
        self._retention = retention
        self._clock = clock
        self._pause = pause

    async def run(self) -> None:
        """Enforces for ever, through outages of the storage."""
        while True:
            pause = RETRY_SECONDS
            try:
                await self.once_a_day()
                pause = INTERVAL_SECONDS
            except StorageUnavailable as error:
                log.warning("retention is not enforced", error=str(error))
            except Exception:
                # Whatever it is, answers do not depend on it: the server must not go down with it.
                log.exception("retention is not enforced")
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def once_a_day(self) -> None:
        """Walks unless somebody has done so today, or is about it. Raises StorageUnavailable."""
        today = self._clock().date()
        if not await self._store.claim(today):
            return
        forgotten = await self(today)
        await self._store.finish(today)
        log.info("retention enforced", day=today.isoformat(), **forgotten._asdict())

    async def __call__(self, claimed: date | None = None) -> Forgotten:
        """Makes every student forget what has had its time. Raises StorageUnavailable; repeating completes it."""
        students = events = feedback = 0
        async for portion in self._repository.walk():
            for start in range(0, len(portion), PORTION):
                few = portion[start : start + PORTION]
                students += len(few)
                events += await self.forget_events(few)
                feedback += await self._store.forget_feedback(few, self._clock())
                if claimed is not None:
                    await self._store.keep_claim(claimed)
                    await asyncio.sleep(self._pause)
        return Forgotten(students, events, feedback)

    async def forget_events(self, students: Sequence[StudentKey]) -> int:
        """Makes students forget the log entries that have had their time; returns how many these were.

        One who changes in this moment is left for the next time: a new event makes him forget as well.
        """
        oldest_kept = self._clock() - self._retention.event_log
        due = [
            loaded.student
            for loaded in await self._load(students)
            if loaded.log_start_time is not None and loaded.log_start_time < oldest_kept
        ]
        if not due:
            return 0
        histories = await self._repository.load_histories(due)
        stored = await self._repository.load_masteries(dict.fromkeys(due, ()))
        pairs = zip(histories, stored, strict=True)
        rewrites = [rewrite for pair in pairs if (rewrite := self._rewrite(*pair)) is not None]
        written = await self._repository.rewrite(rewrites) if rewrites else []
        return sum(
            len(rewrite.forgotten) for rewrite, is_written in zip(rewrites, written, strict=True) if is_written
        )

    async def _load(self, students: Sequence[StudentKey]) -> list[LoadedStudent]:
        try:
            return await self._repository.load(dict.fromkeys(students, ()))
        except (ValueError, InvalidInput):  # a state among them that cannot be read: `rebuild` is for that
            if len(students) == 1:
                log.warning("a student's state cannot be read; he forgets nothing")
                return []
            return [loaded for student in students for loaded in await self._load([student])]

    def _rewrite(self, history: StudentHistory, stored: StoredMasteries) -> StudentRewrite | None:
        """Returns what to store, None if there is nothing to forget or the student has just changed."""
        if history.state is None or stored.current is None or stored.revision != history.revision:
            return None
        # Where all of the log has expired, the state stands for everything before.
        base = history.base if history.log else history.state
        timeline = Timeline(base=base, events=[logged.event for logged in history.log], rules=self._rules)
        forgetting = forget(timeline, history.log, now=self._clock(), log_retention=self._retention.event_log)
        if not forgetting.entry_ids and forgetting.log_start_time == history.log_start_time:
            return None
        return StudentRewrite(
            student=history.student,
            expected=history.revision,
            state=history.state,
            base=forgetting.base,
            log_start_time=forgetting.log_start_time,
            mastery=stored.current,
            snapshots={},
            forgotten=forgetting.entry_ids,
        )
