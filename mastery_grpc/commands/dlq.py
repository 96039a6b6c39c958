"""Look at dead letters, send them again, or drop them."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from mastery_grpc import assembly
from mastery_grpc.commands.process import log_nothing
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.ingest.dead_letter_queue import DeadLetter, DeadLetterQueue, Place, Selection
from mastery_grpc.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

HEX_COLUMNS = 16
_ago = re.compile(r"(\d{1,6})([smhd])", re.ASCII).fullmatch
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

cli = typer.Typer(no_args_is_help=True, help=__doc__)


class Output(StrEnum):
    """For eyes, or for programs."""

    TABLE = "table"
    JSON = "json"


def _time(text: str) -> datetime:
    """Returns the time that an operator gave: RFC 3339, in UTC if it does not say, or so long ago as `2h`."""
    if found := _ago(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a time nor an age such as 30m, 2h, 7d") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _id(text: str) -> Place:
    try:
        return Place.parse(text)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None


Ids = Annotated[
    list[Place] | None,
    typer.Argument(help="Ids as `list` shows them.", metavar="PARTITION/OFFSET", parser=_id),
]
Reason = Annotated[str, typer.Option(help="Part of the error's class or message.")]
Since = Annotated[datetime | None, typer.Option(help="Refused at or after: a time, or 2h, 7d.", parser=_time)]
Until = Annotated[datetime | None, typer.Option(help="Refused before: a time, or 2h, 7d.", parser=_time)]
Student = Annotated[str, typer.Option(help="The record's key.", metavar="STUDENT_ID")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Form = Annotated[Output, typer.Option("--output", "-o")]


@cli.command("list")
def list_letters(
    ids: Ids = None,
    reason: Reason = "",
    since: Since = None,
    until: Until = None,
    student: Student = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those replayed or dropped.")] = False,
    output: Form = Output.TABLE,
) -> None:
    """List dead letters: those that nobody has replayed or dropped yet."""
    selection = Selection(
        places=ids or (), reason=reason, since=since, until=until, student_id=student, resolved=everything
    )
    _show(_find(_queue("list"), selection), output)


@cli.command()
def show(
    place: Annotated[Place, typer.Argument(metavar="PARTITION/OFFSET", parser=_id)], output: Form = Output.TABLE
) -> None:
    """Show a dead letter whole: headers and value."""
    found = _queue("show").fetch(place)
    if found is None:
        sys.exit(f"mastery-grpc: there is no dead letter {place}")
    letter, value = found
    if output is Output.JSON:
        headers = [[name, _text(content)] for name, content in letter.headers]
        _write_json({"id": str(place), "key": letter.student_id, "headers": headers, "value": _text(value)})
        return
    typer.echo(f"id: {place}\nkey: {_printable(letter.student_id)}")
    for name, content in letter.headers:
        typer.echo(_printable(f"{name}: {_text(content)}"))
    typer.echo(f"\n{_readable(value)}")


@cli.command()
def replay(
    ids: Ids = None,
    reason: Reason = "",
    since: Since = None,
    until: Until = None,
    student: Student = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Form = Output.TABLE,
) -> None:
    """Send dead letters once more to where they were refused; without a choice all that are left."""
    queue = _queue("replay")
    selection = Selection(places=ids or (), reason=reason, since=since, until=until, student_id=student)
    _resolve(queue, selection, queue.replay, "replayed", dry_run=dry_run, yes=yes, output=output)


@cli.command()
def drop(
    ids: Ids = None,
    reason: Reason = "",
    since: Since = None,
    until: Until = None,
    student: Student = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Form = Output.TABLE,
) -> None:
    """Mark dead letters as done with; without a choice all that are left."""
    queue = _queue("drop")
    selection = Selection(places=ids or (), reason=reason, since=since, until=until, student_id=student)
    _resolve(queue, selection, queue.drop, "dropped", dry_run=dry_run, yes=yes, output=output)


def _queue(command: str) -> DeadLetterQueue:
    log_nothing()
    settings = read_settings()
    return DeadLetterQueue(
        assembly.kafka_access(settings),
        transactional=settings.kafka_transactions,
        command=f"mastery-grpc dlq {command}",
        clock=assembly.utc_now,
    )


def _find(queue: DeadLetterQueue, selection: Selection) -> list[DeadLetter]:
    with _progress() as progress:
        reading = progress.add_task("records read", total=None)
        return queue.find(selection, progress=lambda count: progress.update(reading, completed=count))


def _resolve(
    queue: DeadLetterQueue,
    selection: Selection,
    resolve: Callable[..., int],
    done: str,
    *,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Finds, asks, resolves and reports."""
    letters = _find(queue, selection)
    if dry_run:
        _show(letters, output)
        typer.echo(f"{len(letters)} would be {done}", err=True)
        return
    if len(letters) > 1 and not yes:
        typer.confirm(f"{len(letters)} dead letters will be {done}. Go on?", abort=True, err=True)
    count = _resolve_all(resolve, [letter.place for letter in letters], done)
    if output is Output.JSON:
        _write_json({"selected": len(letters), done: count})
    else:
        typer.echo(f"{count} {done}")
    if count < len(letters):
        typer.echo(f"{len(letters) - count} were resolved by somebody else meanwhile", err=True)


def _resolve_all(resolve: Callable[..., int], places: Collection[Place], done: str) -> int:
    with _progress() as progress:
        resolving = progress.add_task(done, total=len(places))
        return resolve(places, progress=lambda count: progress.update(resolving, completed=count))


def _progress() -> Progress:
    columns = SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), BarColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(letters: Collection[DeadLetter], output: Output) -> None:
    if output is Output.JSON:
        _write_json([_as_json(letter) for letter in letters])
        return
    if not letters:
        typer.echo("no dead letters")
        return
    table = Table("id", "refused", "student", "reason", "attempts", "done")
    table.columns[0].no_wrap = True
    for letter in letters:
        refused = letter.time.astimezone(UTC).isoformat(" ", "seconds") if letter.time else ""
        mark = f"{letter.mark.resolution} {letter.mark.time}" if letter.mark else ""
        reason = f"{letter.error_class}: {letter.error_message}"
        cells = str(letter.place), refused, letter.student_id, reason, letter.attempt_count, mark
        table.add_row(*map(_printable, cells))
    Console(markup=False, highlight=False).print(table)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": str(letter.place),
        "key": letter.student_id,
        "time": letter.time,
        "error_class": letter.error_class,
        "error_message": letter.error_message,
        "origin": letter.origin,
        "attempt_count": letter.attempt_count,
        "bytes": letter.size,
        "resolution": letter.mark,
    }


def _write_json(value: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def _text(content: str | bytes | None) -> str | None:
    return content.decode(errors="backslashreplace") if isinstance(content, bytes) else content


def _printable(text: str) -> str:
    """Returns a producer's text without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _readable(value: bytes | None) -> str:
    """Returns JSON indented, and anything else as a hex dump."""
    if value is None:
        return "(no value)"
    try:
        return _indented(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "\n".join(_hex_dump(value))


def _indented(value: bytes) -> str:
    msgspec.json.decode(value)  # format() alone does not look at what is inside
    return msgspec.json.format(value, indent=2).decode()


def _hex_dump(value: bytes) -> Iterator[str]:
    for start in range(0, len(value), HEX_COLUMNS):
        line = value[start : start + HEX_COLUMNS]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        yield f"{start:08x}  {line.hex(' '):<{3 * HEX_COLUMNS}} {text}"
