"""How calls are observed: who is told when one begins and how it ended, whatever ended it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Metadata = Iterable[tuple[str, str | bytes]]
    Context = grpc.aio.ServicerContext[bytes, bytes]
    Handler = Callable[[Any, Context], Awaitable[bytes | None]]

OK, UNKNOWN = grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN


class ObservedCall(Protocol):
    """One call under way."""

    def end(self, code: grpc.StatusCode) -> None:
        """Takes note of the status that it ended with."""


class MethodObserver(Protocol):
    """Observes the calls of one method."""

    def begin(self, metadata: Metadata) -> ObservedCall:
        """Takes note of a call, in the task that will handle it."""


class CallObserver(Protocol):
    """Observes all calls."""

    def of_method(self, method: str) -> MethodObserver:
        """Returns the observer of a method, as service/method; asked once, when the server is composed."""

    def unknown_method(self) -> None:
        """Takes note of a call of a method that is not served."""


class Unobserved:
    """Implements `CallObserver`: nobody looks."""

    def of_method(self, method: str) -> Unobserved:
        return self

    def begin(self, metadata: Metadata) -> Unobserved:
        return self

    def end(self, code: grpc.StatusCode) -> None:
        pass

    def unknown_method(self) -> None:
        pass


def observed(handler: Handler, observer: MethodObserver) -> Handler:
    """Returns a handler whose calls are observed."""
    begin = observer.begin

    async def call(request: Any, context: Context) -> bytes | None:
        observation = begin(context.invocation_metadata() or ())
        code: grpc.StatusCode = UNKNOWN
        try:
            answer = await handler(request, context)
            code = _code_of(context, OK)
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the client gives up and when his deadline has passed.
            remaining = context.time_remaining()
            is_late = remaining is not None and remaining <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = _code_of(context, UNKNOWN)
            raise
        finally:
            observation.end(code)
        return answer

    return call


def _code_of(context: Context, otherwise: grpc.StatusCode) -> grpc.StatusCode:
    """Returns the status that the call was aborted with."""
    code: grpc.StatusCode | None = context.code()  # None if it was not, whatever the stubs say
    return otherwise if code is None else code


class UnknownMethods(grpc.GenericRpcHandler):
    """The last of a server's handlers: handles nothing, and tells that nobody did."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        self._observer.unknown_method()
