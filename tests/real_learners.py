"""The real learners' events that some tests run on, where they are to be had."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FILE = REPOSITORY.parent / "shared" / "data" / "oulad-dev-events.jsonl.gz"
WHY_SKIPPED = "no file of real events: set MASTERY_TEST_EVENTS to one (JSON lines, gzip or plain)"


def events_file() -> Path | None:
    """Returns the file that MASTERY_TEST_EVENTS names, else the one beside the repository, else None.

    A file that was asked for by name and is missing is an error, not a reason to skip.
    """
    if named := os.environ.get("MASTERY_TEST_EVENTS"):
        path = Path(named)
        if not path.is_file():
            raise FileNotFoundError(f"MASTERY_TEST_EVENTS names no file: {path}")
        return path
    return FILE if FILE.is_file() else None


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the JSON text of each event, as a producer sends it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            if text := line.strip():
                yield text


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yields each event in the flat JSON shape."""
    for line in read_lines(path):
        yield json.loads(line)
