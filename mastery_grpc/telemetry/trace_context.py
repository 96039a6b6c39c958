"""The trace that a piece of work belongs to: as it comes in, as it goes on, and in spans and links."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from opentelemetry import context as active
from opentelemetry import trace
from opentelemetry.trace import Link, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MOST_LINKS = 128
"""Of one span; the SDK's own limit."""

Pairs = Iterable[tuple[str, str | bytes | None]]
"""Metadata of a call, or headers of a record."""

_w3c = TraceContextTextMapPropagator()


def context_in(pairs: Pairs) -> Context | None:
    """Returns the context that a call or a record came with, None if it came with none."""
    carrier: dict[str, str] = {}
    for name, value in pairs:
        if name in (TRACEPARENT, TRACESTATE) and value is not None:
            carrier[name] = value if isinstance(value, str) else value.decode("ascii", "replace")
    return _w3c.extract(carrier, active.Context()) if TRACEPARENT in carrier else None


def headers_of_current() -> list[tuple[str, str | bytes | None]]:
    """Returns the headers by which a record goes on with the current trace; none outside of any."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return [(name, value.encode()) for name, value in carrier.items()]


def span_context_of(context: Context) -> SpanContext:
    """Returns the span that a context is about."""
    return trace.get_current_span(context).get_span_context()


def sampled(records: Iterable[Pairs]) -> list[SpanContext]:
    """Returns the distinct contexts of records that somebody keeps the trace of, as many as a span may link."""
    found: list[SpanContext] = []
    seen: set[str | bytes | None] = set()
    for pairs in records:
        traceparent = next((value for name, value in pairs if name == TRACEPARENT), None)
        if traceparent is None or traceparent in seen:
            continue
        seen.add(traceparent)
        if (context := context_in(pairs)) is not None and (one := span_context_of(context)).trace_flags.sampled:
            found.append(one)
        if len(found) == MOST_LINKS:
            break
    return found


@contextmanager
def running_span(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, str | int],
    *,
    parent: Context | None = None,
    links: Sequence[SpanContext] = (),
) -> Iterator[None]:
    """Runs the body in a span; without a `parent` it belongs to the current one."""
    span = tracer.start_span(name, parent, kind, attributes, [Link(one) for one in links])
    token = active.attach(trace.set_span_in_context(span))
    try:
        yield
    except BaseException as error:
        fail(span, type_of(error))
        raise
    finally:
        active.detach(token)
        span.end()


def common_parent(contexts: Sequence[SpanContext]) -> Context:
    """Returns where work on records belongs: to their trace if they are of one, else to one of its own."""
    if len({one.trace_id for one in contexts}) != 1:
        return active.Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(contexts[0]), active.Context())


def type_of(error: BaseException) -> str:
    """Returns one of few words for what went wrong: an error's own words may be about somebody."""
    if isinstance(error, KafkaException):
        return str(error.args[0].name())
    return type(error).__name__


def fail(span: Span, error_type: str) -> None:
    """Takes down that what the span is about failed."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))
