"""Cohorts and comparisons over a real socket on a real Redis, fed by IngestEvents."""

import random
import statistics
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import grpc
import pytest
from scipy import stats

from mastery.v1 import analytics_service_pb2 as pb
from mastery.v1 import mastery_pb2
from mastery.v1.compliance_service_pb2 import (
    DATA_KIND_COHORT_MEMBERSHIP,
    EraseStudentDataRequest,
    ExportStudentDataRequest,
)
from mastery.v1.compliance_service_pb2_grpc import ComplianceServiceStub
from mastery_grpc.application.audit.reader import AuditFilter
from mastery_grpc.application.callers import Role
from mastery_grpc.domain.cohorts import MOST_MEMBERS
from tests.builders import event_id, student
from tests.integration.analysing import COHORT, Analyst, give_scores, ingest, lately
from tests.integration.serving import DEADLINE, Engine, eventually, failure_of, quiz_event, running_engine
from tests.integration.test_audit import AUDIT_KEY, opened_log
from tests.real.redis_servers import RedisServer

REQUEST_ID = "5d0b7a5e-5c3f-4a5e-9f7a-0a2a5b1f3C4D"
VALID: dict[str, dict[str, Any]] = {
    "CreateCohort": {"cohort_id": "c", "display_name": "C", "listed": pb.StudentList(student_ids=["s1"])},
    "UpdateCohort": {"cohort_id": "c"},
    "CompareCohorts": {"first_cohort_id": "c", "second_cohort_id": "c"},
    "CompareToCohort": {"student_id": "s1", "cohort_id": "c"},
}


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine:
        yield engine


@pytest.fixture
def analyst(engine: Engine) -> Analyst:
    return Analyst(engine.client(Role.ADMIN, "a1"))


# --- cohorts ----------------------------------------------------------------------------------------------


async def test_a_cohort_is_told_whole(analyst: Analyst) -> None:
    before = datetime.now(UTC)
    created = await analyst.create("s2", "s1", display_name="Class 7b ü")
    assert (created.cohort_id, created.display_name, created.member_count) == (COHORT, "Class 7b ü", 2)
    assert list(created.listed.student_ids) == ["s1", "s2"]
    assert created.etag
    assert before <= created.create_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert created.update_time == created.create_time
    assert await analyst.get() == created
    nobody = await analyst.create(cohort_id="nobody")
    assert (nobody.WhichOneof("membership"), nobody.member_count) == ("listed", 0)


async def test_cohorts_are_listed_without_their_members(analyst: Analyst) -> None:
    for number in range(3):
        await analyst.create("s1", cohort_id=f"c{number}")
    first = await analyst.call("ListCohorts", page_size=2)
    second = await analyst.call("ListCohorts", page_size=2, page_token=first.next_page_token)
    listed = [*first.cohorts, *second.cohorts]
    assert [cohort.cohort_id for cohort in listed] == ["c0", "c1", "c2"]
    assert {(cohort.WhichOneof("membership"), cohort.member_count) for cohort in listed} == {(None, 1)}
    assert second.next_page_token == ""


async def test_a_cohort_changes_as_asked(analyst: Analyst) -> None:
    created = await analyst.create("s1", "s2")
    changed = await analyst.update(add_student_ids=["s3"], remove_student_ids=["s1"], etag=created.etag)
    assert list(changed.listed.student_ids) == ["s2", "s3"]
    assert changed.create_time == created.create_time
    assert changed.etag != created.etag
    renamed = await analyst.update(display_name="8b")
    assert (renamed.display_name, list(renamed.listed.student_ids)) == ("8b", ["s2", "s3"])
    replaced = await analyst.update(listed=pb.StudentList(student_ids=["s9"]))
    assert list(replaced.listed.student_ids) == ["s9"]
    emptied = await analyst.update(listed=pb.StudentList())
    assert (emptied.member_count, emptied.WhichOneof("membership")) == (0, "listed")
    whole = await analyst.update(whole_school=pb.WholeSchool())
    assert whole.WhichOneof("membership") == "whole_school"


async def test_page_tokens_that_are_not_ours_are_refused(engine: Engine, analyst: Analyst) -> None:
    await ingest(engine, lately(random.Random(6)))
    for number in range(3):
        await analyst.create("s1", cohort_id=f"c{number}")
    history = (await analyst.history(page_size=2)).next_page_token
    cohorts = (await analyst.call("ListCohorts", page_size=2)).next_page_token
    assert history
    assert cohorts
    calls = [
        analyst.history(page_token=cohorts),
        analyst.history(page_token=history, granularity=pb.GRANULARITY_WEEKLY),
        analyst.history(page_token="AAAA"),
        analyst.history(page_token="\u202e"),
        analyst.call("ListCohorts", page_token=history),
        analyst.call("ListCohorts", page_token="c1"),
    ]
    for call in calls:
        failure = await failure_of(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_writing_is_idempotent_by_request_id_in_any_case(analyst: Analyst) -> None:
    created = await analyst.create("s1", request_id=REQUEST_ID)
    assert await analyst.create("s1", request_id=REQUEST_ID.lower()) == created
    change: dict[str, Any] = {"add_student_ids": ["s2"], "request_id": event_id(8)}
    changed = await analyst.update(**change)
    assert await analyst.update(**change) == changed
    failure = await failure_of(analyst.create("s1", "s2", request_id=REQUEST_ID))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert failure.metadata == (("request_id", REQUEST_ID.lower()),)


async def test_what_cannot_be_done_with_a_cohort_is_told_why(analyst: Analyst) -> None:
    created = await analyst.create("s1")
    failure = await failure_of(analyst.create("s2"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "COHORT_EXISTS")
    assert failure.resource == ("mastery.v1.Cohort", COHORT)
    await analyst.update(add_student_ids=["s2"])
    for call in (
        analyst.update(add_student_ids=["s3"], etag=created.etag),
        analyst.call("DeleteCohort", cohort_id=COHORT, etag=created.etag),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert failure.metadata == (("cohort_id", COHORT),)
    await analyst.create(cohort_id="all", listed=None, whole_school=pb.WholeSchool())
    failure = await failure_of(analyst.update("all", add_student_ids=["s1"]))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COHORT_BY_RULE")
    await analyst.call("DeleteCohort", cohort_id=COHORT)
    for call in (
        analyst.get(),
        analyst.update(display_name="x"),
        analyst.call("DeleteCohort", cohort_id=COHORT),
        analyst.compare(COHORT, "all"),
        analyst.compare("all", COHORT),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "COHORT_NOT_FOUND")
        assert failure.metadata == (("cohort_id", COHORT),)


async def test_ten_thousand_are_taken_and_no_more(analyst: Analyst) -> None:
    everybody = [f"student_{number:05}" for number in range(MOST_MEMBERS + 1)]
    created = await analyst.create(*everybody[:-1])
    assert created.member_count == MOST_MEMBERS
    assert list((await analyst.get()).listed.student_ids) == everybody[:-1]
    failure = await failure_of(analyst.update(add_student_ids=everybody[-1:]))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COHORT_TOO_LARGE")
    assert dict(failure.metadata) == {"cohort_id": COHORT, "size": "10001", "limit": "10000"}
    failure = await failure_of(analyst.create(*everybody, cohort_id="larger"))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["listed.student_ids"])


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("CreateCohort", {"cohort_id": "a}b"}, "cohort_id"),
        ("CreateCohort", {"cohort_id": ""}, "cohort_id"),
        ("CreateCohort", {"display_name": ""}, "display_name"),
        ("CreateCohort", {"display_name": "x" * 256}, "display_name"),
        ("CreateCohort", {"listed": None}, "membership"),
        ("CreateCohort", {"listed": pb.StudentList(student_ids=["s1", "s1"])}, "listed.student_ids"),
        ("CreateCohort", {"listed": pb.StudentList(student_ids=["s1", ""])}, "listed.student_ids[1]"),
        ("CreateCohort", {"request_id": "again"}, "request_id"),
        ("UpdateCohort", {"add_student_ids": ["s1", "s1"]}, "add_student_ids"),
        ("UpdateCohort", {"remove_student_ids": ["s 1"]}, "remove_student_ids[0]"),
        ("UpdateCohort", {"add_student_ids": ["s1"], "whole_school": pb.WholeSchool()}, ""),
        ("UpdateCohort", {"etag": "x" * 65}, "etag"),
        ("UpdateCohort", {"display_name": ""}, "display_name"),
        ("ListCohorts", {"page_size": -1}, "page_size"),
        ("CompareCohorts", {"confidence_level": nan}, "confidence_level"),
        ("CompareCohorts", {"confidence_level": inf}, "confidence_level"),
        ("CompareCohorts", {"confidence_level": 0.0}, "confidence_level"),
        ("CompareCohorts", {"confidence_level": 1.0}, "confidence_level"),
        ("CompareCohorts", {"second_cohort_id": "é"}, "second_cohort_id"),
        ("CompareToCohort", {"student_id": ""}, "student_id"),
    ],
)
async def test_requests_that_break_a_rule_are_refused(
    analyst: Analyst, name: str, fields: dict[str, Any], field: str
) -> None:
    failure = await failure_of(analyst.call(name, **VALID.get(name, {}) | fields))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert set(failure.fields) == {field}


async def test_a_whole_school_is_who_has_had_an_event(engine: Engine, analyst: Analyst) -> None:
    await analyst.create(cohort_id="all", listed=None, whole_school=pb.WholeSchool())
    assert (await analyst.get("all")).member_count == 0
    await give_scores(engine, {f"s{number}": 50 for number in range(7)})
    await give_scores(engine, {"n1": 50}, school_id="north")
    assert (await analyst.get("all")).member_count == 7
    [listed] = (await analyst.call("ListCohorts")).cohorts
    assert listed.member_count == 7
    assert (await analyst.standing("s1", "all")).cohort.count == 7


# --- comparisons ------------------------------------------------------------------------------------------


async def two_classes(
    engine: Engine, analyst: Analyst, seed: int = 1, size: int = 30
) -> tuple[list[Any], list[Any]]:
    """Returns the masteries of two classes, of which the second is the better."""
    rng = random.Random(seed)
    classes = {"a": (50, 12), "b": (66, 12)}
    for name, (mean, spread) in classes.items():
        scores = {f"{name}{n}": min(max(round(rng.gauss(mean, spread)), 0), 100) for n in range(size)}
        await give_scores(engine, scores)
        await analyst.create(*scores, f"{name}-without-a-score", cohort_id=name)
    found = []
    for name in classes:
        results = await engine.client().batch(*(f"{name}{number}" for number in range(size)))
        found.append([result.mastery for result in results])
    return found[0], found[1]


async def test_two_cohorts_are_compared_as_scipy_does(engine: Engine, analyst: Analyst) -> None:
    ours, theirs = await two_classes(engine, analyst)
    answer = await analyst.compare("a", "b")
    first, second = ([mastery.mastery_score for mastery in each] for each in (ours, theirs))
    score = answer.score
    assert (score.component, score.first.count, score.second.count) == (mastery_pb2.COMPONENT_UNSPECIFIED, 30, 30)
    assert score.first.mean == pytest.approx(statistics.fmean(first))
    assert score.second.median == pytest.approx(statistics.median(second))
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert score.welch_t == pytest.approx(welch.statistic)
    assert score.welch_degrees_of_freedom == pytest.approx(welch.df)
    assert score.welch_p_value == pytest.approx(welch.pvalue, rel=1e-6)
    interval = welch.confidence_interval(0.95)
    assert score.mean_difference_lower_bound == pytest.approx(interval.low)
    assert score.mean_difference_upper_bound == pytest.approx(interval.high)
    ranks = stats.mannwhitneyu(first, second)
    assert score.mann_whitney_u == pytest.approx(ranks.statistic)
    assert score.mann_whitney_p_value == pytest.approx(ranks.pvalue, rel=1e-6)
    assert score.hedges_g_lower_bound < score.hedges_g < score.hedges_g_upper_bound < 0
    assert not score.HasField("adjusted_p_value")
    assert [part.component for part in answer.components] == [1, 2, 3, 4]
    quiz, quality = answer.components[1], answer.components[2]
    assert quiz.adjusted_p_value == pytest.approx(4 * quiz.welch_p_value)
    assert not quality.HasField("welch_t")  # nobody's was observed, so it does not vary
    assert not quality.HasField("hedges_g")
    assert quality.mann_whitney_p_value == 1.0
    assert (answer.confidence_level, answer.common_count) == (0.95, 0)
    assert answer.verdict.startswith('"B" scores higher than "A" by ')


async def test_a_higher_level_makes_wider_intervals(engine: Engine, analyst: Analyst) -> None:
    await two_classes(engine, analyst)
    usual, surer = await analyst.compare("a", "b"), await analyst.compare("a", "b", confidence_level=0.999)
    assert surer.confidence_level == 0.999
    assert surer.score.hedges_g_lower_bound < usual.score.hedges_g_lower_bound
    assert surer.score.mean_difference_upper_bound > usual.score.mean_difference_upper_bound


async def test_small_cohorts_say_so_and_those_without_scores_are_refused(engine: Engine, analyst: Analyst) -> None:
    await give_scores(engine, {"s1": 10, "s2": 20, "s3": 80, "s4": 90})
    await analyst.create("s1", "s2", "stranger", cohort_id="low")
    await analyst.create("s3", "s4", cohort_id="high")
    answer = await analyst.compare("low", "high")
    assert "The samples are small, 2 and 2 scores: take this as a hint and no more." in answer.verdict
    assert answer.score.mann_whitney_p_value == pytest.approx(1 / 3)
    await analyst.create("s1", "stranger", cohort_id="one")
    failure = await failure_of(analyst.compare("high", "one"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COHORT_TOO_SMALL")
    assert dict(failure.metadata) == {"cohort_id": "one", "size": "1", "required_size": "2"}


async def test_a_class_is_compared_with_the_whole_school(engine: Engine, analyst: Analyst) -> None:
    await two_classes(engine, analyst)
    await analyst.create(cohort_id="all", listed=None, whole_school=pb.WholeSchool())
    answer = await analyst.compare("a", "all")
    assert (answer.score.second.count, answer.common_count) == (60, 30)
    assert "30 students are in both groups" in answer.verdict


async def test_a_comparison_is_of_now(engine: Engine, analyst: Analyst) -> None:
    await two_classes(engine, analyst, size=5)
    before = (await analyst.compare("a", "b")).score.first.maximum
    await engine.client().ingest(quiz_event(100, 100, student_id="a0", number=500))
    assert (await analyst.compare("a", "b")).score.first.maximum > before


async def test_a_student_is_placed_among_a_cohort(engine: Engine, analyst: Analyst) -> None:
    await give_scores(engine, {"s1": 10, "s2": 20, "s3": 20, "s4": 40, "guest": 30})
    await analyst.create("s1", "s2", "s3", "s4", "stranger")
    member, guest = await analyst.standing("s2"), await analyst.standing("guest")
    assert (member.score.rank, member.score.percentile_rank) == (2, 50)
    assert (guest.score.rank, guest.score.percentile_rank) == (2, 75)
    assert member.cohort.count == guest.cohort.count == 4
    scores = [(await engine.client().get(id_)).mastery_score for id_ in ("s1", "s2", "s3", "s4")]
    own = await engine.client().get("guest")
    assert guest.score.value == own.mastery_score
    expected = (own.mastery_score - statistics.fmean(scores)) / statistics.stdev(scores)
    assert guest.score.standard_score == pytest.approx(expected)
    assert [part.component for part in guest.components] == [1, 2, 3, 4]
    assert not guest.components[0].HasField("standard_score")
    assert (guest.components[0].rank, guest.components[0].percentile_rank) == (1, 50)


async def test_nobody_is_placed_where_there_is_nothing_to_compare(engine: Engine, analyst: Analyst) -> None:
    await give_scores(engine, {"s1": 10})
    await analyst.create("stranger")
    failure = await failure_of(analyst.standing("s1"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COHORT_TOO_SMALL")
    assert dict(failure.metadata) == {"cohort_id": COHORT, "size": "0", "required_size": "1"}
    failure = await failure_of(analyst.standing("stranger"))
    assert failure.reason == "STUDENT_NOT_FOUND"
    failure = await failure_of(analyst.standing("s1", "none"))
    assert failure.reason == "COHORT_NOT_FOUND"


async def test_while_redis_is_away_nothing_is_done_and_all_goes_on_afterwards(
    engine: Engine, analyst: Analyst, redis_server: RedisServer
) -> None:
    await two_classes(engine, analyst, size=3)
    before = await analyst.compare("a", "b")
    redis_server.kill()
    try:
        for call in (
            analyst.compare("a", "b"),
            analyst.standing("a1", "b"),
            analyst.history("a1"),
            analyst.get("a"),
            analyst.call("ListCohorts"),
            analyst.create("s1", cohort_id="c", request_id=REQUEST_ID),
            analyst.update("a", remove_student_ids=["a1"], request_id=REQUEST_ID),
            analyst.call("DeleteCohort", cohort_id="a"),
        ):
            failure = await failure_of(call)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
            assert failure.retry_delay is not None
    finally:
        redis_server.restart()

    async def is_back() -> bool:
        try:
            return bool(await analyst.compare("a", "b") == before)
        except grpc.aio.AioRpcError:
            return False  # the breaker is open still

    await eventually(is_back, within=30)
    assert (await analyst.create("s1", cohort_id="c", request_id=REQUEST_ID)).member_count == 1


# --- what is held about a student -------------------------------------------------------------------------


async def test_memberships_are_exported_and_erased_with_the_student(engine: Engine, analyst: Analyst) -> None:
    await give_scores(engine, {"s1": 10, "s2": 20})
    await analyst.create("s1", "s2")
    await analyst.create("s2", cohort_id="other")
    stub: Any = ComplianceServiceStub(engine.channel)
    terms: dict[str, Any] = {"metadata": analyst.client.metadata, "timeout": DEADLINE}
    told = [part async for part in stub.ExportStudentData(ExportStudentDataRequest(student_id="s1"), **terms)]
    records = [part.record for part in told if part.WhichOneof("part") == "record"]
    held = [record.json for record in records if record.kind == DATA_KIND_COHORT_MEMBERSHIP]
    assert held == ['{"cohort_id":"class-7b","display_name":"Class-7B"}']
    receipt = await stub.EraseStudentData(EraseStudentDataRequest(student_id="s1"), **terms)
    erased = {each.kind: each.count for each in receipt.receipt.erased}
    assert erased[DATA_KIND_COHORT_MEMBERSHIP] == 1
    assert list((await analyst.get()).listed.student_ids) == ["s2"]
    assert (await failure_of(analyst.history("s1"))).reason == "STUDENT_NOT_FOUND"
    added = await analyst.update(add_student_ids=["s1"])  # by one who knows of the erasure, or could
    assert list(added.listed.student_ids) == ["s1", "s2"]


# --- who is told of ---------------------------------------------------------------------------------------


async def test_calls_are_audited_about_the_students_they_name(engine: Engine, redis_url: str) -> None:
    await give_scores(engine, {f"s{number}": 10 * number for number in range(6)})
    analyst = Analyst(engine.client(Role.ADMIN, "auditee"))
    await analyst.create("s1", "s2")
    await analyst.update(add_student_ids=["s3"], remove_student_ids=["s1"])
    await analyst.update(listed=pb.StudentList(student_ids=["s4", "s2"]))
    await analyst.history("s5")
    await analyst.standing("s0")
    await analyst.get()
    expected = {
        "CreateCohort": {"s1", "s2"},
        "UpdateCohort": {"s1", "s2", "s3", "s4"},
        "GetHistory": {"s5"},
        "CompareToCohort": {"s0"},
        "GetCohort": set(),
    }
    async with opened_log(redis_url) as log:
        hashes = {}

        async def is_written() -> bool:
            return len((await log.entries(AuditFilter(caller="auditee", page_size=1000))).entries) >= 8

        await eventually(is_written)
        for number in range(6):
            pseudonym = await log.pseudonym_of(student(f"s{number}"))
            assert pseudonym is not None
            hashes[pseudonym.hex()] = f"s{number}"
        found: dict[str, set[str]] = {name: set() for name in expected}
        for entry in (await log.entries(AuditFilter(caller="auditee", page_size=1000))).entries:
            found[entry.method.rpartition("/")[2]].add(hashes[entry.student_hash])
    assert found == expected
