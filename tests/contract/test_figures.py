"""What every reader of figures does: one suite for the fake, for Redis, and for a Redis Cluster."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np
import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.cohorts.compare import FigureReader
from mastery_grpc.application.ports import StudentRepository
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.analytics.samples import Figures, columns_of
from mastery_grpc.storage import keys
from mastery_grpc.storage.memory.figures import MemoryFigures
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.redis_figures import PORTION, RedisFigures
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, at, calculation, student
from tests.contract.clients import Clients


class Place(NamedTuple):
    """One empty storage: the reader under test, and the students."""

    reader: FigureReader
    repository: StudentRepository


@pytest.fixture
async def place(clients: Clients) -> AsyncIterator[Place]:
    if clients is None:
        memory = MemoryStudentRepository(clock=at)
        yield Place(MemoryFigures(memory), memory)
        return
    client, _ = clients
    yield Place(RedisFigures(client), RedisStudentRepository(client, retention=keys.Retention()))


async def settle(place: Place, count: int, *, school_id: str = "") -> dict[str, Figures]:
    """Gives a school so many students; returns their figures."""
    events = [
        calculation(
            number=number,
            of=student(f"s{number}", school_id=school_id),
            completion=number / count,
            quiz=1 / 3,
            quality=1.0,
            consistency=0.125,
        )
        for number in range(count)
    ]
    apply = ApplyEvents(place.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=at)
    await apply([Delivery(event) for event in events])
    stored = await place.repository.read_masteries([event.student for event in events])
    return {mastery.student_id: Figures.of(mastery) for mastery in stored if mastery is not None}


async def test_figures_are_those_of_the_masteries(place: Place) -> None:
    settled = await settle(place, 3)
    found = await place.reader.read_figures("", ["s2", "s0", "s1"])
    assert list(found.student_ids) == ["s2", "s0", "s1"]
    assert np.array_equal(found.columns, columns_of([settled["s2"], settled["s0"], settled["s1"]]))


async def test_who_has_no_score_in_the_school_is_left_out(place: Place) -> None:
    await settle(place, 2)
    await settle(place, 5, school_id="north")
    found = await place.reader.read_figures("", {"s0", "s3", "stranger"})
    assert (list(found.student_ids), found.columns.shape) == (["s0"], (5, 1))
    nobody = await place.reader.read_figures("south", ["s0"])
    assert (list(nobody.student_ids), nobody.columns.shape) == ([], (5, 0))
    assert (await place.reader.read_figures("", [])).columns.shape == (5, 0)


async def test_more_than_are_read_at_a_time_all_come(place: Place) -> None:
    settled = await settle(place, PORTION + 3)
    found = await place.reader.read_figures("", settled)
    assert list(found.student_ids) == list(settled)
    assert np.array_equal(found.columns, columns_of(settled.values()))
