"""The commands: each reads the settings, then hands over to the application."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaException
from rich.console import Console

from mastery_grpc import app, assembly
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.commands import dlq
from mastery_grpc.commands.audit import audit
from mastery_grpc.commands.backtest import backtest
from mastery_grpc.commands.erase_again import erase_again
from mastery_grpc.commands.health import health
from mastery_grpc.commands.import_student import import_student
from mastery_grpc.commands.process import run_async
from mastery_grpc.commands.rebuild import rebuild
from mastery_grpc.commands.topics import topics
from mastery_grpc.commands.train import train
from mastery_grpc.domain.errors import InvalidInput, Unavailable
from mastery_grpc.processes import run_processes
from mastery_grpc.rpc.authentication import issue_token
from mastery_grpc.settings import Settings, SettingsError, read_settings
from mastery_grpc.simulation.learners import simulate_class
from mastery_grpc.simulation.producer import EventProducer, send_events
from mastery_grpc.telemetry.logs import configure_logs

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
cli.add_typer(dlq.cli, name="dlq")
cli.command()(audit)
cli.command("erase-again")(erase_again)
cli.command("import")(import_student)
cli.command()(health)
cli.command()(rebuild)
cli.command()(backtest)
cli.command()(topics)
cli.command()(train)


def run() -> None:
    """Runs the command line; a wrong setting or a service that is away ends it with one line."""
    try:
        cli()
    except (SettingsError, Unavailable, InvalidInput) as error:
        sys.exit(f"mastery-grpc: {error}")
    except KafkaException as error:
        sys.exit(f"mastery-grpc: kafka: {error.args[0].str()}")


@cli.command()
def serve() -> None:
    """Serve the gRPC API."""
    configure_logs(sys.stderr)
    settings = read_settings()
    if settings.grpc_workers == 1:
        run_async(app.serve(settings))
    else:
        app.check_ports(settings)
        assembly.forecaster_of(settings)
        assembly.certificates_of(settings)
        settings.audit_secret()
        run_async(assembly.signing_keys_of(settings))
        run_processes(partial(_serve_one, settings), settings.grpc_workers)


@cli.command()
def ingest() -> None:
    """Ingest events from Kafka."""
    configure_logs(sys.stderr)
    run_async(app.ingest(read_settings()))


@cli.command()
def dev(
    data: Annotated[Path, typer.Option(help="Where the data is kept between runs.")] = Path(".mastery"),
    learners: Annotated[int, typer.Option(min=1, max=200)] = 12,
    seed: Annotated[int, typer.Option(help="The class: the same seed is the same class.")] = 7,
    speed: Annotated[float, typer.Option(help="Simulated days per second.", min=0.01)] = 1.0,
) -> None:
    """Run everything on this machine, with a simulated class."""
    from mastery_grpc.dev import run_dev  # needs the extra [embedded], which the other commands do not

    data.mkdir(parents=True, exist_ok=True)
    configure_logs((data / "log.jsonl").open("a"))
    run_async(run_dev(data, learners=learners, seed=seed, days_per_second=speed, console=Console()))


@cli.command()
def token(
    subject: Annotated[str, typer.Argument(help="The claim `sub`; for a student, his student_id.")],
    role: Annotated[Role, typer.Option()] = Role.SERVICE,
    school: Annotated[str, typer.Option(help="Confines the token to one school.")] = "",
    hours: Annotated[float, typer.Option(help="How long it is valid.", min=0.01)] = 1.0,
) -> None:
    """Issue a token, signed with MASTERY_JWT_SECRET."""
    settings = read_settings()
    typer.echo(
        issue_token(
            Caller(subject, role, school),
            secret=settings.signing_secret(),
            algorithm=settings.jwt_algorithm,
            expires_at=time.time() + hours * 3600,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
    )


@cli.command()
def simulate(
    learners: Annotated[int, typer.Option(min=1)] = 100,
    days: Annotated[int, typer.Option(min=1)] = 56,
    seed: Annotated[int, typer.Option()] = 7,
    late_share: Annotated[float, typer.Option(help="Share of events sent late.", min=0, max=1)] = 0.0,
) -> None:
    """Send a simulated class to Kafka."""
    configure_logs(sys.stderr)
    access = assembly.kafka_access(read_settings())
    first_day = datetime.now(UTC).date() - timedelta(days=days)
    events = simulate_class(seed=seed, learners=learners, first_day=first_day, days=days, late_share=late_share)
    producer = EventProducer(access.client(), access.topics.requests)
    count = send_events(producer, events, console=Console(stderr=True))
    typer.echo(f"sent {count} events of {learners} learners")


def _serve_one(settings: Settings, index: int) -> None:
    configure_logs(sys.stderr)
    run_async(app.serve(settings.model_copy(update={"metrics_port": app.metrics_port_of(settings, index)})))
