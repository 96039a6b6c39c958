"""One student on the command line: shown, drawn, exported, erased."""

import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from mastery.v1 import analytics_service_pb2 as analytics
from mastery.v1 import compliance_service_pb2 as compliance
from mastery.v1 import mastery_pb2, prediction_service_pb2, recommendation_service_pb2
from mastery_client.testing import FakeServer
from tests.client.masteryctl.conftest import Run
from tests.integration.serving import a_day

FIRST_DAY = date(2026, 10, 1)


def day_proto(day: date) -> Any:
    return a_day(day.year, day.month, day.day)


def history(*scores: float, next_page_token: str = "", begin: int = 0) -> analytics.GetHistoryResponse:
    buckets = [
        analytics.HistoryBucket(
            start_date=day_proto(FIRST_DAY + timedelta(days=begin + index)),
            end_date=day_proto(FIRST_DAY + timedelta(days=begin + index)),
            last_score=score,
        )
        for index, score in enumerate(scores)
    ]
    statistics = mastery_pb2.SampleStatistics(count=len(scores), mean=0.5, median=0.5, minimum=0.1, maximum=0.9)
    trend = analytics.TrendEstimate(trend=mastery_pb2.TREND_IMPROVING, slope_per_day=0.02)
    summary = analytics.HistorySummary(scores=statistics, improvement=0.4, trend=trend)
    return analytics.GetHistoryResponse(buckets=buckets, summary=summary, next_page_token=next_page_token)


def trajectory(days: int, *, begin: int) -> prediction_service_pb2.PredictTrajectoryResponse:
    points = [
        prediction_service_pb2.TrajectoryPoint(
            date=day_proto(FIRST_DAY + timedelta(days=begin + index)),
            predicted_score=0.5,
            lower_bound=0.5 - 0.02 * index,
            upper_bound=0.5 + 0.02 * index,
            intervention_needed=index >= 10,
        )
        for index in range(days)
    ]
    return prediction_service_pb2.PredictTrajectoryResponse(
        points=points, interval_level=0.8, history_days=12, forecaster="pooled", model_version="3"
    )


@pytest.fixture
def known(fake: FakeServer) -> FakeServer:
    """A fake that knows the student s1."""
    fake.set_mastery("s1", completion=1, quiz=0.5)
    prediction = mastery_pb2.Prediction(
        horizon_days=7, predicted_score=0.6, lower_bound=0.5, upper_bound=0.7, interval_level=0.8
    )
    fake.answer("PredictNextWeek", prediction_service_pb2.PredictNextWeekResponse(prediction=prediction))
    advice = mastery_pb2.Recommendation(area="quizzes of chapter 4", rationale="the last were hard")
    fake.answer(
        "GetRecommendations", recommendation_service_pb2.GetRecommendationsResponse(recommendations=[advice])
    )
    return fake


# --- show -------------------------------------------------------------------------------------------------


def test_a_student_is_shown_with_forecast_and_advice(known: FakeServer, run: Run) -> None:
    shown = run("student", "show", "s1")

    assert shown.exit_code == 0, shown.output
    assert "s1: 0.550, developing" in shown.output
    assert "completion   1.000    0.40" in shown.output
    assert "in 7 days: 0.600 (0.500 to 0.700, 80%)" in shown.output
    assert "- quizzes of chapter 4: the last were hard" in shown.output


def test_a_student_with_too_little_history_is_shown_without_a_forecast(known: FakeServer, run: Run) -> None:
    known.fail("PredictNextWeek", "FAILED_PRECONDITION", reason="INSUFFICIENT_HISTORY", times=2)

    assert "s1: 0.550" in run("student", "show", "s1").output
    assert json.loads(run("student", "show", "s1", "-o", "json").stdout)["prediction"] is None


def test_a_student_is_shown_as_json_zeros_included(known: FakeServer, run: Run) -> None:
    shown = json.loads(run("student", "show", "s1", "--output", "json").stdout)

    assert shown["mastery"]["components"]["quality"] == 0
    assert shown["mastery"]["level"] == "LEVEL_DEVELOPING"
    assert shown["prediction"]["predicted_score"] == 0.6
    assert shown["recommendations"][0]["area"] == "quizzes of chapter 4"


# --- plots ------------------------------------------------------------------------------------------------


def rows(output: str) -> list[str]:
    """Returns the rows of the canvas, from the highest scores to the lowest."""
    return [line.partition("┤")[2] or line.partition("│")[2] for line in output.splitlines() if line[4:5] in "│┤"]


def test_a_history_is_drawn_where_its_scores_are(known: FakeServer, run: Run) -> None:
    known.answer("GetHistory", history(*(0.1 + 0.05 * index for index in range(17))))

    drawn = run("student", "history", "s1")

    assert drawn.exit_code == 0, drawn.output
    assert "\x1b" not in drawn.output
    canvas = rows(drawn.output)
    marked = [index for index, row in enumerate(canvas) if any("⠀" < sign <= "⣿" for sign in row)]
    # It rises from 0.1 to 0.9: low on the left, high on the right, empty above and below.
    assert marked[0] == pytest.approx(0.1 * len(canvas), abs=1.5)
    assert marked[-1] == pytest.approx(0.9 * len(canvas), abs=1.5)
    lefts = [min(column for column, sign in enumerate(canvas[row]) if "⠀" < sign <= "⣿") for row in marked]
    assert lefts == sorted(lefts, reverse=True)
    assert "10-01" in drawn.output
    assert "10-17" in drawn.output
    assert "17 days: mean 0.500" in drawn.output
    assert "improvement +0.400" in drawn.output
    assert "trend: improving, +0.0200 a day" in drawn.output


def test_a_trend_is_told_only_where_there_are_days_enough(known: FakeServer, run: Run) -> None:
    short = history(0.5, 0.6)
    short.summary.trend.trend = mastery_pb2.TREND_UNSPECIFIED
    known.answer("GetHistory", short)

    assert "trend: too few days to tell" in run("student", "history", "s1").output


def test_a_history_of_many_pages_is_drawn_whole(known: FakeServer, run: Run) -> None:
    pages = {"": history(0.2, next_page_token="2"), "2": history(0.8, begin=29)}
    known.answer("GetHistory", lambda request: pages[request.page_token])

    drawn = run("student", "history", "s1", "--since", "2026-10-01", "--until", "2026-10-31")
    listed = json.loads(run("student", "history", "s1", "-o", "json").stdout)

    assert "10-30" in drawn.output
    assert len(listed["buckets"]) == 2
    assert known.requests("GetHistory")[0].end_date.day == 31
    assert len(known.requests("GetHistory")) == 4


def test_a_student_without_history_is_said_to_have_none(known: FakeServer, run: Run) -> None:
    known.answer("GetHistory", history())

    assert run("student", "history", "s1").output == "s1: no day has a score\n"


def test_a_trajectory_is_drawn_after_the_history_with_its_interval(known: FakeServer, run: Run) -> None:
    known.answer("GetHistory", history(*[0.5] * 15))
    known.answer("PredictTrajectory", trajectory(14, begin=15))

    drawn = run("student", "trajectory", "s1")

    canvas = rows(drawn.output)
    width = max(len(row) for row in canvas)
    interval = [row.count("░") for row in canvas]
    line = next(row for row in canvas if "•" in row)
    assert line.index("•") > width * 0.45  # the forecast begins where the history ends
    assert all("░" not in row[: int(width * 0.4)] for row in canvas)
    # The interval opens to the right: widest in the middle row, nothing at the ends of the scale.
    assert max(interval) == interval[canvas.index(line)] or max(interval) == interval[canvas.index(line) + 1]
    assert interval[0] == interval[-1] == 0
    # As far up as down, but for the row of the line itself.
    above, below = canvas[: canvas.index(line)], canvas[canvas.index(line) + 1 :]
    assert sum("░" in row for row in above) >= 3
    assert sum("░" in row for row in below) >= 3
    assert "░ holds the score with a probability of 80%" in drawn.output
    assert "in 14 days: 0.500 (0.240 to 0.760); pooled 3 on 12 days" in drawn.output
    assert "from 2026-10-26" in drawn.output


def test_a_trajectory_is_drawn_alone_where_there_are_no_analytics(known: FakeServer, run: Run) -> None:
    known.answer("PredictTrajectory", trajectory(7, begin=15))

    drawn = run("student", "trajectory", "s1", "--days", "7")

    assert drawn.exit_code == 0, drawn.output
    assert "•" in drawn.output
    assert known.requests("PredictTrajectory")[0].horizon_days == 7


# --- export -----------------------------------------------------------------------------------------------


def exported(*lines: str, said: tuple[str, ...] | None = None) -> list[compliance.ExportStudentDataResponse]:
    """Returns an export of these events, with the manifest of those `said`."""
    told = lines if said is None else said
    digest = hashlib.sha256("".join(f"{line}\n" for line in told).encode()).digest()
    entry = compliance.ManifestEntry(kind=compliance.DATA_KIND_EVENT, count=len(told), sha256=digest)
    records = [compliance.ExportRecord(kind=compliance.DATA_KIND_EVENT, json=line) for line in lines]
    part = compliance.ExportStudentDataResponse
    manifest = compliance.ExportManifest(student_id="s1", entries=[entry] if told else [])
    return [*(part(record=record) for record in records), part(manifest=manifest)]


def test_an_export_is_written_as_sent_and_held_against_its_manifest(
    fake: FakeServer, run: Run, tmp_path: Path
) -> None:
    fake.answer("ExportStudentData", *exported('{"a": 1}', '{"b": "ü"}'))

    answer = run("student", "export", "s1")

    assert answer.exit_code == 0, answer.output
    lines = [json.loads(line) for line in (tmp_path / "s1.jsonl").read_text().splitlines()]
    assert [line["record"]["json"] for line in lines[:2]] == ['{"a": 1}', '{"b": "ü"}']
    assert lines[2]["manifest"]["entries"][0]["count"] == "2"
    assert (tmp_path / "s1.jsonl").stat().st_mode & 0o777 == 0o600
    assert "s1.jsonl is whole" in answer.output


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (exported('{"a": 1}')[:1], "manifest is missing"),
        (exported('{"a": 1}', said=("1", "2")), "event: 1 records, not 2"),
        (exported('{"a": 1}', said=()), "event: 1 records, not 0"),
        (exported(said=("1",)), "event: 0 records, not 1"),
        (exported('{"a": 1}', said=('{"a": 2}',)), "event: the digest is another"),
    ],
)
def test_an_export_that_is_not_whole_is_not_kept(
    fake: FakeServer, run: Run, tmp_path: Path, parts: list[Any], told: str
) -> None:
    fake.answer("ExportStudentData", *parts)

    answer = run("student", "export", "s1", "--file", "out.jsonl")

    assert answer.exit_code == 1
    assert told in answer.stderr
    assert not list(tmp_path.glob("out*"))


# --- erase ------------------------------------------------------------------------------------------------


def receipt(request: Any) -> compliance.EraseStudentDataResponse:
    erased = [compliance.ErasedData(kind=compliance.DATA_KIND_EVENT, count=12)]
    if request.validate_only:
        return compliance.EraseStudentDataResponse(receipt=compliance.ErasureReceipt(erased=erased))
    return compliance.EraseStudentDataResponse(
        receipt=compliance.ErasureReceipt(receipt_id="r-1", pseudonym="p-1", erased=erased)
    )


def erased(fake: FakeServer) -> list[bool]:
    """Returns of each call whether it was meant."""
    return [not request.validate_only for request in fake.requests("EraseStudentData")]


def test_a_student_is_erased_once_his_id_was_typed(fake: FakeServer, run: Run) -> None:
    fake.answer("EraseStudentData", receipt)

    answer = run("student", "erase", "s1", stdin="s1\n")

    assert answer.exit_code == 0, answer.output
    assert "event                12" in answer.output
    assert "receipt r-1; in the audit log he is now p-1" in answer.output
    assert erased(fake) == [False, True]


@pytest.mark.parametrize("typed", ["s2\n", "\n", "yes\n", ""])
def test_nothing_is_erased_when_something_else_was_typed(fake: FakeServer, run: Run, typed: str) -> None:
    fake.answer("EraseStudentData", receipt)

    assert run("student", "erase", "s1", stdin=typed).exit_code != 0
    assert erased(fake) == [False]


def test_a_dry_run_erases_nothing_and_asks_nothing(fake: FakeServer, run: Run) -> None:
    fake.answer("EraseStudentData", receipt)

    answer = run("student", "erase", "s1", "--dry-run", "--yes")

    assert answer.exit_code == 0
    assert "held about s1" in answer.output
    assert erased(fake) == [False]


def test_yes_erases_without_a_question_and_tells_the_receipt(fake: FakeServer, run: Run) -> None:
    fake.answer("EraseStudentData", receipt)

    answer = run("student", "erase", "s1", "--yes", "-o", "json")

    assert json.loads(answer.stdout)["receipt_id"] == "r-1"
    assert erased(fake) == [True]
