"""The client: all services on one connection, to be awaited or to wait for."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

from mastery_client.background import background_loop
from mastery_client.connection import DEFAULT_STREAM_PATIENCE, DEFAULT_TIMEOUT, CallOptions, Connection
from mastery_client.methods import Async, Face, Paged, Stream, Sync, Unary
from mastery_client.services import (
    SERVICES,
    AnalyticsService,
    BatchService,
    ComplianceService,
    MasteryService,
    PredictionService,
    RecommendationService,
)

if TYPE_CHECKING:
    from mastery_client.channel import Tls
    from mastery_client.tokens import Token


def repeatable_methods() -> list[Any]:
    """Returns the methods that gRPC may call again by itself."""
    declared = [method for service in SERVICES for method in vars(service).values()]
    return [
        method.descriptor
        for method in declared
        if isinstance(method, (Unary, Paged, Stream)) and method.is_repeatable
    ]


class _Client(Generic[Face]):
    _waits: ClassVar[bool]

    def __init__(
        self,
        address: str,
        *,
        token: Token | None = None,
        tls: Tls | None = None,
        plaintext: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        stream_patience: float = DEFAULT_STREAM_PATIENCE,
    ) -> None:
        """Connects with the first call.

        - `address` is in gRPC's syntax, such as "mastery.example.org:443"; of a name with several addresses, as
          that of a headless service, all are used in turn.
        - `token` is a bearer token, the Path of a file that holds one (read anew when it changes), or a function,
          async or not, that returns one.
        - `tls` encrypts the connection. Without it the connection is encrypted by the authorities that gRPC knows,
          except to this machine itself; `plaintext` lets it, and the token on it, be read on the way.
        - `timeout` (seconds) is for unary calls, but for the few that take longer; `stream_patience` (seconds) for
          how long a broken stream looks for the service before it fails.
        """
        options = CallOptions(default_timeout=timeout, stream_patience=stream_patience)
        connection = Connection(
            address, token=token, tls=tls, plaintext=plaintext, repeatable=repeatable_methods()
        )
        self._bind(connection, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.address!r})"

    def with_options(self, *, timeout: float | None = None, request_id: str = "") -> Self:
        """Returns the same client with other terms: a `timeout` (seconds) for every call, streams included, and a
        `request_id` to find the calls by in the logs of the service. It shares the connection."""
        client = copy(self)
        client._bind(self._connection, replace(self._options, timeout=timeout, request_id=request_id))  # noqa: SLF001
        return client

    def _bind(self, connection: Connection, options: CallOptions) -> None:
        self._connection = connection
        self._options = options
        shared = connection, options, background_loop() if self._waits else None
        self.mastery = MasteryService[Face](*shared)
        self.prediction = PredictionService[Face](*shared)
        self.recommendation = RecommendationService[Face](*shared)
        self.analytics = AnalyticsService[Face](*shared)
        self.batch = BatchService[Face](*shared)
        self.compliance = ComplianceService[Face](*shared)


class AsyncClient(_Client[Async]):
    """Calls the mastery engine; its methods are awaited. Belongs to the event loop that first calls it."""

    _waits = False

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client(_Client[Sync]):
    """Calls the mastery engine; its methods wait. May be used by many threads at once."""

    _waits = True

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        background_loop().run(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
