"""What applying a batch makes of a student whom another writer changes at the same time."""

from collections.abc import Awaitable, Callable, Sequence

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import LoggedEvent
from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.results import MasteryUpdated
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, quiz

NOW = at(50)
ORIGIN, ANOTHER = "mastery.requests/3/97", "mastery.requests/3/98"
LATE, NEWEST = quiz(number=1, time=at(1)), quiz(number=2, time=at(2))


class Overtaken(MemoryStudentRepository):
    """Somebody else writes between the load of the students and that of their logs."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.overtake: Callable[[], Awaitable[object]] | None = None

    async def load_logs(self, students: Sequence[StudentKey]) -> list[list[LoggedEvent]]:
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            await overtake()
        return await super().load_logs(students)


async def apply(repository: MemoryStudentRepository, event: LearningEvent, origin: str) -> Outcome:
    applier = ApplyEvents(repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: NOW)
    [outcome] = await applier([Delivery(event, origin)])
    return outcome


async def test_the_results_of_a_record_that_somebody_else_applies_in_the_meantime_are_published() -> None:
    """The server has applied an event that came by gRPC just when the worker meets its record."""
    repository = Overtaken()
    await apply(repository, NEWEST, ANOTHER)
    repository.overtake = lambda: apply(repository, LATE, ORIGIN)

    outcome = await apply(repository, LATE, ORIGIN)

    assert outcome.duplicate
    assert any(isinstance(result, MasteryUpdated) for result in outcome.results)


async def test_those_of_another_record_with_the_same_event_are_not() -> None:
    repository = Overtaken()
    await apply(repository, NEWEST, "")
    repository.overtake = lambda: apply(repository, LATE, ORIGIN)

    outcome = await apply(repository, LATE, ANOTHER)

    assert outcome.duplicate
    assert outcome.results == ()


async def test_an_event_that_the_log_alone_remembers_is_a_duplicate() -> None:
    repository = Overtaken()
    await apply(repository, LATE, ORIGIN)
    await apply(repository, NEWEST, ANOTHER)
    repository.processed[STUDENT].clear()  # as after a week

    outcome = await apply(repository, LATE, ORIGIN)

    assert (outcome.duplicate, outcome.mastery, outcome.results) == (True, None, ())
