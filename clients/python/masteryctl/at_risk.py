"""Who needs somebody to step in."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path  # noqa: TC003 - read by typer
from typing import TYPE_CHECKING, Annotated

import typer

from mastery_client import error_of
from masteryctl.failures import CommandFailed, in_words
from masteryctl.output import Output, OutputOption, as_json, print_json, print_table
from masteryctl.session import session_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mastery.v1.prediction_service_pb2 import InterventionResult
    from masteryctl.session import Session

MOST_AT_ONCE = 1000


def at_risk(
    context: typer.Context,
    student_ids: Annotated[list[str] | None, typer.Argument(metavar="STUDENT...", show_default=False)] = None,
    cohort: Annotated[str, typer.Option(help="The members of this cohort.", show_default=False)] = "",
    file: Annotated[
        Path | None, typer.Option(help="A file with an id on each line; - for standard input.", show_default=False)
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Those who do well, too.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List who of these students needs somebody to step in, most urgent first, and why."""
    session = session_of(context)
    students = list(dict.fromkeys(_students(session, student_ids or [], cohort, file)))
    if not students:
        raise CommandFailed("name students, a --cohort or a --file")
    results = list(_checked(session, students))
    found = [each for each in results if each.HasField("intervention")]
    if not everybody:
        found = [each for each in found if each.intervention.intervention_needed]
    found.sort(key=lambda each: -each.intervention.intervention_probability)
    failed = [each for each in results if each.HasField("error")]
    if output is Output.JSON:
        print_json([as_json(each) for each in [*found, *failed]])
        return
    if found:
        print_table(
            ["student", "risk", "score", "days", "why"],
            [
                [
                    each.student_id,
                    f"{each.intervention.intervention_probability:.0%}",
                    f"{each.intervention.current_score:.3f}",
                    str(each.intervention.days_until) if each.intervention.HasField("days_until") else "",
                    "; ".join(each.intervention.reasons),
                ]
                for each in found
            ],
        )
    needed = sum(each.intervention.intervention_needed for each in found)
    typer.echo(f"{needed} of {len(students)} students need somebody to step in")
    for each in failed:
        typer.echo(f"{each.student_id}: {in_words(error_of(each.error))}", err=True)


def _students(session: Session, given: list[str], cohort: str, file: Path | None) -> Iterator[str]:
    yield from given
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        yield from filter(None, map(str.strip, text.splitlines()))
    if cohort:
        found = session.client.analytics.get_cohort(cohort_id=cohort, school_id=session.school_id).cohort
        if found.HasField("whole_school"):
            raise CommandFailed(f"the cohort {cohort} is the whole school, whose ids the service does not list")
        yield from found.listed.student_ids


def _checked(session: Session, students: list[str]) -> Iterator[InterventionResult]:
    rest = iter(students)
    while chunk := list(islice(rest, MOST_AT_ONCE)):
        yield from session.client.prediction.check_intervention(
            student_ids=chunk, school_id=session.school_id
        ).results
