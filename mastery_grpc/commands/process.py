"""What every command's process needs: an event loop, and a log on standard error."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine

_Answer = TypeVar("_Answer")


def run_async(main: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Runs a coroutine to its end and returns what it returns."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


def log_nothing() -> None:
    """Leaves the screen to the command: what goes wrong ends it with one line."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
