"""How the methods of a service are declared: once, for both faces.

    get_mastery = Unary(pb.GetMasteryRequest, pb.GetMasteryResponse)

gives `await async_client.mastery.get_mastery(student_id="s1")` and `client.mastery.get_mastery(student_id="s1")`,
both with the fields of the request as typed arguments; a request made before is taken as well.
"""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, overload

from mastery.v1 import access_pb2
from mastery_client.reconnecting import Reader, keep_reading

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

    from mastery_client.background import BackgroundLoop
    from mastery_client.connection import CallOptions, Connection

Fields = ParamSpec("Fields")
Request = TypeVar("Request")
Response = TypeVar("Response")
Item = TypeVar("Item")


class Async:
    """The face whose methods are awaited."""


class Sync:
    """The face whose methods wait."""


Face = TypeVar("Face")


class Service(Generic[Face]):
    """One service, as one client calls it."""

    descriptor: ClassVar[ServiceDescriptor]

    def __init__(self, connection: Connection, options: CallOptions, loop: BackgroundLoop | None) -> None:
        """With a `loop` the methods wait for what it does, without one they are awaited."""
        self.connection = connection
        self.options = options
        self.loop = loop


class _Method(Generic[Fields, Request, Response]):
    """What is declared of a method."""

    descriptor: MethodDescriptor

    def __init__(
        self,
        request: Callable[Fields, Request],
        response: type[Response],
        *,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> None:
        """`timeout` (seconds) is for a method that takes longer than others; `idempotent` for one that is, by the
        words of its comment alone."""
        self.request = request
        self.response = response
        self.timeout = timeout
        self._idempotent = idempotent

    def __set_name__(self, owner: type[Service[Any]], name: str) -> None:
        self.descriptor = owner.descriptor.methods_by_name[name.title().replace("_", "")]
        self._takes_request_id = "request_id" in self.descriptor.input_type.fields_by_name

    @property
    def is_repeatable(self) -> bool:
        """Whether a call may be made again without knowing what became of it: a read, or a write by an id."""
        call_class = self.descriptor.GetOptions().Extensions[access_pb2.access].call_class
        return call_class == access_pb2.CALL_CLASS_READ or self._takes_request_id or self._idempotent

    def request_of(self, given: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        """Returns the request that a call was given, with an id if it takes one and has none."""
        if given:
            [ready] = given
            request: Any = type(ready)()
            request.CopyFrom(ready)
        else:
            make: Any = self.request
            request = make(**fields)
        if self.descriptor.input_type != request.DESCRIPTOR:
            raise TypeError(f"{self.descriptor.name} takes a {self.descriptor.input_type.name}")
        if self._takes_request_id and not request.request_id:
            request.request_id = str(uuid.uuid4())
        return request


class Unary(_Method[Fields, Request, Response]):
    """Declares a method that answers once."""

    @overload
    def __get__(self, service: None, owner: Any) -> Unary[Fields, Request, Response]: ...
    @overload
    def __get__(self, service: Service[Async], owner: Any) -> AsyncUnary[Fields, Request, Response]: ...
    @overload
    def __get__(self, service: Service[Sync], owner: Any) -> SyncUnary[Fields, Request, Response]: ...
    def __get__(self, service: Service[Any] | None, owner: Any) -> Any:
        if service is None:
            return self
        call = AsyncUnary(self, service)
        return call if service.loop is None else SyncUnary(call, service.loop)


class AsyncUnary(Generic[Fields, Request, Response]):
    """Such a method of one client."""

    def __init__(self, method: _Method[Fields, Request, Response], service: Service[Any]) -> None:
        self._method = method
        self._service = service

    @overload
    async def __call__(self, request: Request, /) -> Response: ...
    @overload
    async def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Response: ...
    async def __call__(self, *args: Any, **fields: Any) -> Any:
        method, options = self._method, self._service.options
        return await self._service.connection.call(
            method.descriptor,
            method.request_of(args, fields),
            deadline=options.timeout or max(method.timeout or 0, options.default_timeout),
            request_id=options.request_id,
        )


class SyncUnary(Generic[Fields, Request, Response]):
    """The same, waiting."""

    def __init__(self, call: AsyncUnary[Fields, Request, Response], loop: BackgroundLoop) -> None:
        self._call: Any = call
        self._loop = loop

    @overload
    def __call__(self, request: Request, /) -> Response: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Response: ...
    def __call__(self, *args: Any, **fields: Any) -> Any:
        return self._loop.run(self._call(*args, **fields))


class Paged(_Method[Fields, Request, Response], Generic[Fields, Request, Response, Item]):
    """Declares a method that answers with a page of a list."""

    def __init__(
        self,
        request: Callable[Fields, Request],
        response: type[Response],
        items: Callable[[Response], Iterable[Item]],
    ) -> None:
        super().__init__(request, response)
        self.items = items

    @overload
    def __get__(self, service: None, owner: Any) -> Paged[Fields, Request, Response, Item]: ...
    @overload
    def __get__(self, service: Service[Async], owner: Any) -> AsyncPaged[Fields, Request, Response, Item]: ...
    @overload
    def __get__(self, service: Service[Sync], owner: Any) -> SyncPaged[Fields, Request, Response, Item]: ...
    def __get__(self, service: Service[Any] | None, owner: Any) -> Any:
        if service is None:
            return self
        call = AsyncPaged(self, service)
        return call if service.loop is None else SyncPaged(call, service.loop)


class AsyncPaged(AsyncUnary[Fields, Request, Response], Generic[Fields, Request, Response, Item]):
    """Such a method of one client: called it returns one page."""

    def __init__(self, method: Paged[Fields, Request, Response, Item], service: Service[Any]) -> None:
        super().__init__(method, service)
        self._items = method.items

    @overload
    def each(self, request: Request, /) -> AsyncGenerator[Item]: ...
    @overload
    def each(self, *args: Fields.args, **fields: Fields.kwargs) -> AsyncGenerator[Item]: ...
    async def each(self, *args: Any, **fields: Any) -> AsyncGenerator[Any]:
        """Yields the items of all pages, which are asked for as they are needed."""
        request = self._method.request_of(args, fields)
        while True:
            page: Any = await self(request)
            for item in self._items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class SyncPaged(SyncUnary[Fields, Request, Response], Generic[Fields, Request, Response, Item]):
    """The same, waiting."""

    @overload
    def each(self, request: Request, /) -> Generator[Item]: ...
    @overload
    def each(self, *args: Fields.args, **fields: Fields.kwargs) -> Generator[Item]: ...
    def each(self, *args: Any, **fields: Any) -> Generator[Any]:
        """Yields the items of all pages, which are asked for as they are needed."""
        return self._loop.iterate(self._call.each(*args, **fields))


class Stream(_Method[Fields, Request, Response]):
    """Declares a method that answers many times; with a `reader` it goes on when the connection breaks."""

    def __init__(
        self,
        request: Callable[Fields, Request],
        response: type[Response],
        *,
        timeout: float | None = None,
        reader: Callable[[], Reader[Response]] | None = None,
    ) -> None:
        super().__init__(request, response, timeout=timeout)
        self.reader = reader

    @property
    def is_repeatable(self) -> bool:
        return self.reader is None and super().is_repeatable

    @overload
    def __get__(self, service: None, owner: Any) -> Stream[Fields, Request, Response]: ...
    @overload
    def __get__(self, service: Service[Async], owner: Any) -> AsyncStream[Fields, Request, Response]: ...
    @overload
    def __get__(self, service: Service[Sync], owner: Any) -> SyncStream[Fields, Request, Response]: ...
    def __get__(self, service: Service[Any] | None, owner: Any) -> Any:
        if service is None:
            return self
        call = AsyncStream(self, service)
        return call if service.loop is None else SyncStream(call, service.loop)


class AsyncStream(Generic[Fields, Request, Response]):
    """Such a method of one client. Close the generator (`contextlib.aclosing`) to end the call early."""

    def __init__(self, method: Stream[Fields, Request, Response], service: Service[Any]) -> None:
        self._method = method
        self._service = service

    @overload
    def __call__(self, request: Request, /) -> AsyncGenerator[Response]: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> AsyncGenerator[Response]: ...
    async def __call__(self, *args: Any, **fields: Any) -> AsyncGenerator[Any]:
        method, options = self._method, self._service.options
        request: Message = method.request_of(args, fields)
        call = streaming(method.descriptor, self._service, timeout=options.timeout or method.timeout)
        if method.reader is None:
            responses = call(request)
        else:
            responses = keep_reading(lambda: call(request), method.reader(), patience=options.stream_patience)
        async with aclosing(responses):
            async for response in responses:
                yield response


class SyncStream(Generic[Fields, Request, Response]):
    """The same, waiting."""

    def __init__(self, call: AsyncStream[Fields, Request, Response], loop: BackgroundLoop) -> None:
        self._call: Any = call
        self._loop = loop

    @overload
    def __call__(self, request: Request, /) -> Generator[Response]: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Generator[Response]: ...
    def __call__(self, *args: Any, **fields: Any) -> Generator[Any]:
        return self._loop.iterate(self._call(*args, **fields))


def streaming(
    method: MethodDescriptor, service: Service[Any], *, timeout: float | None
) -> Callable[[Any], AsyncGenerator[Any]]:
    """Returns how to make a streaming call, again and again until `timeout` (seconds) from now is over."""
    end = timeout and time.monotonic() + timeout

    def call(requests: Any) -> AsyncGenerator[Any]:
        left = end and max(end - time.monotonic(), 0)
        return service.connection.stream(method, requests, deadline=left, request_id=service.options.request_id)

    return call
