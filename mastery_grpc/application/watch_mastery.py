"""The use case of following some students' masteries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement, announcement_of
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from mastery_grpc.application.compliance.student_records import ErasureMarks
    from mastery_grpc.application.ports import MasteryFeed, StudentRepository
    from mastery_grpc.domain.events import StudentKey


@dataclass(frozen=True, slots=True)
class Sighting:
    """One state of one student, or that he was erased."""

    news: Mastery | ErasureAnnouncement
    initial: bool
    """Whether it is the state found at the beginning, and not a change."""


class WatchMastery:
    """Streams states: first as they are, then each change that is newer than the last one seen."""

    def __init__(self, feed: MasteryFeed, repository: StudentRepository, marks: ErasureMarks) -> None:
        self._feed = feed
        # Not through the cache: it may be behind what was announced before the subscription.
        self._repository = repository
        self._marks = marks

    async def __call__(self, students: Sequence[StudentKey]) -> AsyncIterator[Sighting]:
        """Yields for ever; to a slow consumer the newest state of a student, never an older one after it."""
        versions: dict[StudentKey, int] = {}
        receipts: dict[StudentKey, str] = {}
        # Subscribed before reading, so that no change falls between the two.
        async with self._feed.subscribe(students) as subscription:
            initial = True
            changed: Sequence[Mastery | ErasureAnnouncement] | None = None
            while True:
                for news in await self._present(students) if changed is None else changed:
                    student = news.student
                    if isinstance(news, Mastery):
                        if news.version > versions.get(student, 0):
                            versions[student] = news.version
                            yield Sighting(news, initial)
                    elif receipts.get(student) != news.receipt_id:
                        receipts[student] = news.receipt_id
                        if versions.pop(student, None) is not None:  # else nobody was shown
                            yield Sighting(news, initial=False)
                initial = False
                changed = await subscription.next()

    async def _present(self, students: Sequence[StudentKey]) -> list[Mastery | ErasureAnnouncement]:
        """Returns who was erased last, which may not have been heard, and then what there is."""
        # In this order: of one who is erased in between, the announcement is still to be heard.
        marks = await self._marks.marks_of(students)
        masteries = await self._repository.read_masteries(students)
        erased = [announcement_of(student, mark) for student, mark in zip(students, marks, strict=True) if mark]
        return [*erased, *(mastery for mastery in masteries if mastery)]
