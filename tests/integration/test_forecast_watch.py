"""A server finds out that its forecaster is bad on this platform's students, says so, and answers otherwise."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mastery.v1 import mastery_pb2
from mastery.v1 import prediction_service_pb2 as pb
from mastery.v1.prediction_service_pb2_grpc import PredictionServiceStub
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.predict_mastery import PredictMastery
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.application.verify_forecasts import VerifyForecasts
from mastery_grpc.assembly import utc_now
from mastery_grpc.domain.forecasting.forecast import Forecaster, ForecastTerms
from mastery_grpc.domain.forecasting.model_file import write_model
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import read_forecaster, shipped_forecaster
from mastery_grpc.domain.forecasting.verification import ENOUGH_CASES
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_issued_forecasts import RedisIssuedForecasts
from mastery_grpc.storage.redis_outlooks import RedisOutlookStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, calculation, student
from tests.integration.serving import DEADLINE, Client, eventually, running_engine
from tests.integration.test_metrics import metrics_ports
from tests.integration.test_server_process import serving

NOW = datetime.now(UTC)
"""Not a day of the tests' own: what Redis holds ends by its clock."""
ISSUED = NOW - timedelta(days=9)
STUDENTS = [student(f"s{number}") for number in range(ENOUGH_CASES + 20)]
TERMS = ForecastTerms()


def model_expecting(least: float, most: float) -> bytes:
    """Returns a model by which everybody is about to rise by so much."""
    shipped = shipped_forecaster().model
    knots = np.linspace(least, most, shipped.knots.size).reshape(shipped.knots.shape)
    return write_model(replace(shipped, knots=knots))


GOOD = model_expecting(0.008, 0.012)
BAD = model_expecting(0.2, 0.9)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    client = connect(redis_url, timeout=5)
    yield client
    await client.aclose()


async def learn(client: RedisClient, score: float, *, time: datetime, number: int) -> None:
    repository = RedisStudentRepository(client, retention=Retention())
    apply = ApplyEvents(repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: time)
    first = number * len(STUDENTS)
    events = [calculation(score, number=first + place, time=time, of=key) for place, key in enumerate(STUDENTS)]
    outcomes = await apply([Delivery(event) for event in events])
    assert not any(outcome.error for outcome in outcomes)


async def a_week_with(client: RedisClient, forecaster: Forecaster) -> None:
    """Leaves what a server leaves that forecast for everybody nine days ago; a little changed since."""
    await learn(client, 0.5, time=ISSUED - timedelta(days=10), number=0)
    repository = RedisStudentRepository(client, retention=Retention())
    watched = WatchedForecaster(forecaster, PersistenceForecaster(), interval_level=TERMS.interval_level)
    predict = PredictMastery(
        repository,
        RedisOutlookStore(client, lifetime=Retention().prediction),
        forecaster=watched,
        terms=TERMS,
        rules=DEFAULT_RULES,
        detect_patterns=lambda past: (),
        reasons_for=lambda *given: (),
        clock=lambda: ISSUED,
        on_issued=watch_of(client, watched, clock=lambda: ISSUED).on_issued,
    )
    await predict.outlooks(STUDENTS)
    await learn(client, 0.51, time=ISSUED + timedelta(days=4), number=1)


def watch_of(client: RedisClient, watched: WatchedForecaster, *, clock: Callable[[], datetime]) -> VerifyForecasts:
    return VerifyForecasts(
        RedisIssuedForecasts(client, retention=Retention(), clock=utc_now),
        RedisStudentRepository(client, retention=Retention()),
        watched,
        terms=TERMS,
        rules=DEFAULT_RULES,
        clock=clock,
    )


async def next_week(client: Client, student_id: str) -> mastery_pb2.Prediction:
    stub = PredictionServiceStub(client.channel)
    request = pb.PredictNextWeekRequest(student_id=student_id)
    answer: pb.PredictNextWeekResponse = await stub.PredictNextWeek(
        request,
        metadata=client.metadata,
        timeout=DEADLINE,
    )
    return answer.prediction


async def shown(port: int) -> dict[str, float]:
    """Returns what Prometheus reads of the forecasts, and checks that no student is named."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return str(response.read(), "utf-8")

    samples = [
        sample
        for family in text_string_to_metric_families(await asyncio.to_thread(read))
        if family.name.startswith("mastery_forecast_")
        for sample in family.samples
    ]
    assert all(sample.labels == {"forecaster": "pooled"} for sample in samples)
    return {sample.name.removeprefix("mastery_forecast_"): sample.value for sample in samples}


async def test_a_bad_forecaster_is_found_out_and_persistence_answers(
    redis_url: str, client: RedisClient, tmp_path: Path
) -> None:
    model = tmp_path / "bad.bin"
    model.write_bytes(BAD)
    await a_week_with(client, read_forecaster(BAD))
    async with serving(redis_url, tmp_path, MASTERY_FORECAST_MODEL=str(model)) as (server, engine):
        caller = engine.client()

        async def persistence_answers() -> bool:
            return (await next_week(caller, "s0")).forecaster == "persistence"

        await eventually(persistence_answers)
        prediction = await next_week(caller, "s1")
        assert prediction.forecaster == "persistence"
        assert prediction.predicted_score == pytest.approx(0.51)
        assert prediction.interval_level == TERMS.interval_level
        [port] = metrics_ports(server)
        metrics = await shown(port)
        assert metrics["trusted"] == 0
        assert metrics["verified"] == len(STUDENTS)
        assert metrics["rmse_ratio"] > 10
        assert metrics["interval_coverage"] == 0
        told = [entry["forecaster"] for entry in server.entries() if "persistence is better" in entry["event"]]
        assert told == ["pooled"]


async def test_a_good_forecaster_goes_on_answering(redis_url: str, client: RedisClient, tmp_path: Path) -> None:
    model = tmp_path / "good.bin"
    model.write_bytes(GOOD)
    await a_week_with(client, read_forecaster(GOOD))
    async with serving(redis_url, tmp_path, MASTERY_FORECAST_MODEL=str(model)) as (server, engine):
        [port] = metrics_ports(server)

        async def verified() -> bool:
            return (await shown(port)).get("verified") == len(STUDENTS)

        await eventually(verified)
        metrics = await shown(port)
        assert metrics["trusted"] == 1
        assert metrics["rmse_ratio"] < 0.5
        assert (await next_week(engine.client(), "s0")).forecaster == "pooled"


async def test_a_server_keeps_what_it_foretells_until_its_day(redis_url: str, client: RedisClient) -> None:
    await learn(client, 0.5, time=NOW - timedelta(days=10), number=0)
    async with running_engine(redis_url) as engine:
        prediction = await next_week(engine.client(), "s0")
    day = prediction.create_time.ToDatetime().date() + timedelta(days=7)
    due = await RedisIssuedForecasts(client, retention=Retention(), clock=utc_now).load_due(day)
    assert list(due) == [student("s0")]
    [kept] = due.values()
    assert kept.predicted == pytest.approx(prediction.predicted_score)
    assert kept.lower == pytest.approx(prediction.lower_bound)
    assert kept.model_version == prediction.model_version


async def test_scores_are_kept_and_what_was_due_is_gone(client: RedisClient) -> None:
    bad = read_forecaster(BAD)
    await a_week_with(client, bad)
    watched = WatchedForecaster(bad, PersistenceForecaster(), interval_level=TERMS.interval_level)
    await watch_of(client, watched, clock=lambda: NOW)()
    day = (ISSUED + timedelta(days=7)).date()
    assert await client.exists(keys.forecast_score(day))
    assert not await client.exists(keys.forecasts_due(day))
    assert watched.name == "persistence"
