"""One student: how he stands, how he came there, where he is going, what is held of him, and how to erase it."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - read by typer
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mastery.v1 import analytics_service_pb2 as analytics
from mastery.v1 import compliance_service_pb2 as compliance
from mastery.v1 import mastery_pb2
from mastery_client import FailedPrecondition, NotOffered
from masteryctl.export import export
from masteryctl.output import (
    Output,
    OutputOption,
    as_json,
    date_proto,
    day_of,
    enum_word,
    print_json,
    print_table,
    time_text,
)
from masteryctl.plots import ScorePoint, drawn_scores, legend
from masteryctl.session import session_of

if TYPE_CHECKING:
    from masteryctl.session import Session

PAST_DAYS = 45
"""As much of the history as is drawn before a forecast."""
StudentId = Annotated[str, typer.Argument(metavar="STUDENT", show_default=False)]

cli = typer.Typer(no_args_is_help=True, help=__doc__)
cli.command()(export)


@cli.command()
def show(context: typer.Context, student_id: StudentId, output: OutputOption = Output.TABLE) -> None:
    """Show how a student stands, what is expected, and what he should do next."""
    session = session_of(context)
    asked: dict[str, Any] = {"student_id": student_id, "school_id": session.school_id}
    mastery = session.client.mastery.get_mastery(**asked).mastery
    advice = session.client.recommendation.get_recommendations(**asked).recommendations
    try:
        prediction = session.client.prediction.predict_next_week(**asked).prediction
    except FailedPrecondition:  # too little history
        prediction = None
    if output is Output.JSON:
        print_json(
            {
                "mastery": as_json(mastery),
                "prediction": prediction and as_json(prediction),
                "recommendations": [as_json(each) for each in advice],
            }
        )
        return
    level = enum_word(mastery_pb2.Level.Name(mastery.level), "LEVEL")
    typer.echo(f"{mastery.student_id}: {mastery.mastery_score:.3f}, {level}")
    typer.echo(f"{mastery.version} events, the last of {time_text(mastery.update_time)} UTC")
    print_table(
        ["component", "score", "weight", ""],
        [
            [
                enum_word(mastery_pb2.Component.Name(part.component), "COMPONENT"),
                f"{part.score:.3f}",
                f"{part.weight:.2f}",
                "" if part.observed else "not observed",
            ]
            for part in mastery.breakdown
        ],
    )
    if prediction is not None:
        typer.echo(
            f"in {prediction.horizon_days} days: {prediction.predicted_score:.3f} "
            f"({prediction.lower_bound:.3f} to {prediction.upper_bound:.3f}, "
            f"{prediction.interval_level:.0%})"
            + (", somebody should step in" if prediction.intervention_needed else "")
        )
    for each in advice:
        typer.echo(f"- {each.area}: {each.rationale}")


@cli.command()
def history(
    context: typer.Context,
    student_id: StudentId,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first UTC day.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last UTC day.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Draw the score of every day that has one, with figures and the trend."""
    session = session_of(context)
    request = analytics.GetHistoryRequest(
        student_id=student_id,
        start_date=since and date_proto(since),
        end_date=until and date_proto(until),
        page_size=1000,
        school_id=session.school_id,
    )
    first = session.client.analytics.get_history(request)
    buckets = list(first.buckets)
    if first.next_page_token:
        request.page_token = first.next_page_token
        buckets += session.client.analytics.get_history.each(request)
    if output is Output.JSON:
        summary = as_json(first.summary)
        print_json({"buckets": [as_json(bucket) for bucket in buckets], "summary": summary})
        return
    if not buckets:
        typer.echo(f"{student_id}: no day has a score")
        return
    typer.echo(drawn_scores(_points(buckets), colours=_colours()))
    typer.echo(legend(forecast=False))
    scores, trend = first.summary.scores, first.summary.trend
    typer.echo(
        f"{scores.count} days: mean {scores.mean:.3f}, median {scores.median:.3f}, "
        f"{scores.minimum:.3f} to {scores.maximum:.3f}, improvement {first.summary.improvement:+.3f}"
    )
    if trend.trend == mastery_pb2.TREND_UNSPECIFIED:
        typer.echo("trend: too few days to tell")
        return
    typer.echo(
        f"trend: {enum_word(mastery_pb2.Trend.Name(trend.trend), 'TREND')}, {trend.slope_per_day:+.4f} a day "
        f"({trend.slope_lower_bound:+.4f} to {trend.slope_upper_bound:+.4f}, 95%)"
    )


@cli.command()
def trajectory(
    context: typer.Context,
    student_id: StudentId,
    days: Annotated[int, typer.Option(min=1, max=30, help="How far ahead.")] = 14,
    output: OutputOption = Output.TABLE,
) -> None:
    """Draw the forecast with its interval, after what came before."""
    session = session_of(context)
    forecast = session.client.prediction.predict_trajectory(
        student_id=student_id, horizon_days=days, school_id=session.school_id
    )
    if output is Output.JSON:
        print_json(as_json(forecast))
        return
    points = [
        ScorePoint(day_of(each.date), each.predicted_score, each.lower_bound, each.upper_bound)
        for each in forecast.points
    ]
    typer.echo(drawn_scores(_past(session, student_id), points, colours=_colours()))
    typer.echo(legend(forecast=True, interval_level=forecast.interval_level))
    last = forecast.points[-1]
    typer.echo(
        f"in {days} days: {last.predicted_score:.3f} ({last.lower_bound:.3f} to {last.upper_bound:.3f}); "
        f"{forecast.forecaster} {forecast.model_version} on {forecast.history_days} days"
    )
    if needed := [day_of(each.date) for each in forecast.points if each.intervention_needed]:
        typer.echo(f"somebody should step in: from {needed[0]} the score is likely to be too low")


@cli.command()
def erase(
    context: typer.Context,
    student_id: StudentId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased, and stop.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Erase everything held about a student, for good. Asks for his id once more."""
    session = session_of(context)
    asked: dict[str, Any] = {"student_id": student_id, "school_id": session.school_id}
    if dry_run or not yes:
        found = session.client.compliance.erase_student_data(
            student_id=student_id, school_id=session.school_id, validate_only=True
        ).receipt
        if dry_run and output is Output.JSON:
            print_json(as_json(found))
        else:
            _print_erased(f"held about {student_id}", found, err=not dry_run)
        if dry_run:
            return
        typed = typer.prompt("This cannot be undone. Type the id of the student to go on", err=True)
        if typed != student_id:
            typer.echo("masteryctl: that is not his id; nothing was erased", err=True)
            raise typer.Exit(2)
    receipt = session.client.compliance.erase_student_data(**asked).receipt
    if output is Output.JSON:
        print_json(as_json(receipt))
        return
    _print_erased(f"erased at {time_text(receipt.erase_time)} UTC", receipt)
    typer.echo(f"receipt {receipt.receipt_id}; in the audit log he is now {receipt.pseudonym}")
    typer.echo(f"events from before are dropped until {time_text(receipt.suppress_end_time)} UTC")


def _print_erased(title: str, receipt: compliance.ErasureReceipt, *, err: bool = False) -> None:
    typer.echo(title, err=err)
    for each in receipt.erased:
        kind = enum_word(compliance.DataKind.Name(each.kind), "DATA_KIND")
        typer.echo(f"  {kind:20} {each.count}", err=err)


def _past(session: Session, student_id: str) -> list[ScorePoint]:
    """Returns the last days with a score; none where the service has no analytics."""
    try:
        buckets = session.client.analytics.get_history.each(
            student_id=student_id, page_size=1000, school_id=session.school_id
        )
        return _points(list(buckets))[-PAST_DAYS:]
    except NotOffered:
        return []


def _points(buckets: list[analytics.HistoryBucket]) -> list[ScorePoint]:
    return [ScorePoint(day_of(bucket.end_date), bucket.last_score) for bucket in buckets]


def _colours() -> bool:
    from rich.console import Console

    return Console().is_terminal and not Console().no_color
