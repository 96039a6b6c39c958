"""The events of a run: slices in order of time, repeated and late ones among them; the same for a seed."""

import json
import random
from collections.abc import Iterator
from datetime import date
from typing import Any

from mastery_grpc.simulation.learners import simulate_class
from tests.real_learners import events_file, read_events

EventJson = dict[str, Any]

REPEATED = 0.08
"""Of a slice: sent once more, in the same slice or a later one."""
LATE = 0.08
"""Of a slice: held back for up to `LATEST` slices."""
LATEST = 5
LEARNERS_IN_THE_SIMULATION = 200


def source_of_events() -> str:
    return "real learners" if events_file() else "simulator"


def history(rng: random.Random, count: int) -> list[EventJson]:
    """Returns the events of learners drawn by lot, all of each learner's, at least `count`, oldest first."""
    by_learner: dict[str, list[EventJson]] = {}
    for event in _all_events():
        by_learner.setdefault(event["student_id"], []).append(event)
    names = sorted(by_learner)
    rng.shuffle(names)
    drawn: list[EventJson] = []
    for name in names:
        if len(drawn) >= count:
            break
        drawn += by_learner[name]
    if len(drawn) < count:
        raise ValueError(f"there are no more than {len(drawn)} events, not {count}")
    return sorted(drawn, key=lambda event: (event["timestamp"], event["event_id"]))


def slices(rng: random.Random, events: list[EventJson], size: int) -> Iterator[list[EventJson]]:
    """Yields what is sent in each round: `size` new events, some held back, and some that were sent before."""
    held_back: list[tuple[int, EventJson]] = []
    sent: list[EventJson] = []
    for number, start in enumerate(range(0, len(events), size)):
        portion = []
        for event in events[start : start + size]:
            if rng.random() < LATE:
                held_back.append((number + rng.randint(1, LATEST), event))
            else:
                portion.append(event)
        late = [event for due, event in held_back if due <= number]
        held_back = [(due, event) for due, event in held_back if due > number]
        for event in late:
            portion.insert(rng.randrange(len(portion) + 1), event)
        portion += rng.sample(portion, round(REPEATED / 2 * len(portion)))
        for event in rng.sample(sent, min(len(sent), round(REPEATED / 2 * size))):
            portion.insert(rng.randrange(len(portion) + 1), event)
        sent += portion
        yield portion


def encoded(event: EventJson) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _all_events() -> Iterator[EventJson]:
    if (path := events_file()) is not None:
        return read_events(path)
    return simulate_class(seed=1, learners=LEARNERS_IN_THE_SIMULATION, first_day=date(2025, 9, 1), days=180)
