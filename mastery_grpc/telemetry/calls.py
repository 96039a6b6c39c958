"""Calls of the API, by the semantic conventions of RPC: a duration for each, and a span where traces are kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
from opentelemetry import context as active
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from mastery_grpc.telemetry.trace_context import context_in, fail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from mastery_grpc.telemetry.instruments import Distribution, Histogram, Instruments

    Metadata = Iterable[tuple[str, str | bytes]]

UNKNOWN_METHOD = "_OTHER"
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""The statuses that are errors of a server; all others are answers."""
TRACEPARENT = "traceparent"


class CallTelemetry:
    """Observes all calls."""

    def __init__(self, instruments: Instruments, tracer: Tracer | None) -> None:
        self._durations = instruments.histogram(
            "rpc.server.call.duration",
            description="Duration of an incoming call; of a stream, for as long as it was open.",
        )
        self._tracer = tracer
        self._open: dict[str, _Method] = {}
        instruments.read_gauge(
            "mastery.rpc.server.open_calls",
            unit="{call}",
            description="Calls under way, streams included.",
            read=lambda: [
                (method.open_calls, {"rpc.system.name": "grpc", "rpc.method": name})
                for name, method in list(self._open.items())
            ],
        )
        self._unknown = _Method(UNKNOWN_METHOD, self._durations, None)

    def of_method(self, method: str) -> _Method:
        """Returns the observer of one method, as service/method."""
        observer = self._open[method] = _Method(method, self._durations, self._tracer)
        return observer

    def unknown_method(self) -> None:
        """Takes note of a call that no method took; gRPC refused it at once."""
        self._unknown.duration(grpc.StatusCode.UNIMPLEMENTED).record(0.0)


class _Method:
    """What is composed once for a method."""

    def __init__(self, name: str, durations: Histogram, tracer: Tracer | None) -> None:
        self.name = name
        self.open_calls = 0
        self._attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        self._durations = durations
        self._by_code: dict[grpc.StatusCode, Distribution] = {}
        self._tracer = tracer

    def begin(self, metadata: Metadata) -> _Call:
        """Begins a call, in the task that handles it: the context ends with the task."""
        self.open_calls += 1
        context = _context_in(metadata)
        if self._tracer is None:
            if context is not None:  # no part of the trace is kept here, but it goes on
                active.attach(context)
            return _Call(self, None)
        span = self._tracer.start_span(self.name, context or active.Context(), SpanKind.SERVER, self._attributes)
        active.attach(trace.set_span_in_context(span))
        return _Call(self, span)

    def duration(self, code: grpc.StatusCode) -> Distribution:
        """Returns where the durations of calls with this status are taken down."""
        if (duration := self._by_code.get(code)) is None:
            attributes = self._attributes | {"rpc.response.status_code": code.name}
            if code.name in FAULTS:
                attributes["error.type"] = code.name
            duration = self._by_code[code] = self._durations.at(attributes)
        return duration


class _Call:
    """One call."""

    __slots__ = ("_began", "_method", "_span")

    def __init__(self, method: _Method, span: Span | None) -> None:
        self._method = method
        self._span = span
        self._began = time.perf_counter()

    def end(self, code: grpc.StatusCode) -> None:
        method = self._method
        method.open_calls -= 1
        method.duration(code).record(time.perf_counter() - self._began)
        if self._span is not None:
            self._span.set_attribute("rpc.response.status_code", code.name)
            if code.name in FAULTS:
                fail(self._span, code.name)
            self._span.end()


def _context_in(metadata: Metadata) -> Context | None:
    """Returns the context that a call came with; most come with none, and cost no more than a look."""
    for name, _ in metadata:
        if name == TRACEPARENT:
            return context_in(metadata)
    return None
