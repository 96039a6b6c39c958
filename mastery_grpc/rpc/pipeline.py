"""What happens around every handler; composed once per method, when the server is built.

In order: authentication, parsing, access, validation, deadline, the handler, serializing; and whatever is
raised on the way becomes a status here and nowhere else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from mastery_grpc.application.event_protobuf import rule_violations
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.rpc.access import AccessRule, Call
from mastery_grpc.rpc.status import status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from mastery_grpc.rpc.authentication import TokenVerifier

Context = grpc.aio.ServicerContext[bytes, bytes]


class CallPipeline:
    """Composes the handlers of services. Servicers raise typed errors and never touch a context."""

    def __init__(self, verifier: TokenVerifier, *, default_timeout: float) -> None:
        """`default_timeout` (seconds) bounds the unary calls of clients that set no deadline."""
        self._verifier = verifier
        self._default_timeout = default_timeout

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
        rule = AccessRule(method)
        parse = _parser(method)
        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._bidirectional(rule, parse, handler))
        if method.client_streaming:
            raise ValueError(f"{method.full_name}: client streaming is not offered")
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._server_streaming(rule, parse, handler))
        return grpc.unary_unary_rpc_method_handler(self._unary(rule, parse, handler))

    def _unary(
        self, rule: AccessRule, parse: Callable[[bytes], Message], handler: Callable[..., Any]
    ) -> Callable[..., Any]:
        admit, default_timeout = self._admit, self._default_timeout

        async def call(data: bytes, context: Context) -> bytes:
            try:
                request, call = admit(rule, parse, data, context)
                # A deadline of the client's is kept by gRPC itself, which cancels the handler.
                if context.time_remaining() is None:
                    async with asyncio.timeout(default_timeout):
                        response = await handler(request, call)
                else:
                    response = await handler(request, call)
                serialized: bytes = response.SerializeToString()
            except Exception as error:
                await _abort(context, error)
            return serialized

        return call

    def _server_streaming(
        self, rule: AccessRule, parse: Callable[[bytes], Message], handler: Callable[..., Any]
    ) -> Callable[..., Any]:
        admit = self._admit

        async def call(data: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                request, call = admit(rule, parse, data, context)
                async for response in handler(request, call):
                    yield response.SerializeToString()
            except Exception as error:
                await _abort(context, error)

        return call

    def _bidirectional(
        self, rule: AccessRule, parse: Callable[[bytes], Message], handler: Callable[..., Any]
    ) -> Callable[..., Any]:
        verifier = self._verifier

        async def parsed(stream: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            async for data in stream:
                yield _validated(parse(data))

        async def call(stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            try:
                admitted = rule.admit(verifier.caller(context.invocation_metadata() or ()), None)
                async for response in handler(parsed(stream), admitted):
                    yield response.SerializeToString()
            except Exception as error:
                await _abort(context, error)

        return call

    def _admit(
        self, rule: AccessRule, parse: Callable[[bytes], Message], data: bytes, context: Context
    ) -> tuple[Message, Call]:
        # Who is calling comes first: a stranger learns nothing of the rules of a request.
        caller = self._verifier.caller(context.invocation_metadata() or ())
        request = parse(data)
        call = rule.admit(caller, request)
        return _validated(request), call


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


async def _abort(context: Context, error: Exception) -> None:
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
