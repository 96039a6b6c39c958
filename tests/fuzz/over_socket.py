"""Fuzzed messages to a running server on a real Redis: what the pipeline alone does not show."""

import asyncio
from collections.abc import Callable

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_status import rpc_status
from structlog.testing import capture_logs

from mastery_grpc.application.callers import Role
from tests.fuzz.messages import SCHOOLS, STUDENTS, FuzzedMessage, fuzzed_message
from tests.fuzz.through_pipeline import Findings, code_of, is_complaint, statuses_in, wrong_with_status
from tests.integration.every_method import answers, served_methods
from tests.integration.serving import Engine, quiz_event, running_engine

AT_ONCE = 50
PATIENCE = 0.5
"""Of a watcher, in seconds."""


async def call_server(
    redis_url: str, seed: int, count: int, progress: Callable[[Findings], None] = lambda _: None
) -> list[Findings]:
    """Sends `count` messages to each method of a server of its own, and returns what came of them."""
    with capture_logs() as entries:
        async with running_engine(redis_url) as engine:
            await engine.client().ingest(
                *(quiz_event(student_id=one, school_id=school) for one in STUDENTS for school in set(SCHOOLS))
            )
            found = []
            for name, method in (await served_methods(engine)).items():
                found.append(await _call_method(engine, method, f"{seed}/{name}", count))
                progress(found[-1])
            assert await engine.is_serving()
    complaints = [str(entry) for entry in entries if is_complaint(entry)]
    if complaints:
        found[-1].fault_count += len(complaints)
        found[-1].faults += [f"in the log: {complaint}" for complaint in complaints[:3]]
    return found


async def _call_method(engine: Engine, method: MethodDescriptor, seed: str, count: int) -> Findings:
    findings, limit = Findings(method.full_name), asyncio.Semaphore(AT_ONCE)

    async def send(number: int) -> None:
        message = fuzzed_message(method, f"{seed}/{number}")
        async with limit:
            code, faults = await verdict(engine, method, message, f"caller-{number}")
        findings.codes[code] += 1
        findings.note(method, message, faults)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(send(number))
    return findings


async def verdict(
    engine: Engine, method: MethodDescriptor, message: FuzzedMessage, subject: str
) -> tuple[str, list[str]]:
    """Returns the name of the code of the answer, and what is wrong with it. Each caller calls once."""
    client = engine.client(Role.ADMIN, subject)
    try:
        found = await answers(engine.channel, method, message.data, client.metadata, patience=PATIENCE)
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a finished call in all but its type
        return error.code().name, wrong_with_status(error.code(), status)
    told = [status for answer in found for status in statuses_in(answer)]
    return "OK", [fault for status in told for fault in wrong_with_status(code_of(status), status)]
