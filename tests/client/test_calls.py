"""Calls: their arguments, what they carry, how often they are made, and how they fail."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from typing import Any, assert_type

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

import mastery_client
from mastery.v1 import (
    analytics_service_pb2,
    compliance_service_pb2,
    mastery_pb2,
    recommendation_service_pb2,
)
from mastery.v1 import mastery_service_pb2 as pb
from mastery_client import (
    AsyncClient,
    Client,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    MasteryError,
    NotFound,
    NotOffered,
    Unavailable,
    error_of,
)
from mastery_client.client import repeatable_methods
from mastery_client.methods import Async, Service
from mastery_client.services import SERVICES, MasteryService
from mastery_client.testing import FakeServer, status_with
from tests.client.conftest import TOKEN
from tests.integration.every_method import contract

DECLARED = {name: method for name, method in contract().items() if method.name != "StreamEvents"}
"""The methods that are no more than declared."""


def methods_of(service: type[Service[Any]]) -> set[str]:
    return {name.title().replace("_", "") for name in vars(service) if not name.startswith("__")} - {"Descriptor"}


# --- the contract -----------------------------------------------------------------------------------------


def test_every_method_of_the_contract_is_a_method_of_the_client() -> None:
    declared = {f"{service.descriptor.name}.{name}" for service in SERVICES for name in methods_of(service)}

    assert declared == set(contract())


@pytest.mark.parametrize("method", DECLARED.values(), ids=DECLARED)
def test_every_method_takes_the_request_and_returns_the_response_of_the_contract(
    method: MethodDescriptor,
) -> None:
    [service] = [each for each in SERVICES if each.descriptor == method.containing_service]
    [declared] = [each for each in vars(service).values() if getattr(each, "descriptor", None) == method]

    assert method.input_type == declared.request.DESCRIPTOR
    assert method.output_type == declared.response.DESCRIPTOR


def test_reads_and_writes_with_an_id_are_repeated_and_no_others() -> None:
    repeated = {method.name for method in repeatable_methods()}

    # A second deletion is NOT_FOUND; the streams go on by themselves.
    assert {name.partition(".")[2] for name in contract()} - repeated == {
        "DeleteCohort",
        "StreamEvents",
        "WatchBatch",
        "WatchMastery",
    }


# --- arguments --------------------------------------------------------------------------------------------


async def test_a_method_takes_the_fields_of_its_request(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.5)

    response = await client.mastery.get_mastery(student_id="s1")

    assert response.mastery.components.quiz == 0.5


async def test_a_method_takes_the_request_itself_and_leaves_it_as_it_is(
    client: AsyncClient, fake: FakeServer
) -> None:
    request = pb.CalculateMasteryRequest(student_id="s1", components=mastery_pb2.Components(quiz=0.5))

    await client.mastery.calculate_mastery(request)

    assert request.request_id == ""
    assert fake.requests("CalculateMastery")[0].components.quiz == 0.5


async def test_the_request_of_another_method_is_refused_before_it_is_sent(
    client: AsyncClient, fake: FakeServer
) -> None:
    wrong: Any = pb.BatchGetMasteryRequest(student_ids=["s1"])

    with pytest.raises(TypeError, match="GetMastery takes a GetMasteryRequest"):
        await client.mastery.get_mastery(wrong)
    assert fake.calls == []


async def test_a_field_that_the_request_has_not_is_refused(client: AsyncClient) -> None:
    with pytest.raises(ValueError, match="studnt_id"):
        await client.mastery.get_mastery(studnt_id="s1")  # type: ignore[call-overload]


def test_types_are_those_of_the_contract_in_both_faces(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1")
    with Client(fake.address) as waiting:
        assert_type(waiting.mastery.get_mastery(student_id="s1"), pb.GetMasteryResponse)
        assert_type(waiting.mastery.get_mastery(pb.GetMasteryRequest(student_id="s1")), pb.GetMasteryResponse)
        assert_type(waiting.analytics.list_cohorts.each(), Generator[analytics_service_pb2.Cohort, None, None])
    assert_type(client.mastery.watch_mastery(student_ids=["s1"]), AsyncGenerator[pb.WatchMasteryResponse, None])
    assert_type(client.with_options(timeout=1).mastery, MasteryService[Async])


# --- ids --------------------------------------------------------------------------------------------------


async def test_a_write_has_an_id_of_its_own(client: AsyncClient, fake: FakeServer) -> None:
    for _ in range(2):
        await client.mastery.calculate_mastery(student_id="s1", components=mastery_pb2.Components(quiz=1))

    first, second = (uuid.UUID(request.request_id) for request in fake.requests("CalculateMastery"))
    assert first != second
    assert first.version == 4


async def test_the_id_given_is_kept(client: AsyncClient, fake: FakeServer) -> None:
    own = str(uuid.uuid4())

    await client.mastery.calculate_mastery(student_id="s1", request_id=own)

    assert fake.requests("CalculateMastery")[0].request_id == own


async def test_every_call_can_be_found_by_an_id_of_its_own_or_one_given(
    client: AsyncClient, fake: FakeServer
) -> None:
    fake.set_mastery("s1")
    await client.mastery.get_mastery(student_id="s1")
    await client.mastery.get_mastery(student_id="s1")
    await client.with_options(request_id="mine").mastery.get_mastery(student_id="s1")

    first, second, given = (call.metadata["x-request-id"] for call in fake.calls)

    assert len({first, second, given}) == 3
    assert given == "mine"


# --- repeats ----------------------------------------------------------------------------------------------


async def test_a_read_is_repeated_when_the_service_is_away(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.5)
    fake.fail("GetMastery", "UNAVAILABLE", reason="STORAGE_UNAVAILABLE", times=2)

    response = await client.mastery.get_mastery(student_id="s1")

    assert response.mastery.components.quiz == 0.5
    assert len(fake.requests("GetMastery")) == 3


async def test_a_write_is_repeated_under_the_same_id(client: AsyncClient, fake: FakeServer) -> None:
    fake.answer("RecordFeedback", recommendation_service_pb2.RecordFeedbackResponse())
    fake.fail("RecordFeedback", "UNAVAILABLE")

    await client.recommendation.record_feedback(student_id="s1")

    first, second = fake.requests("RecordFeedback")
    assert first.request_id == second.request_id != ""


async def test_repeats_come_to_an_end(client: AsyncClient, fake: FakeServer) -> None:
    fake.fail("GetMastery", "UNAVAILABLE", reason="STORAGE_UNAVAILABLE", retry_delay=1.5, times=9)

    with pytest.raises(Unavailable) as raised:
        await client.mastery.get_mastery(student_id="s1")

    assert len(fake.requests("GetMastery")) == 4
    assert raised.value.reason == "STORAGE_UNAVAILABLE"
    assert raised.value.retry_delay == 1.5


async def test_a_write_without_an_id_is_made_once(client: AsyncClient, fake: FakeServer) -> None:
    fake.answer("DeleteCohort", analytics_service_pb2.DeleteCohortResponse())
    fake.fail("DeleteCohort", "UNAVAILABLE")

    with pytest.raises(Unavailable):
        await client.analytics.delete_cohort(cohort_id="c1")
    assert len(fake.requests("DeleteCohort")) == 1


@pytest.mark.parametrize("code", ["INTERNAL", "ABORTED", "RESOURCE_EXHAUSTED", "NOT_FOUND"])
async def test_a_read_that_fails_otherwise_is_made_once(client: AsyncClient, fake: FakeServer, code: str) -> None:
    fake.fail("GetMastery", code)

    with pytest.raises(MasteryError):
        await client.mastery.get_mastery(student_id="s1")
    assert len(fake.requests("GetMastery")) == 1


# --- deadlines --------------------------------------------------------------------------------------------


async def test_every_call_has_a_deadline(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1")
    fake.answer("ExportStudentData", compliance_service_pb2.ExportStudentDataResponse())

    await client.mastery.get_mastery(student_id="s1")
    await client.with_options(timeout=2).mastery.get_mastery(student_id="s1")
    async for _ in client.compliance.export_student_data(student_id="s1"):
        pass

    usual, given, export = (call.time_remaining or 0 for call in fake.calls)
    # gRPC rounds a deadline up, by a second at most.
    assert 3 < usual <= 11
    assert 0 < given <= 3
    assert 11 < export <= 301


async def test_a_call_that_takes_longer_fails(client: AsyncClient, fake: FakeServer) -> None:
    fake.hang("GetMastery")

    with pytest.raises(DeadlineExceeded):
        await client.with_options(timeout=0.2).mastery.get_mastery(student_id="s1")


async def test_a_timeout_of_the_callers_own_cancels_the_call(client: AsyncClient, fake: FakeServer) -> None:
    fake.hang("GetMastery")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.mastery.get_mastery(student_id="s1")


# --- pages ------------------------------------------------------------------------------------------------


async def test_each_goes_through_all_pages_an_empty_one_too(client: AsyncClient, fake: FakeServer) -> None:
    pages = {"": (["a", "b"], "2"), "2": ([], "3"), "3": (["c"], "")}

    def answer(request: Any) -> analytics_service_pb2.ListCohortsResponse:
        names, following = pages[request.page_token]
        cohorts = [analytics_service_pb2.Cohort(cohort_id=name) for name in names]
        return analytics_service_pb2.ListCohortsResponse(cohorts=cohorts, next_page_token=following)

    fake.answer("ListCohorts", answer)

    found = [cohort.cohort_id async for cohort in client.analytics.list_cohorts.each(page_size=2)]

    assert found == ["a", "b", "c"]
    assert [request.page_size for request in fake.requests("ListCohorts")] == [2, 2, 2]


async def test_pages_are_asked_for_as_they_are_needed(client: AsyncClient, fake: FakeServer) -> None:
    entry = compliance_service_pb2.AuditEntry(sequence=1)
    page = compliance_service_pb2.ListAuditEntriesResponse(entries=[entry], next_page_token="more")
    fake.answer("ListAuditEntries", page)

    assert (await anext(client.compliance.list_audit_entries.each())).sequence == 1

    assert len(fake.requests("ListAuditEntries")) == 1


# --- failures ---------------------------------------------------------------------------------------------


async def test_a_failure_tells_all_that_the_service_told(client: AsyncClient, fake: FakeServer) -> None:
    fake.fail(
        "GetMastery",
        "INVALID_ARGUMENT",
        reason="INVALID_FIELD",
        message="student_id: must match the pattern",
        metadata={"field": "student_id"},
        violations=[("student_id", "must match the pattern")],
    )

    with pytest.raises(InvalidRequest) as raised:
        await client.mastery.get_mastery(student_id="?")

    error = raised.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata == {"field": "student_id"}
    assert error.violations == (("student_id", "must match the pattern"),)
    assert str(error) == "INVALID_FIELD: student_id: must match the pattern"


async def test_an_item_fails_as_a_call_would(client: AsyncClient) -> None:
    [result] = (await client.mastery.batch_get_mastery(student_ids=["nobody"])).results

    error = error_of(result.error)

    assert isinstance(error, NotFound)
    assert error.metadata == {"student_id": "nobody"}


async def test_a_method_that_is_not_served_says_so(client: AsyncClient) -> None:
    with pytest.raises(NotOffered, match="NOT_OFFERED"):
        await client.analytics.get_history(student_id="s1")


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1", token=TOKEN) as client:
        with pytest.raises(Unavailable) as raised:
            await client.mastery.get_mastery(student_id="s1")

    assert raised.value.reason == ""


def test_every_code_has_an_exception_of_its_own_that_the_docstring_draws() -> None:
    kinds = MasteryError.__subclasses__()
    drawn = mastery_client.__doc__ or ""

    for kind in kinds:
        line = f"{kind.__name__:20}{', '.join(code.name for code in kind.codes)}"
        assert line in drawn
    assert {code for kind in kinds for code in kind.codes} == set(grpc.StatusCode) - {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
    }


def test_what_a_proxy_says_instead_of_the_service_is_an_error_all_the_same() -> None:
    error = error_of(status_with("ABORTED"))

    assert isinstance(error, Conflict)
    assert error.reason == ""


async def test_a_closed_client_says_that_it_is_closed(fake: FakeServer) -> None:
    client = AsyncClient(fake.address)
    await client.close()

    with pytest.raises(RuntimeError, match="closed"):
        await client.mastery.get_mastery(student_id="s1")
