"""Recompute students from their event logs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from mastery_grpc import assembly
from mastery_grpc.application.rebuild_students import Difference, RebuildStudents, Rebuilt, Verdict
from mastery_grpc.commands.process import log_nothing, run_async
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import StudentKey, student_violations
from mastery_grpc.settings import read_settings
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.redis_repository import RedisStudentRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from mastery_grpc.settings import Settings

PORTION = 100
"""Students that are compared at a time."""
MOST_ROWS = 1000
"""Differences that are printed; the rest are counted."""


def rebuild(
    students: Annotated[list[str] | None, typer.Argument(metavar="STUDENT")] = None,
    school: Annotated[
        str | None, typer.Option(help="The school of the students named; with --all, only this one.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="All students.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write what differs; without, only show it.")] = False,
) -> None:
    """Recompute students from their event logs by the current rules, and show what is stored otherwise.

    May run beside everything else. After a change of the rules, restart servers and workers first: they score
    by the rules that they were started with. Nothing is published on the results topic.

    Ends with status 1 if something is left that differs or could not be compared.
    """
    if bool(students) == everybody:
        raise typer.BadParameter("name students, or say --all")
    log_nothing()
    named = [StudentKey(student, school or "") for student in students or []]
    if violations := [violation for key in named for violation in student_violations(key)]:
        raise InvalidInput(violations)
    if not run_async(_rebuild(read_settings(), named, school, apply=apply)):
        raise typer.Exit(1)


async def _rebuild(settings: Settings, named: Sequence[StudentKey], school: str | None, *, apply: bool) -> bool:
    """Rebuilds those named, or else all; returns whether all is well now."""
    client = connect(settings.redis_url, timeout=settings.redis_timeout)
    try:
        retention = settings.retention()
        repository = RedisStudentRepository(client, retention=retention)
        use_case = RebuildStudents(
            repository,
            rules=settings.scoring_rules(),
            snapshot_retention=retention.snapshots,
            clock=assembly.utc_now,
        )
        report = _Report()
        console = Console(stderr=True)
        columns = SpinnerColumn(), TextColumn("{task.completed} students compared, {task.description}")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            comparing = progress.add_task("")
            async for portion in _portions(repository, named, school):
                for start in range(0, len(portion), PORTION):
                    report.add(await use_case(portion[start : start + PORTION], apply=apply))
                    progress.update(comparing, completed=report.students, description=str(report))
    finally:
        await client.aclose()
    report.print()
    return report.is_well


async def _portions(
    repository: RedisStudentRepository, named: Sequence[StudentKey], school: str | None
) -> AsyncIterator[Sequence[StudentKey]]:
    if named:
        yield named
        return
    async for portion in repository.walk(school):
        yield portion


class _Report:
    """What was found so far."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Verdict, 0)
        self._rows: list[tuple[str, str, str, str]] = []
        self._unprinted = 0

    @property
    def students(self) -> int:
        return sum(self._counts.values())

    @property
    def is_well(self) -> bool:
        return self._counts[Verdict.RIGHT] + self._counts[Verdict.REPAIRED] == self.students

    def __str__(self) -> str:
        return ", ".join(f"{count} {verdict}" for verdict, count in self._counts.items() if count)

    def add(self, found: Sequence[Rebuilt]) -> None:
        for rebuilt in found:
            self._counts[rebuilt.verdict] += 1
            rows = list(_rows(rebuilt))
            room = max(0, MOST_ROWS - len(self._rows))
            self._rows += rows[:room]
            self._unprinted += len(rows[room:])

    def print(self) -> None:
        if self._rows:
            table = Table("student", "what", "stored", "recomputed")
            for row in self._rows:
                table.add_row(*row)
            Console(markup=False, highlight=False).print(table)
        if self._unprinted:
            typer.echo(f"and {self._unprinted} more differences")
        typer.echo(f"{self.students} students: {self}" if self.students else "no students")


def _rows(rebuilt: Rebuilt) -> Iterator[tuple[str, str, str, str]]:
    key = rebuilt.student
    name = f"{key.school_id}/{key.student_id}" if key.school_id else key.student_id
    for difference in rebuilt.differences:
        yield name, difference.what, *_sides(difference)
    if rebuilt.verdict not in (Verdict.RIGHT, Verdict.WRONG, Verdict.REPAIRED):
        yield name, str(rebuilt.verdict), "", ""


def _sides(difference: Difference) -> tuple[str, str]:
    """Returns both sides in words, of the stored one and the recomputed one only what differs."""
    recomputed = dict(_leaves(difference.recomputed))
    if difference.stored is None:
        told = [name for name in recomputed if name in ("mastery_score", "level", "version", "event_count")]
        return "missing or unreadable", _words(recomputed, told or recomputed)
    stored = dict(_leaves(difference.stored))
    differing = [name for name in stored if stored[name] != recomputed[name]]
    # Each part of a breakdown repeats what the components and the score say, unless only weights differ.
    told = [name for name in differing if not name.startswith("breakdown")] or differing
    return _words(stored, told), _words(recomputed, told)


def _words(leaves: dict[str, Any], names: Sequence[str] | dict[str, Any]) -> str:
    return "\n".join(f"{name} {leaves[name]}" for name in names)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the plain values inside a value, each with the path to it."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{path}[{index}]")
    else:
        yield path, value
