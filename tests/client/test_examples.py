"""The examples, as a reader runs them: on the fake server, and on the engine as far as that serves them."""

import asyncio
import itertools
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mastery_client
from mastery.v1 import (
    analytics_service_pb2,
    batch_service_pb2,
    compliance_service_pb2,
    mastery_pb2,
    prediction_service_pb2,
    recommendation_service_pb2,
)
from mastery_client import testing
from mastery_client.testing import FakeServer
from mastery_grpc.application.callers import Role
from tests.integration.every_method import served_methods
from tests.integration.serving import a_day, quiz_event, running_engine, token

EXAMPLES = Path(__file__).parents[2] / "clients" / "python" / "examples"
SERVICES = {
    "get_mastery": "MasteryService",
    "send_and_watch": "MasteryService",
    "who_needs_help": "PredictionService",
    "next_steps": "RecommendationService",
    "history": "AnalyticsService",
    "forecast_class": "BatchService",
    "export_student": "ComplianceService",
}
TELLS = {
    "get_mastery": "s1: 0.",
    "send_and_watch": "11 events accepted",
    "who_needs_help": "s1: ",
    "next_steps": " steps, ",
    "history": " days",
    "forecast_class": "s1: 0.",
    "export_student": "{",
}
"""What each says of a student s1."""


def run(example: str, address: str, bearer: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), "s1", "--address", address, "--token", bearer]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def batch_watched(_: Any) -> Iterator[batch_service_pb2.WatchBatchResponse]:
    for state, progress in (
        (batch_service_pb2.BATCH_STATE_RUNNING, 0.5),
        (batch_service_pb2.BATCH_STATE_SUCCEEDED, 1),
    ):
        yield batch_service_pb2.WatchBatchResponse(batch=batch_service_pb2.Batch(state=state, progress=progress))


@pytest.fixture
def answering(fake: FakeServer) -> FakeServer:
    """A fake that knows one student."""
    fake.set_mastery("s1", quiz=0.5)
    intervention = prediction_service_pb2.Intervention(intervention_needed=True, reasons=["he stopped"])
    fake.answer(
        "CheckIntervention",
        prediction_service_pb2.CheckInterventionResponse(
            results=[prediction_service_pb2.InterventionResult(student_id="s1", intervention=intervention)]
        ),
    )
    fake.answer("GetRecommendations", recommendation_service_pb2.GetRecommendationsResponse())
    fake.answer("GetLearningPath", recommendation_service_pb2.GetLearningPathResponse())
    bucket = analytics_service_pb2.HistoryBucket(start_date=a_day(2026, 1, 12), last_score=0.5, day_count=2)
    fake.answer("GetHistory", analytics_service_pb2.GetHistoryResponse(buckets=[bucket]))
    batch = batch_service_pb2.Batch(batch_id=str(uuid.uuid4()))
    fake.answer("SubmitBatch", batch_service_pb2.SubmitBatchResponse(batch=batch))
    fake.answer("WatchBatch", batch_watched)
    result = batch_service_pb2.BatchResult(student_id="s1", prediction=mastery_pb2.Prediction(predicted_score=0.5))
    fake.answer("ListBatchResults", batch_service_pb2.ListBatchResultsResponse(results=[result]))
    part, manifest = compliance_service_pb2.ExportStudentDataResponse, compliance_service_pb2.ExportManifest()
    record = compliance_service_pb2.ExportRecord(json="{}")
    fake.answer("ExportStudentData", part(record=record), part(manifest=manifest))
    return fake


def test_there_is_an_example_for_each_service() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(SERVICES)


@pytest.mark.parametrize("example", SERVICES)
def test_an_example_runs_on_the_fake_server(example: str, answering: FakeServer) -> None:
    answer = run(example, answering.address, "any")

    assert answer.returncode == 0, answer.stderr
    assert TELLS[example] in answer.stdout


async def test_the_examples_run_on_the_engine(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        address, bearer = f"127.0.0.1:{engine.port}", token(Role.ADMIN)
        await engine.client().ingest(*(quiz_event(number=number) for number in range(1, 5)))
        served = {name.partition(".")[0] for name in await served_methods(engine)}

        answers = {example: await asyncio.to_thread(run, example, address, bearer) for example in SERVICES}

    for example, answer in answers.items():
        if SERVICES[example] in served:
            assert answer.returncode == 0, (example, answer.stderr)
            assert TELLS[example] in answer.stdout, (example, answer.stdout)
        else:
            assert "NotOffered" in answer.stderr, (example, answer.stderr)


def test_an_export_that_was_cut_off_is_told_so(answering: FakeServer) -> None:
    record = compliance_service_pb2.ExportRecord(json="{}")
    answering.answer("ExportStudentData", compliance_service_pb2.ExportStudentDataResponse(record=record))

    answer = run("export_student", answering.address, "any")

    assert answer.returncode == 1
    assert "cut off" in answer.stderr


def indented_block(docstring: str | None) -> str:
    """Returns the first block of code of a docstring."""
    block = (docstring or "").partition("\n\n    ")[2]
    lines = itertools.takewhile(lambda line: not line or line.startswith("    "), f"    {block}".splitlines())
    return textwrap.dedent("\n".join(lines))


def test_the_example_of_the_fake_server_works_as_it_stands() -> None:
    imports = "from mastery_client import Client\nfrom mastery_client.testing import FakeServer\n"
    script = imports + indented_block(testing.__doc__)

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 0, run.stderr


def test_the_example_of_the_client_works_but_for_the_address(answering: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("any")
    entry = compliance_service_pb2.AuditEntry(method="mastery.v1.MasteryService/GetMastery")
    answering.answer("ListAuditEntries", compliance_service_pb2.ListAuditEntriesResponse(entries=[entry]))
    imports, _, body = indented_block(mastery_client.__doc__).partition("\n\n")
    here = body.replace("mastery.example.org:443", answering.address)
    here = here.replace("/run/secrets/mastery", str(tmp_path))
    script = "\n".join(
        ["import asyncio", "from pathlib import Path", imports, "async def main():"]
        + [f"    {line}" for line in here.splitlines()]
        + ["asyncio.run(main())"]
    )

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["STUDENT_NOT_FOUND", "mastery.v1.MasteryService/GetMastery"]
