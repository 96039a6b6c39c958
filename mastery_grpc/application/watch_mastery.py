"""The use case of following students live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from mastery_grpc.application.ports import MasteryFeed, StudentRepository
    from mastery_grpc.domain.events import StudentKey


@dataclass(frozen=True, slots=True)
class Sighting:
    """One mastery as a watcher sees it."""

    mastery: Mastery
    initial: bool
    """Whether it is the state found at the beginning, and not a change."""


class WatchMastery:
    """Yields the current state of each student and then every newer one."""

    def __init__(self, feed: MasteryFeed, repository: StudentRepository) -> None:
        self._feed = feed
        self._repository = repository

    async def __call__(self, students: Sequence[StudentKey]) -> AsyncIterator[Sighting]:
        """Yields for ever; to a slow consumer the newest state of a student, never an older one after it."""
        versions: dict[StudentKey, int] = {}
        # Subscribed before reading, so that no change falls between the two.
        async with self._feed.subscribe(students) as subscription:
            masteries: Sequence[Mastery | None] = await self._repository.read_masteries(students)
            initial = True
            while True:
                for mastery in masteries:
                    if mastery and mastery.version > versions.get(mastery.student, 0):
                        versions[mastery.student] = mastery.version
                        yield Sighting(mastery, initial)
                initial = False
                changed = await subscription.next()
                masteries = await self._repository.read_masteries(students) if changed is None else changed
