"""Round trips to Redis, by the semantic conventions of databases: durations, and spans inside of traced calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from mastery_grpc.telemetry.trace_context import fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import Span, Tracer

    from mastery_grpc.telemetry.instruments import Distribution, Instruments

BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""As the semantic conventions of databases advise them, in seconds."""
SYSTEM = {"db.system.name": "redis"}


class CommandTelemetry:
    """Observes all round trips."""

    def __init__(self, instruments: Instruments, tracer: Tracer | None) -> None:
        self._durations = instruments.histogram(
            "db.client.operation.duration",
            description="Duration of a round trip to Redis, with whatever was sent together.",
            bounds=BOUNDS,
        )
        self._tracer = tracer
        self._succeeded: dict[str, Distribution] = {}

    def begin(self, commands: Sequence[tuple[Any, ...]]) -> _RoundTrip:
        """Begins a round trip."""
        operation = _operation(commands)
        span = None
        if self._tracer is not None and trace.get_current_span().is_recording():
            span = self._tracer.start_span(
                operation,
                kind=SpanKind.CLIENT,
                attributes={**SYSTEM, "db.operation.name": operation, "db.operation.batch.size": len(commands)},
            )
        return _RoundTrip(self, operation, span)

    def duration(self, operation: str, error: Exception | None) -> Distribution:
        """Returns where the durations of such round trips are taken down."""
        if error is not None:
            failed = {"db.operation.name": operation, "error.type": type(error).__name__}
            return self._durations.at(SYSTEM | failed)
        if (duration := self._succeeded.get(operation)) is None:
            duration = self._durations.at(SYSTEM | {"db.operation.name": operation})
            self._succeeded[operation] = duration
        return duration


class _RoundTrip:
    """One round trip."""

    __slots__ = ("_began", "_operation", "_span", "_telemetry")

    def __init__(self, telemetry: CommandTelemetry, operation: str, span: Span | None) -> None:
        self._telemetry = telemetry
        self._operation = operation
        self._span = span
        self._began = time.perf_counter()

    def end(self, error: Exception | None) -> None:
        seconds = time.perf_counter() - self._began
        self._telemetry.duration(self._operation, error).record(seconds)
        if self._span is not None:
            if error is not None:
                fail(self._span, type(error).__name__)
            self._span.end()


def _operation(commands: Sequence[tuple[Any, ...]]) -> str:
    """Returns the name of what is asked: a command's own, or that of a pipeline."""
    first: str = commands[0][0] if commands else "PIPELINE"
    if len(commands) <= 1:
        return first
    return f"PIPELINE {first}" if all(command[0] == first for command in commands) else "PIPELINE"
