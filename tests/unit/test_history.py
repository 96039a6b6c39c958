"""Histories from daily figures, against a naive second implementation, and trends against scipy and simulation."""

import statistics
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.read_history import HistoryRequest, ReadHistory
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.analytics.history import Granularity, HistoryBucket, bounds, buckets_of, summary_of
from mastery_grpc.domain.analytics.samples import Figures
from mastery_grpc.domain.analytics.trend import trend_of
from mastery_grpc.domain.errors import InvalidInput, InvalidPageToken, StudentNotFound
from mastery_grpc.domain.forecasting.forecast import Trend
from mastery_grpc.domain.scoring import Component
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, day, fractions, quiz, student

properties = settings(deadline=None, derandomize=True)
any_figures = st.builds(Figures, fractions, fractions, fractions, fractions, fractions)
any_days = st.dates(date(2024, 12, 1), date(2025, 3, 31))
histories = st.dictionaries(any_days, any_figures, min_size=1, max_size=60).map(
    lambda days: dict(sorted(days.items()))
)


def flat(score: float) -> Figures:
    return Figures(score, score, score, score, score)


def approximately(value: float) -> Any:
    return pytest.approx(value)


def same_month(one: date, other: date) -> bool:
    return (one.year, one.month) == (other.year, other.month)


def naive_buckets(days: Mapping[date, Figures], granularity: Granularity) -> list[HistoryBucket]:
    """Asks of every day of the calendar whether a bucket begins on it, and looks at each day that it has."""
    together = {
        Granularity.DAILY: lambda one, other: one == other,
        Granularity.WEEKLY: lambda one, other: one.isocalendar()[:2] == other.isocalendar()[:2],
        Granularity.MONTHLY: same_month,
    }[granularity]
    found = []
    start = min(days) - timedelta(days=40)
    while start <= max(days):
        if not together(start - timedelta(days=1), start):
            end = start
            while together(start, end + timedelta(days=1)):
                end += timedelta(days=1)
            its = [figures for each, figures in sorted(days.items()) if start <= each <= end]
            if its:
                found.append(
                    HistoryBucket(
                        start_day=start,
                        end_day=end,
                        last=its[-1],
                        mean_score=approximately(statistics.fmean(each.score for each in its)),
                        minimum_score=min(each.score for each in its),
                        maximum_score=max(each.score for each in its),
                        day_count=len(its),
                    )
                )
        start += timedelta(days=1)
    return found


# --- buckets ----------------------------------------------------------------------------------------------


@properties
@given(histories, st.sampled_from(Granularity))
def test_buckets_are_those_of_a_naive_walk_over_the_calendar(
    days: dict[date, Figures], granularity: Granularity
) -> None:
    assert buckets_of(days, granularity) == naive_buckets(days, granularity)


def test_days_without_events_are_gaps() -> None:
    found = buckets_of({day(0): flat(0.5), day(70): flat(0.7)}, Granularity.WEEKLY)
    assert [bucket.day_count for bucket in found] == [1, 1]
    assert buckets_of({}, Granularity.DAILY) == []


def test_a_week_begins_on_monday_also_across_years() -> None:
    assert bounds(date(2025, 1, 1), Granularity.WEEKLY) == (date(2024, 12, 30), date(2025, 1, 5))
    assert bounds(date(2024, 2, 10), Granularity.MONTHLY) == (date(2024, 2, 1), date(2024, 2, 29))


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("edge", [date.min, date.max])
def test_the_calendar_has_edges(edge: date, granularity: Granularity) -> None:
    start, end = bounds(edge, granularity)
    assert start <= edge <= end


# --- the whole range --------------------------------------------------------------------------------------


@properties
@given(histories)
def test_the_summary_is_what_the_standard_library_makes_of_the_scores(days: dict[date, Figures]) -> None:
    found = summary_of(days)
    scores = [figures.score for figures in days.values()]
    changes = [later - earlier for earlier, later in pairwise(scores)]
    assert found.scores.count == len(scores)
    assert found.scores.mean == pytest.approx(statistics.fmean(scores))
    assert found.scores.median == pytest.approx(statistics.median(scores))
    if len(scores) > 1:
        quartiles = statistics.quantiles(scores, n=4, method="inclusive")
        assert [found.scores.lower_quartile, found.scores.upper_quartile] == pytest.approx(
            [quartiles[0], quartiles[2]]
        )
        assert found.scores.standard_deviation == pytest.approx(statistics.stdev(scores), abs=1e-12)
    assert found.volatility == pytest.approx(statistics.stdev(changes) if len(changes) > 1 else 0.0, abs=1e-12)
    assert found.improvement == pytest.approx(scores[-1] - scores[0])
    assert [found.trend.component, *(each.component for each in found.component_trends)] == [None, *Component]


def test_of_no_days_everything_is_nought() -> None:
    found = summary_of({})
    assert (found.scores.count, found.volatility, found.improvement, found.trend.trend) == (0, 0.0, 0.0, None)


def test_a_steady_rise_has_no_volatility() -> None:
    assert summary_of({day(n): flat(n / 10) for n in range(10)}).volatility == 0.0


# --- trends -----------------------------------------------------------------------------------------------


@properties
@given(histories)
def test_a_trend_is_the_line_of_scipy_and_never_surer_of_itself(days: dict[date, Figures]) -> None:
    found = summary_of(days).trend
    if len(days) < 3:
        assert (found.trend, found.slope_per_day, found.lower_bound, found.upper_bound) == (None, 0.0, 0.0, 0.0)
        return
    numbers = [each.toordinal() for each in days]
    scores = [figures.score for figures in days.values()]
    line = stats.linregress(numbers, scores)
    assert found.slope_per_day == pytest.approx(line.slope, abs=1e-10)
    assert found.lower_bound <= found.slope_per_day <= found.upper_bound
    residuals = np.array(scores) - line.intercept - line.slope * np.array(numbers)
    reach = stats.t.ppf(0.975, len(days) - 2) * line.stderr
    if (residuals[1:] * residuals[:-1]).sum() < -1e-9:
        assert found.upper_bound - found.slope_per_day == pytest.approx(reach, rel=1e-6, abs=1e-9)
    else:
        assert found.upper_bound - found.slope_per_day >= reach * (1 - 1e-6) - 1e-9
    holds_nought = found.lower_bound <= 0.0 <= found.upper_bound
    assert (found.trend is Trend.STABLE) == holds_nought
    assert (found.trend is Trend.IMPROVING) == (found.lower_bound > 0)


def test_a_constant_is_stable_and_a_line_is_not() -> None:
    still = summary_of({day(n): flat(0.1) for n in range(20)}).trend
    assert (still.trend, still.slope_per_day, still.lower_bound, still.upper_bound) == (Trend.STABLE, 0, 0, 0)
    fall = summary_of({day(n): flat(0.9 - n / 100) for n in range(20)}).trend
    assert (fall.trend, fall.slope_per_day) == (Trend.DECLINING, approximately(-0.01))


def share_seen(rng: np.random.Generator, *, wanders: bool, rounds: int = 300) -> tuple[float, float]:
    """Returns how often a trend is seen where there is none: by us, and by least squares alone."""
    ours = plain = 0
    days = np.arange(40.0)
    for _ in range(rounds):
        values = rng.normal(0, 0.02, 40)
        if wanders:
            values = values.cumsum()
        ours += trend_of(None, days, values).trend is not Trend.STABLE
        plain += stats.linregress(days, values).pvalue < 0.05
    return ours / rounds, plain / rounds


def test_a_score_that_merely_wanders_is_seldom_taken_for_a_trend() -> None:
    rng = np.random.default_rng(1)
    ours, plain = share_seen(rng, wanders=True)
    assert plain > 0.6
    assert ours < 0.35
    assert share_seen(rng, wanders=False)[0] < 0.08


# --- the use case -----------------------------------------------------------------------------------------


@pytest.fixture
async def repository() -> MemoryStudentRepository:
    """Fifty days of quizzes, every other day."""
    repository = MemoryStudentRepository(clock=lambda: datetime.now(UTC))
    apply = ApplyEvents(repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: at(100))
    events = [quiz(number % 4, 4, number=number, time=at(2 * number)) for number in range(50)]
    await apply([Delivery(event) for event in events])
    return repository


def read_on(repository: MemoryStudentRepository, today: int = 100) -> ReadHistory:
    return ReadHistory(repository, clock=lambda: at(today))


async def test_pages_follow_each_other_without_gap_or_repeat(repository: MemoryStudentRepository) -> None:
    read = read_on(repository)
    for granularity in Granularity:
        whole = await read(HistoryRequest(student=STUDENT, granularity=granularity))
        assert whole.next_page_token == ""
        found: list[HistoryBucket] = []
        token = ""
        while True:
            page = await read(
                HistoryRequest(student=STUDENT, granularity=granularity, page_size=3, page_token=token)
            )
            assert page.summary == whole.summary
            found += page.buckets
            token = page.next_page_token
            if not token:
                break
            assert len(page.buckets) == 3
        assert found == whole.buckets


async def test_a_range_is_inclusive_and_ends_today_unless_told(repository: MemoryStudentRepository) -> None:
    page = await read_on(repository)(HistoryRequest(student=STUDENT, first=day(2), last=day(6)))
    assert [bucket.start_day for bucket in page.buckets] == [day(2), day(4), day(6)]
    page = await read_on(repository, today=4)(HistoryRequest(student=STUDENT))
    assert [bucket.start_day for bucket in page.buckets] == [day(0), day(2), day(4)]


async def test_a_week_cut_by_the_range_holds_what_lies_within(repository: MemoryStudentRepository) -> None:
    wanted = HistoryRequest(student=STUDENT, first=day(4), last=day(8), granularity=Granularity.WEEKLY)
    [first, second] = (await read_on(repository)(wanted)).buckets
    assert (first.start_day, first.end_day, first.day_count) == (day(0), day(6), 2)
    assert (second.start_day, second.day_count) == (day(7), 1)


async def test_a_known_student_without_events_in_the_range_has_an_empty_history(
    repository: MemoryStudentRepository,
) -> None:
    page = await read_on(repository)(HistoryRequest(student=STUDENT, first=day(1), last=day(1)))
    assert (page.buckets, page.summary.scores.count, page.next_page_token) == ([], 0, "")


async def test_of_an_unknown_student_there_is_no_history(repository: MemoryStudentRepository) -> None:
    with pytest.raises(StudentNotFound):
        await read_on(repository)(HistoryRequest(student=student("stranger")))


async def test_a_range_that_begins_after_today_is_refused(repository: MemoryStudentRepository) -> None:
    with pytest.raises(InvalidInput) as refused:
        await read_on(repository, today=3)(HistoryRequest(student=STUDENT, first=day(4)))
    assert refused.value.violations[0].field == "start_date"


async def test_a_token_is_good_for_its_own_history_only(repository: MemoryStudentRepository) -> None:
    read = read_on(repository)
    token = (await read(HistoryRequest(student=STUDENT, page_size=2))).next_page_token
    await read(HistoryRequest(student=STUDENT, page_token=token, page_size=7))
    others = (
        HistoryRequest(student=student("stranger"), page_token=token),
        HistoryRequest(student=STUDENT, granularity=Granularity.WEEKLY, page_token=token),
        HistoryRequest(student=STUDENT, first=day(0), page_token=token),
        HistoryRequest(student=STUDENT, last=day(100), page_token=token),
        HistoryRequest(student=STUDENT, page_token=token[:-4]),
        HistoryRequest(student=STUDENT, page_token="bm90IG91cnM="),
        HistoryRequest(student=STUDENT, page_token="ü"),
    )
    for wanted in others:
        with pytest.raises(InvalidPageToken):
            await read(wanted)
