"""How answers are shown: as tables for people, as JSON for programs."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp


WIDE = 240
"""Columns where there is no terminal."""


class Output(StrEnum):
    """The shapes of an answer."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="The shape of the answer.")]


def as_json(message: Message) -> dict[str, Any]:
    """Returns a message by the names of its fields, zeros among them."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(value: Any, *, on_one_line: bool = False) -> None:
    """Prints what `as_json` returned, or something made of it."""
    typer.echo(json.dumps(value, indent=None if on_one_line else 2, ensure_ascii=False))


def print_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table; numbers to the right. What does not fit a terminal is folded, what is piped is not."""
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    lines = [list(row) for row in rows]
    for index, heading in enumerate(headings):
        cells = [line[index] for line in lines if line[index]]
        is_number = bool(cells) and all(cell.strip("+-%").replace(".", "", 1).isdigit() for cell in cells)
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table, width=None if console.is_terminal else WIDE)


def enum_word(name: str, prefix: str) -> str:
    """Returns a value of an enum as a word, such as "proficient"."""
    return name.removeprefix(f"{prefix}_").replace("_", " ").lower()


def time_text(timestamp: Timestamp) -> str:
    """Returns a time in UTC, to the second."""
    return timestamp.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")


def day_of(proto: Any) -> date:
    """Returns the day in a `google.type.Date`."""
    return date(proto.year, proto.month, proto.day)


def date_proto(day: datetime) -> Any:
    """Returns a `google.type.Date`."""
    from google.type.date_pb2 import Date

    return Date(year=day.year, month=day.month, day=day.day)
