"""Create the topics, and tell where they are not as planned."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mastery_grpc import assembly
from mastery_grpc.ingest.topics import compare_topics, create_topics
from mastery_grpc.settings import read_settings
from mastery_grpc.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from mastery_grpc.ingest.topics import TopicState


def topics(
    check: Annotated[
        bool, typer.Option("--check", help="Create nothing; end with status 1 unless all is as planned.")
    ] = False,
) -> None:
    """Create the topics that are missing, and tell how those that exist differ from the settings.

    What exists is never changed: fewer partitions cannot be, more would part a student's later events from his
    earlier ones, and a retention is somebody's decision.
    """
    configure_logs(sys.stderr)
    settings = read_settings()
    access, terms = assembly.kafka_access(settings), assembly.topic_terms(settings)
    states = compare_topics(access, terms)
    created = create_topics(access, terms) if not check and any(not state.exists for state in states) else []
    for state in states:
        typer.echo(f"{state.name}: {'created' if state.name in created else _told(state)}")
    if check and not all(state.is_as_planned for state in states):
        raise typer.Exit(1)


def _told(state: TopicState) -> str:
    if not state.exists:
        return "missing"
    return "; ".join(map(str, state.drifts)) or "as planned"
