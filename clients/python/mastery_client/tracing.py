"""Trace context for the service, where the application has OpenTelemetry; this package does not need it."""

from __future__ import annotations

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    _propagator = None
else:
    _propagator = TraceContextTextMapPropagator()


def trace_context() -> dict[str, str]:
    """Returns the W3C headers of the current span, if there is one."""
    headers: dict[str, str] = {}
    if _propagator is not None:
        _propagator.inject(headers)
    return headers
