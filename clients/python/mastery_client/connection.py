"""One connection to the service, and what every call on it carries."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from mastery_client.channel import Tls, is_plaintext, open_channel
from mastery_client.errors import REQUEST_ID, MasteryError, error_from
from mastery_client.tokens import Token, TokenSource
from mastery_client.tracing import trace_context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message


DEFAULT_TIMEOUT = 10.0
DEFAULT_STREAM_PATIENCE = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How calls are made."""

    timeout: float | None = None
    """In seconds; without it unary calls take `default_timeout` and streams have no end."""
    default_timeout: float = DEFAULT_TIMEOUT
    stream_patience: float = DEFAULT_STREAM_PATIENCE
    """For how many seconds a stream that goes on by itself looks for the service before it gives up."""
    request_id: str = ""
    """Finds the calls in the logs of the service; without it each call has one of its own."""


class Connection:
    """Makes calls. The channel opens with the first of them, in the event loop that makes it."""

    def __init__(
        self,
        address: str,
        *,
        token: Token | None,
        tls: Tls | None,
        plaintext: bool,
        repeatable: Sequence[MethodDescriptor],
    ) -> None:
        is_plaintext(address, tls=tls, plaintext=plaintext)  # raises for a contradiction, now and not later
        self.address = address
        self._token = None if token is None else TokenSource(token)
        self._tls = tls
        self._plaintext = plaintext
        self._repeatable = repeatable
        self._channel: grpc.aio.Channel | None = None
        self._callables: dict[str, Any] = {}
        self._closed = False

    async def call(self, method: MethodDescriptor, request: Message, *, deadline: float, request_id: str) -> Any:
        """Makes a unary call and returns the response; `deadline` in seconds from now. Raises MasteryError."""
        metadata = await self._metadata(request_id)
        try:
            return await self._callable(method)(request, timeout=deadline, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        except asyncio.CancelledError:
            raise self._cancelled() from None

    async def stream(
        self,
        method: MethodDescriptor,
        requests: Message | AsyncIterator[Message],
        *,
        deadline: float | None,
        request_id: str,
    ) -> AsyncGenerator[Any]:
        """Makes a streaming call and yields the responses; ends it when closed. Raises MasteryError."""
        metadata = await self._metadata(request_id)
        call = self._callable(method)(requests, timeout=deadline, metadata=metadata)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        except asyncio.CancelledError:
            raise self._cancelled() from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _cancelled(self) -> BaseException:
        """Returns what a cancelled call raises: closing the channel cancels the call and not its caller."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            return MasteryError("the client was closed meanwhile", grpc.StatusCode.CANCELLED)
        return asyncio.CancelledError()

    async def _metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        headers = trace_context() | {REQUEST_ID: request_id or uuid.uuid4().hex}
        if self._token is not None:
            headers["authorization"] = f"Bearer {await self._token.token()}"
        return tuple(headers.items())

    def _callable(self, method: MethodDescriptor) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            self._channel = open_channel(
                self.address, tls=self._tls, plaintext=self._plaintext, repeatable=self._repeatable
            )
        if method.full_name not in self._callables:
            shape = ("stream" if method.client_streaming else "unary") + (
                "_stream" if method.server_streaming else "_unary"
            )
            self._callables[method.full_name] = getattr(self._channel, shape)(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return self._callables[method.full_name]
