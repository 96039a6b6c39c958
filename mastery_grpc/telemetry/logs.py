"""Log lines: JSON, or for people at a terminal; with the trace and the call that they belong to, and no ids."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from opentelemetry import trace

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

_in_key = re.compile(r"(\w:\{)[^}\s]*\}")
TEXTS = ("event", "error", "cause", "reason", "text", "exception")
"""The fields that may hold another library's words."""


def configure_logs(to: TextIO) -> None:
    """Sends all log lines there, those of libraries included."""
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks everywhere: rich's show the values of variables, and thereby whom they are about.
    for_people = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    render: list[Processor] = [
        structlog.processors.format_exc_info,
        without_ids,
        for_people if to.isatty() else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*common, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(to),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(to)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # gRPC keeps quiet by itself, and has a stack to show for every connection that somebody breaks.
    logging.getLogger("grpc").propagate = False


def with_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds which span the line was written in."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def without_ids(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Blanks students' ids in the keys of Redis, which the driver's errors may quote."""
    for name in TEXTS:
        text: Any = event.get(name)
        if isinstance(text, str) and ":{" in text:
            event[name] = _in_key.sub(r"\1…}", text)
    return event
