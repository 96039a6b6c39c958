"""RecommendationService as its callers see it: a real server on a real Redis."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from mastery.v1 import mastery_pb2
from mastery.v1 import recommendation_service_pb2 as pb
from mastery.v1.recommendation_service_pb2_grpc import RecommendationServiceStub
from mastery_grpc.application.callers import Role
from mastery_grpc.assembly import RECOMMENDATION_SERVICE
from mastery_grpc.settings import SettingsError, read_settings
from mastery_grpc.storage.connection import connect
from tests.integration.serving import (
    DEADLINE,
    SECRET,
    Client,
    Engine,
    components,
    failure_of,
    quiz_event,
    running_engine,
)

if TYPE_CHECKING:
    from mastery.v1.recommendation_service_pb2_grpc import RecommendationServiceAsyncStub

REQUEST_ID = "550E8400-e29b-41d4-a716-446655440000"
METHODS = ["GetRecommendations", "GetLearningPath", "RecordFeedback"]
"""Those about a student."""


class Adviser:
    """Calls the service with one token."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stub: RecommendationServiceAsyncStub = RecommendationServiceStub(client.channel)

    async def advice(self, student_id: str = "s1", **fields: Any) -> list[Any]:
        request = pb.GetRecommendationsRequest(student_id=student_id, **fields)
        return list((await self._send(self.stub.GetRecommendations, request)).recommendations)

    async def ids(self, student_id: str = "s1") -> list[str]:
        return [each.recommendation_id for each in await self.advice(student_id)]

    async def path(self, student_id: str = "s1", **fields: Any) -> Any:
        request = pb.GetLearningPathRequest(student_id=student_id, **fields)
        return (await self._send(self.stub.GetLearningPath, request)).path

    async def config(self) -> Any:
        return await self._send(self.stub.GetRecommendationConfig, pb.GetRecommendationConfigRequest())

    async def tell(
        self,
        feedback: Any = pb.FEEDBACK_HELPFUL,
        recommendation_id: str = "review-quiz",
        *,
        student_id: str = "s1",
        request_id: str = "",
        school_id: str = "",
    ) -> datetime:
        request = pb.RecordFeedbackRequest(
            student_id=student_id,
            recommendation_id=recommendation_id,
            feedback=feedback,
            request_id=request_id,
            school_id=school_id,
        )
        answer = await self._send(self.stub.RecordFeedback, request)
        time: datetime = answer.create_time.ToDatetime(UTC)
        return time

    async def ask(self, method: str, **fields: Any) -> Any:
        """Makes a valid call about one student."""
        defaults: dict[str, Any] = {"student_id": "s1"}
        if method == "RecordFeedback":
            defaults |= {"recommendation_id": "review-quiz", "feedback": pb.FEEDBACK_HELPFUL}
        request = getattr(pb, f"{method}Request")(**defaults | fields)
        return await self._send(getattr(self.stub, method), request)

    async def _send(self, method: Any, request: Any) -> Any:
        return await method(request, metadata=self.client.metadata, timeout=DEADLINE)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


@pytest.fixture
def adviser(engine: Engine) -> Adviser:
    return Adviser(engine.client())


async def set_components(adviser: Adviser, value: float = 0.5, **given: float) -> Any:
    answer = await adviser.client.calculate(components=components(value, **given))
    return answer.mastery


@asynccontextmanager
async def redis_at(url: str) -> AsyncIterator[Any]:
    client: Any = connect(url, timeout=5)
    try:
        yield client
    finally:
        await client.aclose()


# --- GetRecommendations -----------------------------------------------------------------------------------


async def test_advice_names_what_to_do_why_and_what_it_brings(adviser: Adviser) -> None:
    await set_components(adviser, 0.9, quiz=0.5)
    [review, practice] = await adviser.advice()
    assert (review.recommendation_id, practice.recommendation_id) == ("review-quiz", "practice-quiz")
    assert (review.action, practice.action) == (mastery_pb2.ACTION_REVIEW, mastery_pb2.ACTION_PRACTICE)
    assert review.component == mastery_pb2.COMPONENT_QUIZ
    assert review.area == "quiz questions answered wrongly"
    assert review.effort.seconds == 40 * 60
    assert review.expected_gain == pytest.approx(0.3 * 0.6 * 0.25)
    assert 1 >= review.priority > practice.priority > 0
    assert review.rationale.startswith("Your quiz results stand at 50 of 100, below the 70 asked for.")


async def test_advice_comes_weightiest_first_and_keeps_its_id(adviser: Adviser) -> None:
    await set_components(adviser, 0.1)
    advice = await adviser.advice()
    assert len(advice) == 6
    assert [each.priority for each in advice] == sorted((each.priority for each in advice), reverse=True)
    assert [each.recommendation_id for each in await adviser.advice(max_results=2)] == [
        each.recommendation_id for each in advice[:2]
    ]
    await set_components(adviser, 0.15)
    assert set(await adviser.ids()) == {each.recommendation_id for each in advice}


async def test_who_needs_no_advice_gets_none(adviser: Adviser) -> None:
    await set_components(adviser, 0.8)
    assert await adviser.advice() == []
    path = await adviser.path()
    assert (len(path.steps), len(path.schedule), path.HasField("completion_date")) == (0, 0, False)


async def test_the_forecast_is_part_of_the_reasons(adviser: Adviser) -> None:
    await set_components(adviser, 0.2)
    assert all(
        "The chance that your score is too low in 7 days" in each.rationale for each in await adviser.advice()
    )


# --- GetLearningPath --------------------------------------------------------------------------------------


async def test_a_path_leads_up_step_by_step_on_days_that_are_told(adviser: Adviser) -> None:
    mastery = await set_components(adviser, 0.5)
    today = datetime.now(UTC).date()
    path = await adviser.path(goal=pb.LEARNING_GOAL_MASTER_TOPIC)
    assert (path.student_id, path.goal, path.from_cache) == ("s1", pb.LEARNING_GOAL_MASTER_TOPIC, False)
    assert [step.position for step in path.steps] == [1, 2, 3, 4, 5, 6]
    scores = [mastery.mastery_score, *(step.expected_score for step in path.steps)]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(0.75)
    planned = sum(block.effort.seconds for study_day in path.schedule for block in study_day.blocks)
    assert planned == sum(step.recommendation.effort.seconds for step in path.steps)
    assert all(sum(block.effort.seconds for block in each.blocks) <= 1800 for each in path.schedule)
    assert (path.completion_date, path.schedule[-1].date) == (path.schedule[-1].date,) * 2
    first = path.schedule[0].date
    assert abs(datetime(first.year, first.month, first.day, tzinfo=UTC).date() - today) <= timedelta(days=1)


async def test_the_goal_is_to_improve_unless_another_is_named(adviser: Adviser) -> None:
    await set_components(adviser, 0.2)
    assert (await adviser.path()).goal == pb.LEARNING_GOAL_IMPROVE_MASTERY
    exam = await adviser.path(goal=pb.LEARNING_GOAL_PREPARE_ASSESSMENT)
    assert [step.recommendation.component for step in exam.steps[:2]] == [mastery_pb2.COMPONENT_QUIZ] * 2


async def test_more_time_a_day_means_fewer_days_and_a_course_is_named(adviser: Adviser) -> None:
    await set_components(adviser, 0.2)
    usual, hurried = await adviser.path(), await adviser.path(daily_effort=Duration(seconds=43200))
    assert len(hurried.schedule) < len(usual.schedule)
    course = await adviser.path(course_id="algebra-1")
    assert all(step.recommendation.area.endswith(" of algebra-1") for step in course.steps)


async def test_the_same_question_is_answered_from_the_cache_and_says_so(adviser: Adviser) -> None:
    await set_components(adviser)
    made, found = await adviser.path(), await adviser.path(goal=pb.LEARNING_GOAL_IMPROVE_MASTERY)
    assert (made.from_cache, found.from_cache) == (False, True)
    made.from_cache = True
    assert made == found


@pytest.mark.parametrize(
    "fields",
    [
        {"goal": pb.LEARNING_GOAL_MASTER_TOPIC},
        {"course_id": "algebra-1"},
        {"daily_effort": Duration(seconds=3600)},
    ],
)
async def test_another_question_is_answered_anew(adviser: Adviser, fields: dict[str, Any]) -> None:
    await set_components(adviser)
    await adviser.path()
    assert not (await adviser.path(**fields)).from_cache
    assert (await adviser.path(**fields)).from_cache
    assert not (await adviser.path()).from_cache


async def test_a_new_event_makes_the_path_anew(adviser: Adviser) -> None:
    await set_components(adviser)
    before = await adviser.path()
    await adviser.client.ingest(quiz_event(2, 2, time=datetime.now(UTC) + timedelta(seconds=1)))
    after = await adviser.path()
    assert not after.from_cache
    assert after.create_time.ToDatetime() > before.create_time.ToDatetime()
    assert len(after.steps) < len(before.steps)
    assert (await adviser.path()).from_cache


async def test_feedback_makes_the_path_anew(adviser: Adviser) -> None:
    await set_components(adviser)
    await adviser.path()
    await adviser.tell(pb.FEEDBACK_DISMISSED)
    path = await adviser.path()
    assert not path.from_cache
    assert "review-quiz" not in [step.recommendation.recommendation_id for step in path.steps]


async def test_a_path_is_not_served_to_a_server_of_other_settings(redis_url: str, adviser: Adviser) -> None:
    await set_components(adviser)
    await adviser.path()
    async with running_engine(redis_url, recommendation_component_threshold=0.4) as other:
        path = await Adviser(other.client()).path()
        assert (path.from_cache, len(path.steps)) == (False, 0)


async def test_a_path_of_an_earlier_mastery_is_never_served(redis_url: str, adviser: Adviser) -> None:
    key = "student:{s1}:path:adaptive"
    async with redis_at(redis_url) as client:
        await set_components(adviser)
        await adviser.path()
        old = await client.get(key)
        await set_components(adviser, 0.6)
        assert await client.get(key) is None
        await client.set(key, old)  # as a slow server would
        assert not (await adviser.path()).from_cache
        words = json.loads(await client.get(key))[1:]
        assert len(words) == 6


# --- RecordFeedback ---------------------------------------------------------------------------------------


async def test_dismissed_advice_is_not_repeated(adviser: Adviser) -> None:
    await set_components(adviser)
    assert "review-quiz" in await adviser.ids()
    await adviser.tell(pb.FEEDBACK_DISMISSED)
    assert "review-quiz" not in await adviser.ids()
    assert "practice-quiz" in await adviser.ids()


async def test_without_a_time_away_dismissed_advice_only_weighs_less(redis_url: str) -> None:
    async with running_engine(redis_url, recommendation_dismissal_days=0) as engine:
        adviser = Adviser(engine.client())
        await set_components(adviser)
        before = {each.recommendation_id: each.priority for each in await adviser.advice()}
        await adviser.tell(pb.FEEDBACK_DISMISSED)
        after = {each.recommendation_id: each.priority for each in await adviser.advice()}
        assert after["review-quiz"] < before["review-quiz"]


async def test_feedback_shifts_priorities(adviser: Adviser) -> None:
    await set_components(adviser, 0.5)

    async def priorities() -> dict[str, float]:
        return {each.recommendation_id: each.priority for each in await adviser.advice()}

    plain = await priorities()
    await adviser.tell(pb.FEEDBACK_HELPFUL, "review-quality")
    await adviser.tell(pb.FEEDBACK_DONE, "practice-completion")
    told = await priorities()
    assert told["review-quality"] > plain["review-quality"]
    assert told["practice-completion"] < plain["practice-completion"]
    await set_components(adviser, 0.5, completion=0.51)
    assert (await priorities())["practice-completion"] > told["practice-completion"]


async def test_recording_is_idempotent_by_request_id_in_any_case(adviser: Adviser) -> None:
    await set_components(adviser)
    first = await adviser.tell(pb.FEEDBACK_HELPFUL, request_id=REQUEST_ID)
    assert await adviser.tell(pb.FEEDBACK_DISMISSED, request_id=REQUEST_ID.lower()) == first
    assert "review-quiz" in await adviser.ids()
    assert await adviser.tell(pb.FEEDBACK_HELPFUL) > first


async def test_feedback_is_told_when_it_was_stored(adviser: Adviser) -> None:
    await set_components(adviser)
    before = datetime.now(UTC)
    assert before <= await adviser.tell() <= datetime.now(UTC)


@pytest.mark.parametrize("unknown", ["schedule-quiz", "3f2b8c", "practice-completion-"])
async def test_feedback_on_advice_that_is_never_given_is_not_found(adviser: Adviser, unknown: str) -> None:
    await set_components(adviser)
    failure = await failure_of(adviser.tell(recommendation_id=unknown))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RECOMMENDATION_NOT_FOUND")
    assert failure.metadata == (("recommendation_id", unknown),)
    assert failure.resource == ("mastery.v1.Recommendation", unknown)


# --- GetRecommendationConfig ------------------------------------------------------------------------------


async def test_the_settings_are_told(redis_url: str) -> None:
    settings = {
        "recommendation_component_threshold": 0.65,
        "recommendation_max_results": 3,
        "recommendation_dismissal_days": 7,
        "recommendation_daily_effort_minutes": 45,
        "weight_completion": 0.3,
        "weight_quiz": 0.4,
    }
    async with running_engine(redis_url, **settings) as engine:
        adviser = Adviser(engine.client())
        assert await adviser.config() == pb.GetRecommendationConfigResponse(
            component_threshold=0.65,
            weights=mastery_pb2.Weights(completion=0.3, quiz=0.4, quality=0.2, consistency=0.1),
            max_recommendations=3,
            dismissal_duration=Duration(seconds=7 * 86400),
            daily_effort=Duration(seconds=45 * 60),
        )
        await set_components(adviser, 0.1)
        assert len(await adviser.advice()) == 3
        assert len(await adviser.advice(max_results=10)) == 3


async def test_the_defaults_are_those_of_the_contract(adviser: Adviser) -> None:
    config = await adviser.config()
    assert (config.component_threshold, config.max_recommendations) == (0.7, 10)
    assert (config.dismissal_duration.seconds, config.daily_effort.seconds) == (14 * 86400, 1800)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMPONENT_THRESHOLD", "1.1"),
        ("MAX_RESULTS", "11"),
        ("DISMISSAL_DAYS", "91"),
        ("DAILY_EFFORT_MINUTES", "4"),
    ],
)
def test_a_setting_out_of_range_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("MASTERY_JWT_SECRET", SECRET)
    monkeypatch.setenv(f"MASTERY_RECOMMENDATION_{name}", value)
    with pytest.raises(SettingsError, match=f"^MASTERY_RECOMMENDATION_{name}: .+$"):
        read_settings()


# --- who may ask, and what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_of_an_unknown_student_nothing_is_told(adviser: Adviser, method: str) -> None:
    failure = await failure_of(adviser.ask(method, student_id="stranger"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STUDENT_NOT_FOUND")
    assert failure.metadata == (("student_id", "stranger"),)


@pytest.mark.parametrize("method", METHODS)
async def test_a_student_asks_about_himself_only(engine: Engine, method: str) -> None:
    service = Adviser(engine.client())
    await set_components(service)
    himself, another = Adviser(engine.client(Role.STUDENT, "s1")), Adviser(engine.client(Role.STUDENT, "s2"))
    await himself.ask(method)
    failure = await failure_of(another.ask(method))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWN_RECORD")


@pytest.mark.parametrize("method", METHODS)
async def test_schools_are_apart(engine: Engine, method: str) -> None:
    await set_components(Adviser(engine.client(school_id="north")))
    await Adviser(engine.client(school_id="north")).ask(method)
    await Adviser(engine.client()).ask(method, school_id="north")
    south = Adviser(engine.client(school_id="south"))
    assert (await failure_of(south.ask(method))).reason == "STUDENT_NOT_FOUND"
    assert (await failure_of(south.ask(method, school_id="north"))).reason == "OTHER_SCHOOL"


async def test_a_call_without_a_token_is_refused(engine: Engine) -> None:
    failure = await failure_of(Adviser(engine.client_with(())).config())
    assert failure.reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    ("method", "fields", "named"),
    [
        ("GetRecommendations", {"student_id": "not an id"}, "student_id"),
        ("GetRecommendations", {"max_results": 0}, "max_results"),
        ("GetRecommendations", {"max_results": 11}, "max_results"),
        ("GetLearningPath", {"goal": 9}, "goal"),
        ("GetLearningPath", {"course_id": "c" * 256}, "course_id"),
        ("GetLearningPath", {"daily_effort": Duration(seconds=299)}, "daily_effort"),
        ("GetLearningPath", {"daily_effort": Duration(seconds=43201)}, "daily_effort"),
        ("RecordFeedback", {"feedback": 0}, "feedback"),
        ("RecordFeedback", {"feedback": 4}, "feedback"),
        ("RecordFeedback", {"recommendation_id": ""}, "recommendation_id"),
        ("RecordFeedback", {"request_id": "once"}, "request_id"),
    ],
)
async def test_what_breaks_a_rule_is_refused_by_its_field(
    adviser: Adviser, method: str, fields: dict[str, Any], named: str
) -> None:
    failure = await failure_of(adviser.ask(method, **fields))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == [named]


async def test_the_service_has_a_health_of_its_own(engine: Engine) -> None:
    assert await engine.is_serving(RECOMMENDATION_SERVICE.full_name)
