"""The fake server itself."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from mastery_client.services import SERVICES
from mastery_client.testing.memory import Memory, Refused
from mastery_client.testing.statuses import status_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.rpc import status_pb2

    from mastery.v1 import mastery_pb2

SERVING = b"\x08\x01"
"""A `grpc.health.v1.HealthCheckResponse`, whose package the plain install does without."""

MOST_CALLS = 100
"""How many may be under way at once, watchers among them."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call as it reached the fake."""

    method: str
    request: Any
    """Of a stream of requests, one of them."""
    metadata: Mapping[str, str]
    time_remaining: float | None
    """How many seconds were left when it arrived; None without a deadline."""


class FakeServer:
    """Serves all methods of `mastery.v1` while the context is open, to clients of either face.

    Methods are named as in the protos, such as "GetMastery". Safe to use from any thread.
    """

    def __init__(self) -> None:
        self.port = 0
        self.calls: list[RecordedCall] = []
        self._memory = Memory()
        self._failures: defaultdict[str, deque[status_pb2.Status | None]] = defaultdict(deque)
        self._hanging: set[str] = set()
        self._answers: dict[str, Callable[[Any], Iterable[Message]]] = {}
        self._server: grpc.Server | None = None
        self._methods = {method.name: method for service in SERVICES for method in service.descriptor.methods}
        self._behaviours: dict[str, Callable[[Any], Message]] = {
            "GetMastery": self._memory.get_mastery,
            "BatchGetMastery": self._memory.batch_get_mastery,
            "CalculateMastery": self._memory.calculate_mastery,
            "IngestEvents": self._memory.ingest_events,
            "StreamEvents": self._memory.stream_events,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it listens, for a client."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begins to serve; after `stop` on the same port and with the same memory."""
        # Without sharing, a port still held by another process is an error and not a riddle.
        self._server = grpc.server(ThreadPoolExecutor(MOST_CALLS), options=[("grpc.so_reuseport", 0)])
        watch: Any = grpc.unary_stream_rpc_method_handler(_healthy)
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Watch": watch})
        self._server.add_generic_rpc_handlers(
            (health, *(self._service(service.descriptor) for service in SERVICES))
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Cuts all calls off and serves no more."""
        if self._server is not None:
            self._server.stop(None).wait()

    def requests(self, method: str) -> list[Any]:
        """Returns the requests that a method was sent, retries among them."""
        self._check(method)
        return [call.request for call in self.calls if call.method == method]

    def set_mastery(self, student_id: str, **components: float) -> mastery_pb2.Mastery:
        """Gives a student these components, keeps his others, and tells who watches. Returns his mastery."""
        return self._memory.set_mastery(student_id, components)

    def erase(self, student_id: str) -> None:
        """Forgets a student, and tells who watches."""
        self._memory.erase(student_id)

    def answer(self, method: str, *responses: Message | Callable[[Any], Message | Iterable[Message]]) -> None:
        """Lets a method answer with a message, a stream with several, or with what a function of the request
        returns."""
        self._check(method)

        def answers(request: Any) -> Iterable[Message]:
            for response in responses:
                given = response(request) if callable(response) else response
                if isinstance(given, Message):
                    yield given
                else:
                    yield from given

        self._answers[method] = answers

    def fail(self, method: str, code: str, *, after: int = 0, times: int = 1, **details: Any) -> None:
        """Lets calls of a method fail, `after` so many that go well; with the details that `status_with` takes.

        A stream of requests is a call with each of them.
        """
        self._check(method)
        self._failures[method].extend([None] * after + [status_with(code, **details)] * times)

    def forgive(self, method: str) -> None:
        """Lets a method fail no more."""
        self._check(method)
        self._failures[method].clear()

    def hang(self, method: str) -> None:
        """Lets a method never answer."""
        self._check(method)
        self._hanging.add(method)

    def _check(self, method: str) -> None:
        if method not in self._methods:
            raise ValueError(f"mastery.v1 has no method {method}")

    # --- the server ---------------------------------------------------------------------------------------

    def _service(self, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
        handlers = {method.name: self._handler(method) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        def answers(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from self._answers_to(method, request, context)
            except Refused as refused:
                context.abort_with_status(rpc_status.to_status(refused.status))

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            return next(answers(request, context))

        def acknowledge(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            for request in requests:
                yield from answers(request, context)

        coding: dict[str, Any] = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(acknowledge, **coding)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(answers, **coding)
        return grpc.unary_unary_rpc_method_handler(answer, **coding)

    def _answers_to(
        self, method: MethodDescriptor, request: Any, context: grpc.ServicerContext
    ) -> Iterator[Message]:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.calls.append(RecordedCall(method.name, request, metadata, context.time_remaining()))
        if method.name in self._hanging:
            _wait_for_end(context)
        failures = self._failures[method.name]
        if failures and (status := failures.popleft()) is not None:
            raise Refused(status)
        if method.name in self._answers:
            yield from self._answers[method.name](request)
        elif method.name == "WatchMastery":
            yield from self._memory.watch_mastery(request, context)
        elif method.name in self._behaviours:
            yield self._behaviours[method.name](request)
        else:
            raise Refused(status_with("UNIMPLEMENTED", reason="NOT_OFFERED", message="no answer is set"))


def _healthy(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield SERVING
    _wait_for_end(context)


def _wait_for_end(context: grpc.ServicerContext) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()
