"""Which entries of a student's log have had their time, and the state that takes their place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mastery_grpc.domain.student import StudentState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from mastery_grpc.application.ports import LoggedEvent
    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.domain.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What becomes of a log."""

    base: StudentState
    """The state before the first entry that is kept."""
    entry_ids: list[str]
    """Of the entries to forget."""
    log_start_time: datetime
    """When the oldest entry that is kept was written."""


def forget(
    timeline: Timeline,
    log: Sequence[LoggedEvent],
    *,
    unwritten: Sequence[LearningEvent] = (),
    now: datetime,
    log_retention: timedelta,
) -> Forgetting:
    """Returns what to forget of a log. `timeline` has its events, and those that are not in the log yet.

    An entry is kept for the retention from when it was written. If its event is dated later than that, so from a
    clock that is ahead, it is kept for as long from its date while older events are: what replaces it stands
    for everything before its date, and everything that comes after with an earlier one is refused.
    """
    oldest_kept = now - log_retention
    expired = {logged.event.event_id: logged.event for logged in log if logged.written_time < oldest_kept}
    # An event that is about to be written cannot be replaced by a state yet: the log has no entry to forget.
    first_unwritten = min((event.position for event in unwritten), default=None)
    overdue = {
        event_id
        for event_id, event in expired.items()
        if event.event_time < oldest_kept and (first_unwritten is None or event.position < first_unwritten)
    }
    base, forgotten = timeline.forgettable(expired.keys(), overdue)
    entry_ids = [logged.entry_id for logged in log if logged.event.event_id in forgotten]
    kept = [logged.written_time for logged in log if logged.event.event_id not in forgotten]
    return Forgetting(base, entry_ids, min(kept, default=now))
