"""Learning events from a file."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - read by typer
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from masteryctl.event_lines import BadLine, csv_lines, event_of, json_lines
from masteryctl.failures import BAD_ANSWER
from masteryctl.ledger import Ledger
from masteryctl.output import Output, OutputOption, print_json
from masteryctl.session import session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    from mastery.v1.events_pb2 import LearningEvent
    from masteryctl.session import Session

INTERRUPTED = 130


class Format(StrEnum):
    """What a file of events may be."""

    JSONL = "jsonl"
    CSV = "csv"


cli = typer.Typer(no_args_is_help=True, help=__doc__)


@cli.callback()
def events() -> None:
    """Learning events from a file."""


@cli.command()
def send(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, show_default=False)],
    format_: Annotated[
        Format | None, typer.Option("--format", help="By default the file's ending tells.", show_default=False)
    ] = None,
    derive_ids: Annotated[
        bool, typer.Option("--derive-ids", help="Give events without an id one that their line makes out.")
    ] = False,
    refused: Annotated[
        Path | None,
        typer.Option(help="Where to report refused lines; FILE.refused.jsonl by default.", show_default=False),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever was sent before.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send the events of a file: flat JSON, one a line, or CSV with the same names; plain or gzip.

    Interrupted, the same command goes on where it stopped. An event counts once, however often it is sent. Ends
    with 1 if any line was refused.
    """
    session = session_of(context)
    ledger = Ledger(file, refused or file.with_name(f"{file.name}.refused.jsonl"))
    ledger.begin(restart=restart)
    if ledger.progress.line:
        typer.echo(f"goes on after line {ledger.progress.line}", err=True)
    is_csv = (format_ or (Format.CSV if ".csv" in file.suffixes else Format.JSONL)) is Format.CSV
    try:
        with file.open("rb") as raw, _progress_bar(file.stat().st_size) as shown:
            lines = _entered(raw, ledger, is_csv=is_csv, derive_ids=derive_ids, school_id=session.school_id)
            asyncio.run(_send(session, lines, ledger, lambda: shown(raw.tell(), ledger.progress.line)))
    except BaseException as error:
        ledger.save()
        if ledger.progress.line:
            typer.echo(f"stopped after line {ledger.progress.line}; the same command goes on", err=True)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        raise
    ledger.finish()
    progress = ledger.progress
    if output is Output.JSON:
        counts = {name: asdict(progress)[name] for name in ("accepted", "duplicates", "refused")}
        print_json(counts | {"refused_file": str(ledger.refused_file) if progress.refused else None})
    else:
        typer.echo(f"{progress.accepted} events accepted, {progress.duplicates} of them sent before")
        if progress.refused:
            typer.echo(f"{progress.refused} lines refused: {ledger.refused_file}")
    if progress.refused:
        raise typer.Exit(BAD_ANSWER)


async def _send(
    session: Session, lines: Iterator[LearningEvent], ledger: Ledger, show: Callable[[], None]
) -> None:
    async with (
        session.async_client() as client,
        aclosing(client.mastery.stream_events(lines)) as acknowledgements,
    ):
        async for acknowledgement in acknowledgements:
            ledger.acknowledge(acknowledgement)
            show()


def _entered(
    raw: BufferedReader, ledger: Ledger, *, is_csv: bool, derive_ids: bool, school_id: str
) -> Iterator[LearningEvent]:
    """Yields the events of the lines that are not settled yet, and enters each line in the ledger."""
    settled = ledger.progress.line
    for number, fields in csv_lines(raw) if is_csv else json_lines(raw):
        if number <= settled:
            continue
        try:
            event = event_of(fields, is_text=is_csv, derive_id=derive_ids)
        except BadLine as error:
            ledger.refuse(number, str(error))
            continue
        event.school_id = event.school_id or school_id
        ledger.enter(number)
        yield event


@contextmanager
def _progress_bar(size: int) -> Iterator[Callable[[int, int], None]]:
    """Yields what to tell how many bytes are read and which line is the last settled; shown on a terminal only."""
    columns = TextColumn("line {task.fields[line]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=size, line=0)
        yield lambda done, line: progress.update(task, completed=done, line=line)
