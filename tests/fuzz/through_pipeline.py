"""Fuzzed messages through the whole pipeline, use cases on stores in memory included, in several processes.

Whatever is sent, the answer is one, or a refusal that the contract knows: never INTERNAL, never an exception in
the log, never trailers that a client would refuse.
"""

import asyncio
import base64
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from mastery.v1 import access_pb2, error_reason_pb2
from mastery_grpc.application.callers import Caller, Role
from tests.fuzz.decoder import PROCESSES
from tests.fuzz.memory_engine import MemoryEngine, Refused, Trailers
from tests.fuzz.messages import SCHOOLS, STUDENTS, FuzzedMessage, fuzzed_message

PORTION = 1000
"""Messages to one method that one process takes at a time."""
ENGINE_LIFE = 250
"""Messages after which a new engine is taken: students with thousands of events are slow."""
MOST_FAULTS = 5
"""Of a method, that are told in full."""
MOST_TRAILERS = 8 * 1024
"""Bytes that clients take."""
PLAIN = " !#$&'()*+,/:;=?@[]"
"""What is sent as it is in the message of a status, beside letters and digits; all else takes three bytes."""
STATUS_DETAILS = "grpc-status-details-bin"
REASONS = {
    name.removeprefix("ERROR_REASON_")
    for name, number in error_reason_pb2.ErrorReason.items()
    if number != error_reason_pb2.ERROR_REASON_UNSPECIFIED
}
BUGS = {"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS", "DEADLINE_EXCEEDED"}
ROLES = {access_pb2.ROLE_STUDENT: "s1", access_pb2.ROLE_TEACHER: "t1", access_pb2.ROLE_ADMIN: "a1"}


@dataclass
class Findings:
    """What came of the messages to one method."""

    method: str
    codes: Counter[str] = field(default_factory=Counter)
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, str] = (0.0, "")
    """Seconds, and the seed of the message."""

    @property
    def count(self) -> int:
        return self.codes.total()

    def add(self, other: "Findings") -> None:
        self.codes += other.codes
        self.fault_count += other.fault_count
        self.faults = (self.faults + other.faults)[:MOST_FAULTS]
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)

    def note(self, method: MethodDescriptor, message: FuzzedMessage, faults: Sequence[str]) -> None:
        for fault in faults:
            self.fault_count += 1
            if len(self.faults) < MOST_FAULTS:
                self.faults.append(f"{self.method}: {fault}\n  of {message.shown(method)}")


def offered_methods() -> list[str]:
    """Returns the full names of the methods that the service serves."""
    return [method.full_name for method in MemoryEngine().methods]


def call_all(seed: int, methods: Sequence[str], count: int) -> Iterator[Findings]:
    """Yields the findings of each portion, `count` messages to each method in all."""
    starts = [(method, start) for start in range(0, count, PORTION) for method in methods]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield from pool.map(
            call_portion,
            [method for method, _ in starts],
            [f"{seed}/{method}" for method, _ in starts],
            [start for _, start in starts],
            [min(start + PORTION, count) for _, start in starts],
        )


def call_portion(method: str, seed: str, start: int, end: int) -> Findings:
    """Sends the messages of these numbers to a method."""
    return asyncio.run(_call_portion(method, seed, start, end))


async def _call_portion(name: str, seed: str, start: int, end: int) -> Findings:
    findings = Findings(name)
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    began = time.perf_counter()
    for number in range(start, end):
        if (number - start) % ENGINE_LIFE == 0:
            engine = MemoryEngine()
            await engine.settle(STUDENTS, set(SCHOOLS))
            [method] = [each for each in engine.methods if each.full_name == name]
        message = fuzzed_message(method, f"{seed}/{number}")
        sent = time.perf_counter()
        with capture_logs() as entries:
            code, faults = await verdict(engine, method, message)
        findings.slowest = max(findings.slowest, (time.perf_counter() - sent, message.seed))
        findings.codes[code] += 1
        faults += [f"in the log: {entry}" for entry in entries if is_complaint(entry)]
        if (number - start) % ENGINE_LIFE == ENGINE_LIFE - 1:
            faults += [f"the audit log of {school!r} is broken" for school in await engine.close()]
        findings.note(method, message, faults + complaints)
        complaints.clear()
    findings.seconds = time.perf_counter() - began
    return findings


async def verdict(engine: MemoryEngine, method: MethodDescriptor, message: FuzzedMessage) -> tuple[str, list[str]]:
    """Returns the name of the code of the answer, and what is wrong with it."""
    try:
        answer = await engine.call(method, message.data, caller_for(method, message.seed))
    except Refused as refusal:
        status = status_in(refusal.trailers)
        return refusal.code.name, [
            *wrong_with_status(refusal.code, status),
            *wrong_with_trailers(refusal.message, refusal.trailers),
        ]
    except Exception:
        return "EXCEPTION", [traceback.format_exc(limit=-8)]
    response: Any = GetMessageClass(method.output_type).FromString(answer or b"")
    faults = [fault for part in statuses_in(response) for fault in wrong_with_status(code_of(part), part)]
    return "OK", faults


def caller_for(method: MethodDescriptor, seed: str) -> Caller:
    """Returns one who may call the method, most of them of no school."""
    rng = random.Random(f"{seed}/caller")
    role = rng.choice(method.GetOptions().Extensions[access_pb2.access].roles)
    if role == access_pb2.ROLE_STUDENT and rng.random() < 0.5:
        role = access_pb2.ROLE_ADMIN  # most of what a student asks is refused at the door
    school_id = rng.choice(("", "", "", "north"))
    name = access_pb2.Role.Name(role).removeprefix("ROLE_").lower()
    return Caller(ROLES.get(role, "service-1"), Role(name), school_id)


def is_complaint(entry: Any) -> bool:
    return entry["log_level"] in {"error", "critical"} or "exc_info" in entry


# --- what a refusal must be -------------------------------------------------------------------------------

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    return _CODES[status.code]


def status_in(trailers: Trailers) -> status_pb2.Status | None:
    details = dict(trailers).get(STATUS_DETAILS)
    return status_pb2.Status.FromString(details) if isinstance(details, bytes) else None


def wrong_with_status(code: grpc.StatusCode, status: status_pb2.Status | None) -> list[str]:
    if status is None:
        return [f"{code.name} without details"]
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    if len(infos) != 1:
        return [f"{code.name} with {len(infos)} of ErrorInfo"]
    info = error_details_pb2.ErrorInfo.FromString(infos[0].value)
    faults = [f"{code.name}: {status.message}"] if code.name in BUGS else []
    if info.reason not in REASONS or info.domain != "mastery.v1":
        faults.append(f"the reason {info.domain}/{info.reason} is not in the contract")
    return faults


def wrong_with_trailers(message: str, trailers: Trailers) -> list[str]:
    size = trailers_size(message, trailers)
    return [f"trailers of {size} bytes"] if size > MOST_TRAILERS else []


def trailers_size(message: str, trailers: Trailers) -> int:
    """Returns the size of the trailers on the wire, as HTTP/2 counts it: names, values and 32 bytes for each."""
    told: dict[str, str | bytes] = {
        "grpc-status": "00",
        "grpc-message": quote(message, safe=" !#$&'()*+,/:;=?@[]"),
    }
    told |= dict(trailers)
    return sum(
        32 + len(name) + len(base64.b64encode(value) if isinstance(value, bytes) else value)
        for name, value in told.items()
    )


def statuses_in(message: Message) -> Iterator[status_pb2.Status]:
    """Yields the statuses of the items of an answer."""
    for descriptor, value in message.ListFields():
        field: FieldDescriptor = descriptor
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else (value,):
            if isinstance(part, status_pb2.Status):
                yield part
            else:
                yield from statuses_in(part)
