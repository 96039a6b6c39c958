"""Messages of every degree of badness to every RPC; `make fuzz` sends 100,000 to each."""

import grpc
import pytest

from mastery_grpc.domain.errors import InvalidInput, Violation
from mastery_grpc.rpc.status import status_of
from tests.fuzz.memory_engine import MemoryEngine
from tests.fuzz.messages import fuzzed_message
from tests.fuzz.over_socket import call_server
from tests.fuzz.through_pipeline import call_portion, offered_methods, wrong_with_status, wrong_with_trailers
from tests.integration.every_method import served_methods
from tests.integration.serving import running_engine

SEED = 20260112
THROUGH_PIPELINE = 300
OVER_SOCKET = 30
METHODS = offered_methods()


@pytest.mark.parametrize("method", METHODS)
def test_no_message_whatever_is_an_error_of_the_service(method: str) -> None:
    findings = call_portion(method, f"{SEED}/{method}", 0, THROUGH_PIPELINE)
    assert findings.faults == []
    assert findings.count == THROUGH_PIPELINE
    assert findings.codes["OK"] > THROUGH_PIPELINE / 50
    assert findings.count - findings.codes["OK"] > THROUGH_PIPELINE / 10


async def test_no_message_over_a_socket_is_an_error_of_the_server(redis_url: str) -> None:
    found = await call_server(redis_url, SEED, OVER_SOCKET)
    assert [fault for findings in found for fault in findings.faults] == []
    assert {findings.count for findings in found} == {OVER_SOCKET}
    assert sorted(findings.method for findings in found) == sorted(METHODS)


async def test_the_pipeline_under_fuzz_has_the_methods_that_a_server_serves(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        served = {method.full_name for method in (await served_methods(engine)).values()}
    assert served == set(METHODS)


def test_a_message_is_found_again_by_its_seed() -> None:
    for method in MemoryEngine().methods:
        seeds = [f"{SEED}/{number}" for number in range(50)]
        first, again = [[fuzzed_message(method, seed).kind for seed in seeds] for _ in range(2)]
        assert first == again
        assert len(set(first)) > 5


def test_what_the_fuzz_looks_for_would_be_found() -> None:
    bug = status_of(RuntimeError("a secret"))
    assert wrong_with_status(grpc.StatusCode.INTERNAL, bug) == ["INTERNAL: internal error"]
    assert wrong_with_status(grpc.StatusCode.NOT_FOUND, None) == ["NOT_FOUND without details"]
    invalid = status_of(InvalidInput([Violation("student_id", "must be given")]))
    assert wrong_with_status(grpc.StatusCode.INVALID_ARGUMENT, invalid) == []
    [info, *_] = invalid.details
    info.value = info.value.replace(b"INVALID_FIELD", b"INVALID_FIELT")
    assert wrong_with_status(grpc.StatusCode.INVALID_ARGUMENT, invalid) != []
    assert wrong_with_trailers("é" * 1400, ()) != []
    assert wrong_with_trailers("é" * 1300, ()) == []
