"""The use case of forgetting what has outlived its time although its key has not.

Most data expires by itself. But an event log, the feedback and the list of days live on with every write, and what
is old in them goes with the student's next event; of one who has none, it goes here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from mastery_grpc.application.forget_events import forget
from mastery_grpc.application.ports import StudentRewrite
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from mastery_grpc.application.ports import StudentHistory, StudentRepository
    from mastery_grpc.application.recommend import AdviceStore
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.scoring import ScoringRules
    from mastery_grpc.domain.student import Mastery

INTERVAL_SECONDS = 3600.0
CLAIM_SECONDS = 20 * 3600
"""So that one process walks over all students once a day; after a failure another tries in an hour's time."""

log = structlog.get_logger(__name__)


class UpkeepClaims(Protocol):
    """By which processes agree who does what is to be done once."""

    async def claim(self, work: str, seconds: int) -> bool:
        """Returns whether the caller is the first in so many seconds. Raises StorageUnavailable."""


class ForgetOverdue:
    """Walks over all students; may run beside every writer, and anywhere at once."""

    def __init__(
        self,
        repository: StudentRepository,
        advice: AdviceStore,
        claims: UpkeepClaims,
        *,
        rules: ScoringRules,
        log_retention: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._repository = repository
        self._advice = advice
        self._claims = claims
        self._rules = rules
        self._log_retention = log_retention
        self._clock = clock

    async def run(self) -> None:
        """Does so once a day, whichever process it is, through outages of the storage."""
        while True:
            try:
                if await self._claims.claim("forget-overdue", CLAIM_SECONDS):
                    log.info("events past retention are forgotten", events=await self())
            except StorageUnavailable as error:
                log.warning("retention waits: the storage is away", error=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def __call__(self) -> int:
        """Returns how many events were forgotten. Raises StorageUnavailable; repeating is safe."""
        forgotten, now = 0, self._clock()
        async for students in self._repository.walk():
            await self._advice.forget_feedback(students, now=now)
            await self._repository.forget_days(students, now=now)
            loaded = await self._repository.load({student: [] for student in students})
            overdue = [
                each.student
                for each in loaded
                if each.log_start_time is not None and now - each.log_start_time > self._log_retention
            ]
            if overdue:
                forgotten += await self._forget_events(overdue, now)
        return forgotten

    async def _forget_events(self, students: Sequence[StudentKey], now: datetime) -> int:
        histories = await self._repository.load_histories(students)
        stored = await self._repository.load_masteries({student: [] for student in students})
        rewrites = [
            self._rewrite(history, each.current, now)
            for history, each in zip(histories, stored, strict=True)
            if each.revision == history.revision and each.current is not None and history.state is not None
        ]
        # Whoever has moved on meanwhile has forgotten by himself, with the event that moved him.
        written = await self._repository.rewrite(rewrites)
        return sum(
            len(rewrite.forgotten) for rewrite, is_written in zip(rewrites, written, strict=True) if is_written
        )

    def _rewrite(self, history: StudentHistory, mastery: Mastery, now: datetime) -> StudentRewrite:
        assert history.state is not None  # noqa: S101 - looked at before
        # Where all of the log has expired, the state stands for everything before.
        base = history.base if history.log else history.state
        timeline = Timeline(base=base, events=[logged.event for logged in history.log], rules=self._rules)
        forgetting = forget(timeline, history.log, now=now, log_retention=self._log_retention)
        return StudentRewrite(
            student=history.student,
            expected=history.revision,
            state=history.state,
            base=forgetting.base,
            log_start_time=forgetting.log_start_time,
            mastery=mastery,
            snapshots={},
            forgotten=forgetting.entry_ids,
        )
