"""Following students live."""

from __future__ import annotations

from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from mastery.v1 import mastery_pb2
from masteryctl.output import Output, OutputOption, as_json, enum_word, print_json
from masteryctl.session import session_of


def watch(
    context: typer.Context,
    student_ids: Annotated[list[str], typer.Argument(metavar="STUDENT...", show_default=False)],
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many lines.", show_default=False)] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the state of some students, then a line for every change, until Ctrl-C.

    Goes on by itself when the connection breaks; no change is told twice.
    """
    session = session_of(context)
    scores: dict[str, float] = {}
    updates = session.client.mastery.watch_mastery(student_ids=student_ids, school_id=session.school_id)
    with suppress(KeyboardInterrupt), closing(updates):
        for update in islice(updates, count):
            if output is Output.JSON:
                print_json(as_json(update), on_one_line=True)
            elif update.HasField("erased"):
                scores.pop(update.erased.student_id, None)
                typer.echo(f"{_now()}  {update.erased.student_id}  erased")
            else:
                typer.echo(f"{_now()}  {_line(update.mastery, scores)}")


def _line(mastery: mastery_pb2.Mastery, scores: dict[str, float]) -> str:
    before = scores.get(mastery.student_id)
    scores[mastery.student_id] = mastery.mastery_score
    change = "" if before is None else f"{mastery.mastery_score - before:+.3f}"
    level = enum_word(mastery_pb2.Level.Name(mastery.level), "LEVEL")
    return f"{mastery.student_id}  {mastery.mastery_score:.3f} {change:6}  {level}  version {mastery.version}"


def _now() -> str:
    return f"{datetime.now(UTC):%H:%M:%S}"
