"""Calls of the AnalyticsService, and students for it to look at."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mastery.v1 import analytics_service_pb2 as pb
from mastery.v1.analytics_service_pb2_grpc import AnalyticsServiceStub
from tests.integration.serving import DEADLINE, Client, Engine, quiz_event

TODAY = datetime.now(UTC).date()
COHORT = "class-7b"


class Analyst:
    """Calls the service with one token."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stub: Any = AnalyticsServiceStub(client.channel)

    async def call(self, name: str, **fields: Any) -> Any:
        request = getattr(pb, f"{name}Request")(**fields)
        return await getattr(self.stub, name)(request, metadata=self.client.metadata, timeout=DEADLINE)

    async def history(self, student_id: str = "s1", **fields: Any) -> Any:
        return await self.call("GetHistory", student_id=student_id, **fields)

    async def create(self, *members: str, cohort_id: str = COHORT, **fields: Any) -> Any:
        defaults = {"display_name": cohort_id.title(), "listed": pb.StudentList(student_ids=members)}
        return (await self.call("CreateCohort", cohort_id=cohort_id, **defaults | fields)).cohort

    async def get(self, cohort_id: str = COHORT) -> Any:
        return (await self.call("GetCohort", cohort_id=cohort_id)).cohort

    async def update(self, cohort_id: str = COHORT, **fields: Any) -> Any:
        return (await self.call("UpdateCohort", cohort_id=cohort_id, **fields)).cohort

    async def compare(self, first: str, second: str, **fields: Any) -> Any:
        return await self.call("CompareCohorts", first_cohort_id=first, second_cohort_id=second, **fields)

    async def standing(self, student_id: str, cohort_id: str = COHORT) -> Any:
        return await self.call("CompareToCohort", student_id=student_id, cohort_id=cohort_id)


async def ingest(engine: Engine, events: Sequence[Any]) -> None:
    for start in range(0, len(events), 1000):
        results = await engine.client().ingest(*events[start : start + 1000])
        assert all(result.accepted for result in results)


async def give_scores(engine: Engine, scores: dict[str, int], *, school_id: str = "") -> None:
    """Gives each student one quiz with so many of 100 right."""
    events = [
        quiz_event(correct, 100, student_id=student_id, school_id=school_id, number=number)
        for number, (student_id, correct) in enumerate(scores.items())
    ]
    await ingest(engine, events)


def lately(rng: random.Random, days: int = 80) -> list[Any]:
    """Returns quizzes of one student on random days until today, several on some."""
    chosen = sorted(rng.sample(range(days), 30)) + rng.sample(range(days), 10)
    noon = datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)
    return [
        quiz_event(
            rng.randint(0, 20), 20, number=number, time=noon - timedelta(days=ago) + timedelta(seconds=number)
        )
        for number, ago in enumerate(chosen)
    ]
