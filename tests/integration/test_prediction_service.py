"""PredictionService as its callers see it: a real server on a real Redis."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message import Message
from google.type.date_pb2 import Date

from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import prediction_service_pb2 as pb
from mastery.v1.prediction_service_pb2_grpc import PredictionServiceStub
from mastery_grpc.app import running_server
from mastery_grpc.application.callers import Role
from mastery_grpc.assembly import PREDICTION_SERVICE
from mastery_grpc.domain.forecasting import pooled
from mastery_grpc.settings import SettingsError, read_settings
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from tests.builders import event_id, student
from tests.integration.serving import (
    DEADLINE,
    Client,
    Engine,
    failure_in,
    failure_of,
    quiz_event,
    running_engine,
    settings_for,
)
from tests.real.redis_servers import RedisServer

if TYPE_CHECKING:
    from mastery.v1.prediction_service_pb2_grpc import PredictionServiceAsyncStub


class Predictions:
    """Calls the service with the token of a client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stub: PredictionServiceAsyncStub = PredictionServiceStub(client.channel)

    async def next_week(self, student_id: str = "s1", **fields: Any) -> mastery_pb2.Prediction:
        request = pb.PredictNextWeekRequest(student_id=student_id, **fields)
        return (await self.send(self.stub.PredictNextWeek, request)).prediction  # type: ignore[no-any-return]

    async def trajectory(self, student_id: str = "s1", **fields: Any) -> pb.PredictTrajectoryResponse:
        request = pb.PredictTrajectoryRequest(student_id=student_id, **fields)
        return await self.send(self.stub.PredictTrajectory, request)  # type: ignore[no-any-return]

    async def check(self, *student_ids: str, **fields: Any) -> pb.CheckInterventionResponse:
        request = pb.CheckInterventionRequest(student_ids=student_ids, **fields)
        return await self.send(self.stub.CheckIntervention, request)  # type: ignore[no-any-return]

    async def patterns(self, student_id: str = "s1", **fields: Any) -> pb.DetectPatternsResponse:
        request = pb.DetectPatternsRequest(student_id=student_id, **fields)
        return await self.send(self.stub.DetectPatterns, request)  # type: ignore[no-any-return]

    async def send(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=self.client.metadata, timeout=DEADLINE)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Client:
    return engine.client()


@pytest.fixture
def predictions(client: Client) -> Predictions:
    return Predictions(client)


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def worked_on(*days: int, student_id: str = "s1", **fields: Any) -> list[events_pb2.LearningEvent]:
    """Returns one quiz result of so many days ago each, all answered rightly."""
    return [
        quiz_event(2, 2, number=500 + ago, time=days_ago(ago), student_id=student_id, **fields) for ago in days
    ]


def exercises(done: int, total: int, *, ago: float, student_id: str = "s1") -> events_pb2.LearningEvent:
    event = events_pb2.LearningEvent(
        event_id=event_id(round(1000 + ago * 10)),
        student_id=student_id,
        exercise_completion_submitted=events_pb2.ExerciseCompletionSubmitted(
            total_exercises=total, completed_exercises=done
        ),
    )
    event.event_time.FromDatetime(days_ago(ago))
    return event


async def ingest(client: Client, *events: events_pb2.LearningEvent) -> None:
    assert all(result.accepted for result in await client.ingest(*events))


def as_date(message: Date) -> date:
    return date(message.year, message.month, message.day)


# --- PredictNextWeek --------------------------------------------------------------------------------------


async def test_a_prediction_says_what_is_expected_in_a_week_and_how_sure_that_is(
    client: Client, predictions: Predictions
) -> None:
    await ingest(client, *worked_on(0, 1, 3, 8))
    now = (await client.get()).mastery_score
    prediction = await predictions.next_week()
    assert (prediction.student_id, prediction.school_id, prediction.horizon_days) == ("s1", "", 7)
    assert prediction.current_score == pytest.approx(now)
    assert 0 <= prediction.lower_bound <= prediction.predicted_score <= prediction.upper_bound <= 1
    assert prediction.interval_level == 0.8
    assert 0 <= prediction.confidence <= 1
    assert prediction.trend != mastery_pb2.TREND_UNSPECIFIED
    assert prediction.predicted_level != mastery_pb2.LEVEL_UNSPECIFIED
    parts = prediction.predicted_components
    weighted = 0.4 * parts.completion + 0.3 * parts.quiz + 0.2 * parts.quality + 0.1 * parts.consistency
    assert weighted == pytest.approx(prediction.predicted_score, abs=1e-6)
    assert prediction.history_days == 4
    assert (prediction.forecaster, prediction.model_version) == (
        "pooled",
        pooled.shipped_forecaster().model_version,
    )
    made = prediction.create_time.ToDatetime(UTC)
    assert timedelta(0) <= datetime.now(UTC) - made < timedelta(minutes=1)


async def test_a_prediction_is_made_once_until_the_next_event(client: Client, predictions: Predictions) -> None:
    await ingest(client, *worked_on(5, 3))
    made, found = await predictions.next_week(), await predictions.next_week()
    assert (made.from_cache, found.from_cache) == (False, True)
    found.from_cache = False
    assert found == made
    await ingest(client, *worked_on(1))
    anew = await predictions.next_week()
    assert not anew.from_cache
    assert anew.history_days == made.history_days + 1


async def test_a_prediction_is_shared_by_all_methods_and_servers(
    redis_url: str, client: Client, predictions: Predictions
) -> None:
    await ingest(client, *worked_on(5, 3))
    assert not (await predictions.trajectory()).from_cache
    async with running_engine(redis_url) as other:
        assert (await Predictions(other.client()).next_week()).from_cache


async def test_other_programs_find_the_prediction_in_redis(
    redis_url: str, client: Client, predictions: Predictions
) -> None:
    await ingest(client, *worked_on(5, 3))
    told = await predictions.next_week()
    redis = connect(redis_url, timeout=5)
    stored = json.loads(await redis.get("student:{s1}:prediction:7days") or "")
    assert 3500 < await redis.ttl("student:{s1}:prediction:7days") <= 3600
    await redis.aclose()
    assert (stored["student_id"], stored["horizon_days"]) == ("s1", 7)
    assert stored["predicted_score"] == told.predicted_score
    assert (stored["lower_bound"], stored["upper_bound"]) == (told.lower_bound, told.upper_bound)
    assert stored["model_version"] == told.model_version
    assert stored["predicted_level"].upper() == mastery_pb2.Level.Name(told.predicted_level)[6:]


async def test_a_day_of_history_is_enough_for_an_answer_that_says_so(
    client: Client, predictions: Predictions
) -> None:
    await ingest(client, *worked_on(0))
    prediction = await predictions.next_week()
    assert prediction.history_days == 1
    assert prediction.confidence < 0.5


async def test_terms_and_forecaster_are_settings(redis_url: str, client: Client) -> None:
    await ingest(client, *worked_on(9, 5, 3))
    settings: dict[str, Any] = {
        "forecaster": "persistence",
        "forecast_interval_level": 0.5,
        "intervention_threshold": 0.99,
    }
    async with running_engine(redis_url, **settings) as engine:
        predictions = Predictions(engine.client())
        told = await predictions.next_week()
        assert (told.forecaster, told.interval_level) == ("persistence", 0.5)
        assert told.predicted_score == pytest.approx(told.current_score)
        assert told.intervention_needed
        assert (await predictions.check("s1")).intervention_threshold == 0.99
    async with running_engine(redis_url, forecaster="linear_regression") as engine:
        told = await Predictions(engine.client()).next_week()
        assert (told.forecaster, told.from_cache) == ("linear_regression", False)


# --- PredictTrajectory ------------------------------------------------------------------------------------


async def test_a_trajectory_has_a_point_for_each_of_14_days(client: Client, predictions: Predictions) -> None:
    await ingest(client, *worked_on(5, 3))
    told = await predictions.trajectory()
    today = datetime.now(UTC).date()
    assert [as_date(point.date) for point in told.points] == [
        today + timedelta(days=ahead) for ahead in range(1, 15)
    ]
    assert all(0 <= p.lower_bound <= p.predicted_score <= p.upper_bound <= 1 for p in told.points)
    assert all(point.level != mastery_pb2.LEVEL_UNSPECIFIED for point in told.points)
    assert (told.interval_level, told.history_days, told.forecaster) == (0.8, 2, "pooled")
    assert told.model_version == pooled.shipped_forecaster().model_version
    in_a_week, next_week = told.points[6], await predictions.next_week()
    assert in_a_week.predicted_score == next_week.predicted_score
    assert (in_a_week.confidence, in_a_week.level) == (next_week.confidence, next_week.predicted_level)
    assert in_a_week.intervention_needed == next_week.intervention_needed


@pytest.mark.parametrize("horizon_days", [1, 30])
async def test_a_trajectory_goes_as_far_as_asked(
    client: Client, predictions: Predictions, horizon_days: int
) -> None:
    await ingest(client, *worked_on(5, 3))
    assert len((await predictions.trajectory(horizon_days=horizon_days)).points) == horizon_days


@pytest.mark.parametrize("horizon_days", [0, -1, 31, 2**31 - 1])
async def test_a_horizon_out_of_range_is_the_callers_mistake(predictions: Predictions, horizon_days: int) -> None:
    failure = await failure_of(predictions.trajectory(horizon_days=horizon_days))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == ["horizon_days"]


# --- CheckIntervention ------------------------------------------------------------------------------------


async def test_one_who_fell_behind_needs_someone_and_one_who_did_not_does_not(
    client: Client, predictions: Predictions
) -> None:
    await ingest(
        client,
        *(exercises(1, 10 - ago, ago=ago) for ago in (9, 6, 3)),
        *worked_on(9, 6, 3, student_id="s2"),
        *(exercises(10 - ago, 10 - ago, ago=ago, student_id="s2") for ago in (8, 5, 2)),
        *(_marked(ago, student_id="s2") for ago in (7, 4, 1)),
    )
    told = await predictions.check("s1", "s2")
    assert told.intervention_threshold == 0.5
    behind, well = (result.intervention for result in told.results)
    assert behind.current_score == pytest.approx((await client.get()).mastery_score)
    assert behind.current_score < 0.5
    assert (behind.intervention_needed, behind.HasField("days_until"), behind.days_until) == (True, True, 0)
    assert behind.intervention_probability > 0.5
    assert behind.reasons
    assert all(reason.strip() for reason in behind.reasons)
    assert well.current_score > 0.8
    assert not well.intervention_needed
    assert well.intervention_probability < 0.5


async def test_a_thousand_students_are_checked_in_one_call_each_in_his_place(
    client: Client, predictions: Predictions
) -> None:
    known = [f"s{number}" for number in range(300)]
    for start in range(0, 300, 100):
        await ingest(
            client, *(event for each in known[start : start + 100] for event in worked_on(4, 2, student_id=each))
        )
    asked = [f"s{number % 500}" for number in range(1000)]
    for _ in range(2):
        results = (await predictions.check(*asked)).results
        assert [result.student_id for result in results] == asked
        assert [result.WhichOneof("result") for result in results] == [
            "intervention" if student_id in known else "error" for student_id in asked
        ]
        failure = failure_in(results[300].error)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STUDENT_NOT_FOUND")
        assert failure.metadata == (("student_id", "s300"),)


@pytest.mark.parametrize("student_ids", [[], ["s"] * 1001, ["s1", "ü"]])
async def test_nobody_more_than_a_thousand_or_an_id_that_is_none_fails_the_call(
    predictions: Predictions, student_ids: list[str]
) -> None:
    failure = await failure_of(predictions.check(*student_ids))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields[0].startswith("student_ids")


# --- DetectPatterns ---------------------------------------------------------------------------------------


async def test_patterns_come_with_days_figures_and_words(client: Client, predictions: Predictions) -> None:
    await ingest(
        client, *(exercises(2, 12 - ago // 3, ago=ago) for ago in range(30, 0, -3)), *worked_on(29, 20, 11)
    )
    told = await predictions.patterns()
    assert told.history_days == len({days_ago(ago).date() for ago in (29, 20, 11, *range(30, 0, -3))})
    assert pb.PATTERN_KIND_FALLING_BEHIND in [pattern.kind for pattern in told.patterns]
    strengths = [pattern.strength for pattern in told.patterns]
    assert strengths == sorted(strengths, reverse=True)
    for pattern in told.patterns:
        assert 0 <= pattern.strength <= 1
        assert as_date(pattern.start_date) <= as_date(pattern.end_date) <= datetime.now(UTC).date()
        assert pattern.evidence
        assert pattern.summary


async def test_one_event_shows_no_pattern(client: Client, predictions: Predictions) -> None:
    await ingest(client, *worked_on(0))
    told = await predictions.patterns()
    assert (len(told.patterns), told.history_days) == (0, 1)


# --- who is asked about -----------------------------------------------------------------------------------

ABOUT_ONE = ["next_week", "trajectory", "patterns"]


@pytest.mark.parametrize("method", ABOUT_ONE)
async def test_an_unknown_student_is_not_found(predictions: Predictions, method: str) -> None:
    failure = await failure_of(getattr(predictions, method)("nobody"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STUDENT_NOT_FOUND")
    assert failure.resource == ("mastery.v1.Student", "nobody")


@pytest.mark.parametrize("method", ABOUT_ONE)
async def test_a_student_whose_events_are_gone_has_too_little_history(
    redis_url: str, client: Client, predictions: Predictions, method: str
) -> None:
    await ingest(client, *worked_on(3, 1))
    redis = connect(redis_url, timeout=5)
    await redis.delete(keys.event_log(student("s1")))
    await redis.aclose()
    failure = await failure_of(getattr(predictions, method)())
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_HISTORY")
    assert failure.metadata == (("history_days", "0"), ("required_days", "1"), ("student_id", "s1"))
    [result] = (await predictions.check("s1")).results
    assert failure_in(result.error) == failure


@pytest.mark.parametrize("method", ABOUT_ONE)
async def test_an_ill_formed_id_is_the_callers_mistake(predictions: Predictions, method: str) -> None:
    failure = await failure_of(getattr(predictions, method)("ü"))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["student_id"])


@pytest.mark.parametrize("method", ABOUT_ONE)
async def test_students_may_ask_about_themselves_only(engine: Engine, client: Client, method: str) -> None:
    await ingest(client, *worked_on(3, 1), *worked_on(3, 1, student_id="s2"))
    himself = Predictions(engine.client(Role.STUDENT, "s1"))
    await getattr(himself, method)("s1")
    for other in ("s2", "nobody"):
        failure = await failure_of(getattr(himself, method)(other))
        assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWN_RECORD")


async def test_students_may_not_check_for_interventions_even_their_own(engine: Engine) -> None:
    failure = await failure_of(Predictions(engine.client(Role.STUDENT, "s1")).check("s1"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    for role in (Role.TEACHER, Role.ADMIN, Role.SERVICE):
        assert len((await Predictions(engine.client(role)).check("s1")).results) == 1


async def test_each_school_has_students_of_its_own(engine: Engine, client: Client) -> None:
    await ingest(client, *worked_on(3, 1, school_id="north"), *worked_on(1, school_id="south"))
    north = Predictions(engine.client(school_id="north"))
    assert [(await north.next_week()).history_days, (await north.patterns()).history_days] == [2, 2]
    assert (await Predictions(client).next_week(school_id="south")).history_days == 1
    failure = await failure_of(north.next_week(school_id="south"))
    assert failure.reason == "OTHER_SCHOOL"


# --- outages and the start --------------------------------------------------------------------------------


async def test_without_redis_nothing_is_predicted_and_callers_may_try_again(
    client: Client, predictions: Predictions, redis_server: RedisServer
) -> None:
    await ingest(client, *worked_on(3, 1))
    await predictions.next_week()
    redis_server.kill()
    for call in (predictions.next_week, predictions.trajectory, predictions.check, predictions.patterns):
        failure = await failure_of(call("s1"))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        assert failure.retry_delay is not None


async def test_health_and_reflection_name_the_service(engine: Engine) -> None:
    assert await engine.is_serving(PREDICTION_SERVICE.full_name)


async def test_a_model_file_is_used_if_it_is_set(redis_url: str, client: Client, tmp_path: Path) -> None:
    await ingest(client, *worked_on(3, 1))
    model = tmp_path / "own.bin"
    model.write_bytes(_shipped_model())
    async with running_engine(redis_url, forecast_model=str(model)) as engine:
        assert (await Predictions(engine.client()).next_week()).forecaster == "pooled"


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "damaged", "cut off", "a directory"])
async def test_a_model_file_that_cannot_be_used_stops_the_start_with_one_line(
    redis_url: str, tmp_path: Path, kind: str
) -> None:
    model = tmp_path / "model.bin"
    shipped = _shipped_model()
    contents = {
        "empty": b"",
        "foreign": b"PK\x03\x04" + bytes(1000),
        "damaged": shipped[:-100] + bytes(100),
        "cut off": shipped[: len(shipped) // 2],
    }
    if kind == "a directory":
        model.mkdir()
    elif kind in contents:
        model.write_bytes(contents[kind])
    with pytest.raises(SettingsError) as raised:
        async with running_server(settings_for(redis_url, forecast_model=str(model))):
            pytest.fail("it has started")
    line = str(raised.value)
    assert line.startswith(f"MASTERY_FORECAST_MODEL: {model}: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forecaster", "crystal_ball"),
        ("forecast_interval_level", 0.0),
        ("forecast_interval_level", 1.0),
        ("forecast_interval_level", "nan"),
        ("intervention_threshold", 1.1),
        ("intervention_threshold", "nan"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"^MASTERY_{name.upper()}: "):
        read_settings(**{name: value})


def _shipped_model() -> bytes:
    return files("mastery_grpc.domain.forecasting").joinpath(pooled.MODEL_FILE).read_bytes()


def _marked(ago: float, *, student_id: str) -> events_pb2.LearningEvent:
    event = events_pb2.LearningEvent(
        event_id=event_id(round(2000 + ago * 10)),
        student_id=student_id,
        quality_assessment_completed=events_pb2.QualityAssessmentCompleted(correctness_score=0.95),
    )
    event.event_time.FromDatetime(days_ago(ago))
    return event
