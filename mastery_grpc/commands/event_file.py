"""Learning events from a file, for the commands that need no service, and how far they have come."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mastery_grpc.application.event_json import decode_event
from mastery_grpc.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mastery_grpc.domain.events import LearningEvent

STANDARD_INPUT = Path("-")
GZIP_MAGIC = b"\x1f\x8b"
TELL_EVERY = 1000
"""Lines between two words about the progress."""

EventFile = Annotated[
    Path,
    typer.Argument(
        metavar="EVENTS",
        help="Events in the flat JSON shape, one a line, plain or gzip; - for standard input.",
        show_default=False,
    ),
]


def read_events(path: Path, progress: Callable[[str, int, int], None]) -> Iterator[LearningEvent]:
    """Yields the events of a file, at least one. Raises InvalidInput with the line and the field."""
    name = "standard input" if path == STANDARD_INPUT else str(path)
    number, events = 0, 0
    try:
        with io.BufferedReader(io.FileIO(0 if path == STANDARD_INPUT else path)) as raw:
            status = os.fstat(raw.fileno())
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            lines = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZIP_MAGIC) else raw
            for number, line in enumerate(lines, start=1):
                if number % TELL_EVERY == 0:
                    progress("reading", raw.tell() if size else number, size)
                if text := line.strip():
                    events += 1
                    yield _decoded(text, f"{name}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput.of(f"{name}, after line {number}", f"the gzip file is damaged: {error}") from None
    except OSError as error:
        raise InvalidInput.of(name, error.strerror or str(error)) from None
    if not events:
        raise InvalidInput.of(name, "holds no event")


def _decoded(text: bytes, place: str) -> LearningEvent:
    try:
        return decode_event(text)
    except InvalidInput as error:
        raise InvalidInput.of(place, str(error)) from None


def check_place(path: Path | None) -> None:
    """Raises InvalidInput if there is no folder to write `path` to: sooner than after the work."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise InvalidInput.of(str(path), "is a folder" if path.is_dir() else f"there is no folder {path.parent}")


def write_file(path: Path, data: bytes) -> None:
    """Writes a file whole. Raises InvalidInput if that cannot be done."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput.of(str(path), error.strerror or str(error)) from None


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what to tell a stage, how much of it is done and how much there is (0: nobody knows).

    It is shown on a terminal only.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        current = ""

        def tell(stage: str, done: int, of: int) -> None:
            nonlocal current
            if stage != current:
                current = stage
                progress.reset(task, description=stage)
            progress.update(task, completed=done, total=of or None)

        yield tell
