"""Every method of the contract: which are served, a valid request for each, and its answers."""

import asyncio
from importlib import import_module
from pkgutil import iter_modules
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import mastery.v1
from mastery.v1 import batch_service_pb2, recommendation_service_pb2
from tests.builders import event_id
from tests.integration.serving import DEADLINE, PATIENCE, Engine, Metadata, components, quiz_event

PACKAGE = "mastery.v1."
UNENDING = {"WatchMastery", "WatchBatch"}
"""Streams that go on for as long as somebody listens."""
COHORT = "class-7b"
BESIDE_THE_STUDENT: dict[str, dict[str, Any]] = {
    "CalculateMastery": {"components": components(0.25)},
    "RecordFeedback": {
        "recommendation_id": "practice-completion",
        "feedback": recommendation_service_pb2.FEEDBACK_HELPFUL,
    },
    "CreateCohort": {"cohort_id": COHORT, "display_name": "Class 7b"},
    "GetCohort": {"cohort_id": COHORT},
    "UpdateCohort": {"cohort_id": COHORT},
    "DeleteCohort": {"cohort_id": COHORT},
    "CompareCohorts": {"first_cohort_id": COHORT, "second_cohort_id": COHORT},
    "CompareToCohort": {"cohort_id": COHORT},
    "EraseStudentData": {"validate_only": True},
    "SubmitBatch": {"operation": batch_service_pb2.BATCH_OPERATION_PREDICT},
}
"""What a valid request needs further."""


def contract() -> dict[str, MethodDescriptor]:
    """Returns every method of the contract, served or not, by names such as "MasteryService.GetMastery"."""
    found: dict[str, MethodDescriptor] = {}
    for module in iter_modules(mastery.v1.__path__):
        if module.name.endswith("_pb2"):
            services = import_module(f"mastery.v1.{module.name}").DESCRIPTOR.services_by_name
            found |= {named(method): method for service in services.values() for method in service.methods}
    return found


def named(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


async def served_methods(engine: Engine) -> dict[str, MethodDescriptor]:
    """Returns the methods of the contract that a running server serves, as it says itself."""
    contract()  # so that the pool knows them all
    channel: Any = engine.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = await stub.ServerReflectionInfo(iter([question]), timeout=DEADLINE).read()
    names = [service.name for service in answer.list_services_response.service]
    services = [descriptor_pool.Default().FindServiceByName(name) for name in names if name.startswith(PACKAGE)]
    return {named(method): method for service in services for method in service.methods}


def request_for(
    method: MethodDescriptor, student_id: str, school_id: str = "", *, number: int = 1, **fields: Any
) -> Any:
    """Returns a valid request about one student; an event carries the `number`."""
    message: Any = GetMessageClass(method.input_type)(**BESIDE_THE_STUDENT.get(method.name, {}) | fields)
    names = method.input_type.fields_by_name
    event = quiz_event(student_id=student_id, school_id=school_id, number=number)
    if "events" in names:
        message.events.append(event)
    elif "event" in names:
        message.event.CopyFrom(event)
    if "items" in names:
        message.items.add(student_id=student_id)
        message.request_id = str(uuid5(NAMESPACE_OID, f"{student_id}/{school_id}/{number}"))
    if "batch_id" in names:
        message.batch_id = event_id(number)
    if "student_id" in names:
        message.student_id = student_id
    if "student_ids" in names:
        message.student_ids.append(student_id)
    if "add_student_ids" in names:
        message.add_student_ids.append(student_id)
    elif "listed" in names:
        message.listed.student_ids.append(student_id)
    if "school_id" in names:
        message.school_id = school_id
    return message


async def answers(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: Message | bytes,
    metadata: Metadata,
    *,
    deadline: float = DEADLINE,
    patience: float = PATIENCE,
    most: int = 1000,
) -> list[Any]:
    """Makes a call and returns its answers, up to `most`; of a stream without an end the first.

    A watcher to whom nothing is said within `patience` seconds gets none. Raises AioRpcError.
    """
    data = request if isinstance(request, bytes) else request.SerializeToString()
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = GetMessageClass(method.output_type).FromString
    terms: dict[str, Any] = {"metadata": metadata, "timeout": deadline}
    any_channel: Any = channel
    if not method.server_streaming:
        return [parse(await any_channel.unary_unary(path)(data, **terms))]
    if method.client_streaming:
        call = any_channel.stream_stream(path)(iter([data]), **terms)
    else:
        call = any_channel.unary_stream(path)(data, **terms)
    if method.name in UNENDING:
        deadline, most = patience, 1
    found: list[Any] = []
    try:
        async with asyncio.timeout(deadline):
            while len(found) < most and (answer := await call.read()) is not grpc.aio.EOF:
                found.append(parse(answer))
    except TimeoutError:
        pass
    call.cancel()
    return found
