"""One student's events in order with the state after each: what a late event is folded into."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from mastery_grpc.domain.errors import EventTooOld
from mastery_grpc.domain.student import StudentState, fold, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set
    from datetime import date

    from mastery_grpc.domain.events import LearningEvent, Position
    from mastery_grpc.domain.scoring import ScoringRules


class Timeline:
    """The retained history of one student; grows by events in any order and refolds what follows them."""

    def __init__(self, *, base: StudentState, events: Iterable[LearningEvent], rules: ScoringRules) -> None:
        """`base` is the state before the first retained event; `events` come in any order."""
        self._base = base
        self._rules = rules
        self._events = in_order(events)
        self._positions: list[Position] = [event.position for event in self._events]
        self._ids = {event.event_id for event in self._events}
        self._states: list[StudentState] = []
        self._refold_from(0)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    @property
    def state(self) -> StudentState:
        """The state after the newest event."""
        return self._states[-1] if self._states else self._base

    def add(self, event: LearningEvent) -> None:
        """Puts a new event in its place and refolds what follows it.

        Raises EventTooOld if its place is in the part of the history that is no longer kept.
        """
        if event.position <= self._base.position:
            raise EventTooOld(event.event_id)
        index = bisect_left(self._positions, event.position)
        self._events.insert(index, event)
        self._positions.insert(index, event.position)
        self._ids.add(event.event_id)
        self._refold_from(index)

    def around(self, event: LearningEvent) -> tuple[StudentState, Sequence[LearningEvent]]:
        """Returns the state before an event of the timeline, and the events after it."""
        index = bisect_left(self._positions, event.position)
        return self._states[index - 1] if index else self._base, self._events[index + 1 :]

    def last_states_since(self, day: date) -> dict[date, StudentState]:
        """Returns the last state of every day with events, from `day` on."""
        days: dict[date, StudentState] = {}
        for event, state in zip(reversed(self._events), reversed(self._states), strict=True):
            event_day = event.event_time.date()
            if event_day < day:
                break
            days.setdefault(event_day, state)
        return days

    def forgettable(self, expired: Set[str], overdue: Set[str] = frozenset()) -> tuple[StudentState, set[str]]:
        """Returns which events may be forgotten, and the state that replaces them.

        Only a beginning of the history can be replaced by a state, so an `expired` event stays as long as an
        older one is still kept; an `overdue` one takes what is older with it.
        """
        end = 0
        for index, event in enumerate(self._events):
            if event.event_id in overdue or (index == end and event.event_id in expired):
                end = index + 1
        base = self._states[end - 1] if end else self._base
        return base, {event.event_id for event in self._events[:end]}

    def _refold_from(self, index: int) -> None:
        state = self._states[index - 1] if index else self._base
        del self._states[index:]
        for event in self._events[index:]:
            state = fold(state, event, self._rules)
            self._states.append(state)
