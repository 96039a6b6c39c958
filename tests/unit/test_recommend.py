"""The use cases of advice, on stores in memory."""

from collections.abc import Sequence

import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.recommend import KeptPath, PathRequest, Recommend
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import RecommendationNotFound, StorageUnavailable, StudentNotFound
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.forecasting.forecast import Forecast
from mastery_grpc.domain.recommendations import AdviceConfig, Verdict
from mastery_grpc.storage.memory.advice import MemoryAdviceStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, calculation
from tests.unit.test_recommendations import forecast

REQUEST = PathRequest(student=STUDENT)


class Classroom:
    """Students in memory, and the use cases of advice on them."""

    def __init__(self, store: type[MemoryAdviceStore] = MemoryAdviceStore) -> None:
        self.repository = MemoryStudentRepository(clock=at)
        self.store = store(self.repository)
        self.recommend = Recommend(self.store, config=AdviceConfig(), clock=at)

    async def apply(self, event: LearningEvent) -> None:
        apply_events = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=at)
        [outcome] = await apply_events([Delivery(event)])
        assert outcome.error is None


class Forecasts:
    """A source of one and the same forecast, or of none."""

    def __init__(self, each: Forecast | None) -> None:
        self.each = each
        self.asked: list[StudentKey] = []

    async def seven_days(self, students: Sequence[StudentKey]) -> list[Forecast | None]:
        self.asked += students
        return [self.each] * len(students)


class FullStore(MemoryAdviceStore):
    async def keep_path(self, student: StudentKey, kept: KeptPath) -> None:
        raise StorageUnavailable("redis: OutOfMemoryError")


async def test_the_forecast_raises_what_is_advised_and_its_lack_does_not_matter() -> None:
    room = Classroom()
    await room.apply(calculation(0.4))
    plain = await room.recommend.next_steps(STUDENT)
    for source in (Forecasts(None), Forecasts(forecast(0.9))):
        advised = Recommend(room.store, config=AdviceConfig(), clock=at, forecasts=source)
        advice = await advised.next_steps(STUDENT)
        assert source.asked == [STUDENT]
        assert (advice == plain) == (source.each is None)


async def test_nobody_forecasts_a_stranger() -> None:
    source = Forecasts(forecast())
    recommend = Recommend(Classroom().store, config=AdviceConfig(), clock=at, forecasts=source)
    with pytest.raises(StudentNotFound):
        await recommend.next_steps(STUDENT)
    assert source.asked == []


async def test_a_path_that_cannot_be_kept_is_given_all_the_same() -> None:
    room = Classroom(FullStore)
    await room.apply(calculation(0.4))
    for _ in range(2):
        path, from_cache = await room.recommend.path(REQUEST)
        assert (len(path.steps), from_cache) == (6, False)


@pytest.mark.parametrize("by", ["an event", "feedback"])
async def test_a_path_overtaken_while_it_is_made_is_not_found_again(by: str) -> None:
    overtaken = 0

    class Overtaken(MemoryAdviceStore):
        async def keep_path(self, student: StudentKey, kept: KeptPath) -> None:
            nonlocal overtaken
            overtaken += 1
            if overtaken == 1 and by == "an event":
                await room.apply(calculation(0.5, number=2))
            elif overtaken == 1:
                await room.recommend.record(STUDENT, "review-quiz", Verdict.HELPFUL)
            await super().keep_path(student, kept)

    room = Classroom(Overtaken)
    await room.apply(calculation(0.4))
    assert [(await room.recommend.path(REQUEST)).from_cache for _ in range(3)] == [False, False, True]


async def test_feedback_remembers_where_its_component_stood() -> None:
    room = Classroom()
    await room.apply(calculation(0.4, quality=0.25))
    await room.recommend.record(STUDENT, "review-quality", Verdict.DONE)
    [given] = await room.store.load_feedback([STUDENT])
    assert [(each.component_score, each.create_time) for each in given.feedback] == [(0.25, at())]


async def test_feedback_on_advice_that_is_never_given_leaves_nothing_behind() -> None:
    room = Classroom()
    await room.apply(calculation(0.4))
    with pytest.raises(RecommendationNotFound):
        await room.recommend.record(STUDENT, "review-everything", Verdict.HELPFUL)
    assert (await room.store.load(STUDENT)).given.revision == 0
