"""Entries of a log leave it when their time is over, whatever still came late before them."""

from datetime import timedelta

from mastery_grpc.application.forget_events import Forgetting, forget
from mastery_grpc.application.ports import LoggedEvent
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.student import EMPTY_STATE, fold_all
from mastery_grpc.domain.timeline import Timeline
from tests.builders import DEFAULT_RULES, at, quiz

KEPT = timedelta(days=90)
OLD = quiz(1, 4, number=1, time=at(0))
LATE = quiz(2, 4, number=2, time=at(-1))
AHEAD = quiz(3, 4, number=3, time=at(60))


def _forgetting(
    now: int, *log: tuple[LearningEvent, int], unwritten: tuple[LearningEvent, ...] = ()
) -> Forgetting:
    events = [event for event, _ in log]
    timeline = Timeline(base=EMPTY_STATE, events=[*events, *unwritten], rules=DEFAULT_RULES)
    logged = [LoggedEvent(event.event_id, at(written), event) for event, written in log]
    return forget(timeline, logged, unwritten=unwritten, now=at(now), log_retention=KEPT)


def test_an_entry_is_kept_for_the_retention() -> None:
    assert _forgetting(90, (OLD, 0)).entry_ids == []
    assert _forgetting(91, (OLD, 0)) == Forgetting(fold_all([OLD], DEFAULT_RULES), [OLD.event_id], at(91))


def test_an_entry_does_not_outlive_its_time_because_an_older_event_came_late() -> None:
    forgetting = _forgetting(91, (OLD, 0), (LATE, 50))

    assert sorted(forgetting.entry_ids) == sorted([OLD.event_id, LATE.event_id])
    assert forgetting.base == fold_all([LATE, OLD], DEFAULT_RULES)


def test_an_event_that_is_being_written_is_not_replaced_by_a_state() -> None:
    assert _forgetting(91, (OLD, 0), unwritten=(LATE,)).entry_ids == []


def test_an_event_dated_ahead_is_kept_until_its_date_is_as_old_while_older_ones_are_kept() -> None:
    younger = quiz(4, 4, number=4, time=at(50))

    assert _forgetting(100, (AHEAD, 0), (younger, 50)).entry_ids == []
    assert len(_forgetting(151, (AHEAD, 0), (younger, 50)).entry_ids) == 2
