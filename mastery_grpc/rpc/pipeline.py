"""What happens around every handler; composed once per method, when the server is built.

In order: observation, authentication, rate limit, parsing, access, validation, deadline, the handler, serializing,
audit; and whatever is raised on the way becomes a status here and nowhere else.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from mastery_grpc.application.audit.log import AuditedCall
from mastery_grpc.application.event_protobuf import rule_violations
from mastery_grpc.domain.errors import InvalidInput, SlowReader, StorageUnavailable
from mastery_grpc.rpc.access import AccessRule, Call
from mastery_grpc.rpc.observation import Unobserved, observed
from mastery_grpc.rpc.status import status_of
from mastery_grpc.rpc.subjects import names_subjects, subjects_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
    from contextlib import AbstractContextManager
    from datetime import datetime

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from mastery_grpc.application.callers import CallClass, Caller
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.rpc.observation import CallObserver

Context = grpc.aio.ServicerContext[bytes, bytes]

REQUEST_ID = "x-request-id"
LONGEST_REQUEST_ID = 64
AUDITED_AT_ONCE = 1000
"""Students of one stream of events before they are told to the audit log."""
EVENTS_OF_A_CALL = 1000
"""So many events of a stream count as one more call against the caller's limit, as in IngestEvents."""
OK, CANCELLED = 0, 1
FAREWELL_SECONDS = 0.5


class Authenticator(Protocol):
    """Tells who calls."""

    async def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Returns the caller. Raises Unauthenticated; Unavailable if the keys cannot be had just now."""


class CallLimiter(Protocol):
    """Keeps callers to their limits."""

    async def admit(self, caller: Caller, call_class: CallClass) -> None:
        """Counts one call. Raises RateLimited."""

    def open_stream(self, caller: Caller) -> AbstractContextManager[None]:
        """Counts one stream while the context is open. Raises TooManyOpen on entering."""


class AuditTrail(Protocol):
    """Takes down who accessed whose data."""

    def record(self, call: AuditedCall) -> None:
        """Takes down one call; does not wait. Raises StorageUnavailable if it can take no more."""


class CallPipeline:
    """Composes the handlers of services. Servicers raise typed errors and never touch a context."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        limiter: CallLimiter,
        audit: AuditTrail,
        clock: Callable[[], datetime],
        default_timeout: float,
        slow_reader_timeout: float,
        observer: CallObserver | None = None,
    ) -> None:
        """`default_timeout` (seconds) bounds the unary calls of clients that set no deadline. A stream whose
        reader takes no message for `slow_reader_timeout` (seconds) is ended."""
        self._authenticator = authenticator
        self._limiter = limiter
        self._audit = audit
        self._clock = clock
        self._default_timeout = default_timeout
        self._slow_reader_timeout = slow_reader_timeout
        self._observer = observer or Unobserved()

    def compose(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Returns the handlers of a service, whose methods `servicer` has under the same names.

        Raises AttributeError for a missing method, ValueError for one that does not say who may call it.
        """
        handlers = {
            method.name: self._handler(method, getattr(servicer, method.name)) for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    # No deserializer and no serializer below: bytes are parsed in the pipeline, so that a malformed request
    # is the caller's INVALID_ARGUMENT and not the server's INTERNAL.
    def _handler(self, method: MethodDescriptor, handler: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        stage = _Stage(method, self._authenticator, self._limiter, self._audit, self._clock)
        observer = self._observer.of_method(stage.rule.method)
        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(observed(self._bidirectional(stage, handler), observer))
        if method.client_streaming:
            raise ValueError(f"{method.full_name}: client streaming is not offered")
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(observed(self._server_streaming(stage, handler), observer))
        return grpc.unary_unary_rpc_method_handler(observed(self._unary(stage, handler), observer))

    def _unary(self, stage: _Stage, handler: Callable[..., Any]) -> Callable[..., Any]:
        default_timeout = self._default_timeout

        async def call(data: bytes, context: Context) -> bytes:
            visit = stage.visit(context)
            try:
                request, call = await visit.admit(data)
                # A deadline of the client's is kept by gRPC itself, which cancels the handler.
                if context.time_remaining() is None:
                    async with asyncio.timeout(default_timeout):
                        response = await handler(request, call)
                else:
                    response = await handler(request, call)
                visit.tell(response)
                serialized: bytes = response.SerializeToString()
                visit.record(OK)
            except asyncio.CancelledError:
                visit.break_off()
                raise
            except Exception as error:
                await visit.abort(error)
            return serialized

        return call

    def _server_streaming(self, stage: _Stage, handler: Callable[..., Any]) -> Callable[..., Any]:
        limiter, patience = self._limiter, self._slow_reader_timeout

        async def call(data: bytes, context: Context) -> None:
            visit = stage.visit(context)
            try:
                request, call = await visit.admit(data)
                with limiter.open_stream(call.caller):
                    visit.record(OK)  # now, because it may go on for hours
                    await _send(handler(request, call), context, patience)
            except Exception as error:
                await visit.abort(error)

        return call

    def _bidirectional(self, stage: _Stage, handler: Callable[..., Any]) -> Callable[..., Any]:
        limiter, patience = self._limiter, self._slow_reader_timeout

        async def call(stream: AsyncIterator[bytes], context: Context) -> None:
            visit = stage.visit(context)
            try:
                admitted = await visit.admit_stream()
                with limiter.open_stream(admitted.caller):
                    await _send(handler(visit.parsed(stream), admitted), context, patience)
                visit.record(OK)
            except asyncio.CancelledError:
                visit.break_off()
                raise
            except Exception as error:
                await visit.abort(error)

        return call


class _Stage:
    """What is known of a method before any call of it."""

    def __init__(
        self,
        method: MethodDescriptor,
        authenticator: Authenticator,
        limiter: CallLimiter,
        audit: AuditTrail,
        clock: Callable[[], datetime],
    ) -> None:
        self.rule = AccessRule(method)
        self.parse = _parser(method)
        self.subjects = subjects_of(method.input_type)
        # What a request that names nobody is about shows in its answer.
        self.told = None if names_subjects(method.input_type) else subjects_of(method.output_type)
        self.authenticate = authenticator.caller
        self.limit = limiter.admit
        self.audit = audit.record
        self.clock = clock

    def visit(self, context: Context) -> _Visit:
        return _Visit(self, context)


class _Visit:
    """One call on its way through the pipeline: who makes it and whom it is about, as far as is known yet."""

    __slots__ = ("_caller", "_context", "_metadata", "_request_id", "_school_id", "_stage", "_students")

    def __init__(self, stage: _Stage, context: Context) -> None:
        self._stage = stage
        self._context = context
        self._metadata = context.invocation_metadata() or ()
        self._request_id = _request_id(self._metadata)
        self._caller: Caller | None = None
        self._school_id = ""
        self._students: dict[StudentKey, None] = {}
        context.set_trailing_metadata(((REQUEST_ID, self._request_id),))
        structlog.contextvars.bind_contextvars(request_id=self._request_id, rpc_method=stage.rule.method)

    async def admit(self, data: bytes) -> tuple[Message, Call]:
        """Returns the request and the call, both found to be good."""
        stage = self._stage
        # Who is calling comes first: a stranger learns nothing of the rules of a request.
        caller = await self._identify()
        request = stage.parse(data)
        if getattr(request, "school_id", "") in ("", caller.school_id):
            # Else he may have been refused another school, and nobody in his own was meant.
            self._students = dict.fromkeys(stage.subjects(request, caller.school_id))
        call = stage.rule.admit(caller, request, self._request_id)
        if call.school_id != caller.school_id:
            self._school_id = call.school_id
            self._students = dict.fromkeys(stage.subjects(request, call.school_id))
        return _validated(request), call

    async def admit_stream(self) -> Call:
        """Returns the call that sends many requests."""
        return self._stage.rule.admit(await self._identify(), None, self._request_id)

    async def parsed(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        """Yields the requests of a stream, each found to be good."""
        caller, count = self._caller, 0
        async for data in stream:
            count += 1
            if count % EVENTS_OF_A_CALL == 0 and caller is not None:
                await self._stage.limit(caller, self._stage.rule.call_class)
            request = self._stage.parse(data)
            self._students |= dict.fromkeys(self._stage.subjects(request, self._school_id))
            if len(self._students) >= AUDITED_AT_ONCE:
                self.record(OK)
                self._students = {}
            yield _validated(request)

    def tell(self, response: Message) -> None:
        """Takes note of whom the answer to a request that names nobody is about."""
        if self._stage.told is not None:
            self._students |= dict.fromkeys(self._stage.told(response, self._school_id))

    def record(self, code: int) -> None:
        """Takes the call down in the audit log. Raises StorageUnavailable if that is full."""
        if self._caller is not None:
            self._stage.audit(
                AuditedCall(
                    time=self._stage.clock(),
                    caller=self._caller,
                    school_id=self._school_id,
                    method=self._stage.rule.method,
                    students=tuple(self._students),
                    code=code,
                    request_id=self._request_id,
                )
            )

    def break_off(self) -> None:
        """Takes down a call whose caller did not wait for its end: what he asked for may have been done."""
        with suppress(StorageUnavailable):  # it is over anyhow
            self.record(CANCELLED)

    async def abort(self, error: Exception) -> None:
        """Ends the call with the status of an error."""
        status = status_of(error)
        try:
            self.record(status.code)
        except StorageUnavailable as unrecorded:
            status = status_of(unrecorded)
        told = rpc_status.to_status(status)
        ending = self._context.abort(
            told.code, told.details, (*told.trailing_metadata, (REQUEST_ID, self._request_id))
        )
        if not isinstance(error, SlowReader):
            await ending
        # The status waits behind what the reader has not taken: he gets it when he reads on, if ever he does.
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await ending

    async def _identify(self) -> Caller:
        caller = self._caller = await self._stage.authenticate(self._metadata)
        self._school_id = caller.school_id
        await self._stage.limit(caller, self._stage.rule.call_class)
        return caller


async def _send(responses: AsyncGenerator[Message], context: Context, patience: float) -> None:
    """Sends responses as they come. Raises SlowReader if one could not be handed over in `patience` seconds."""
    async with aclosing(responses):
        async for response in responses:
            data = response.SerializeToString()
            try:
                # Returns once flow control lets the message go: no more than one of them is ever held.
                async with asyncio.timeout(patience):
                    await context.write(data)
            except TimeoutError:
                raise SlowReader from None
            except grpc.aio.InternalError:
                return  # the reader has gone


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the id that the caller gave his call, or a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and 0 < len(value) <= LONGEST_REQUEST_ID:
            return value
    return uuid.uuid4().hex


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    from_string = GetMessageClass(method.input_type).FromString

    def parse(data: bytes) -> Message:
        try:
            return from_string(data)
        except DecodeError:
            raise InvalidInput.of("request", f"is not a serialized {method.input_type.full_name}") from None

    return parse


def _validated(request: Message) -> Message:
    if violations := rule_violations(request):
        raise InvalidInput(violations)
    return request
