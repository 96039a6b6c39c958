"""The use case of a student's history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.application.page_tokens import PageTokens, page_size_of
from mastery_grpc.domain.analytics.history import (
    Granularity,
    HistoryBucket,
    HistorySummary,
    buckets_of,
    summary_of,
)
from mastery_grpc.domain.analytics.samples import Figures
from mastery_grpc.domain.errors import InvalidInput, InvalidPageToken, StudentNotFound
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from mastery_grpc.application.ports import StudentRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRequest:
    """Which history is wanted."""

    student: StudentKey
    first: date | None = None
    """None for the oldest day that is held."""
    last: date | None = None
    """Inclusive; None for today."""
    granularity: Granularity = Granularity.DAILY
    page_size: int = 0
    """0 for 100; at most 1000."""
    page_token: str = ""


class HistoryPage(NamedTuple):
    """A page of buckets, and what the whole range comes to."""

    buckets: Sequence[HistoryBucket]
    summary: HistorySummary
    next_page_token: str
    """Empty for the last page."""


class ReadHistory:
    """Reads histories from the daily snapshots, for as long as these are kept."""

    def __init__(self, repository: StudentRepository, *, clock: Callable[[], datetime]) -> None:
        self._repository = repository
        self._clock = clock

    async def __call__(self, wanted: HistoryRequest) -> HistoryPage:
        """Returns a page. Raises StudentNotFound, InvalidInput, InvalidPageToken, StorageUnavailable."""
        tokens = PageTokens(
            "history",
            wanted.student.school_id,
            wanted.student.student_id,
            str(wanted.first),
            str(wanted.last),
            wanted.granularity,
        )
        start = _day_in(tokens.place(wanted.page_token)) if wanted.page_token else date.min
        last = self._clock().date() if wanted.last is None else wanted.last
        if wanted.first is not None and wanted.first > last:
            raise InvalidInput.of("start_date", "must not be after end_date, which is today unless it is given")
        snapshots = await self._repository.read_snapshots(wanted.student, wanted.first, last)
        if not snapshots:
            [mastery] = await self._repository.read_masteries([wanted.student])
            if mastery is None:
                raise StudentNotFound(wanted.student.student_id)
        days = {day: Figures.of(mastery) for day, mastery in snapshots.items()}
        left = [bucket for bucket in buckets_of(days, wanted.granularity) if bucket.start_day >= start]
        size = page_size_of(wanted.page_size)
        return HistoryPage(
            left[:size],
            summary_of(days),
            tokens.token(left[size].start_day.isoformat()) if len(left) > size else "",
        )


def _day_in(place: str) -> date:
    try:
        return date.fromisoformat(place)
    except ValueError:
        raise InvalidPageToken from None
