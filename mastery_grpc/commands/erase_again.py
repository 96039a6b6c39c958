"""Erase again, after a restored backup, who was erased since it was taken."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mastery_grpc import assembly
from mastery_grpc.application.compliance.erase_student import EraseStudent
from mastery_grpc.commands.process import log_nothing, run_async
from mastery_grpc.ingest.announced_erasures import announced_erasures
from mastery_grpc.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-10-14T03:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def erase_again(
    since: Annotated[
        datetime, typer.Option(help="When the backup was begun, or some time before; in UTC.", parser=_time)
    ],
) -> None:
    """Erase again everybody of whom the results tell that he was erased since a time.

    For a Redis put back from a backup, before its workers are started. Does nothing to who is known as erased;
    so it may be repeated, and run too often. Needs the servers' key of the audit log, MASTERY_AUDIT_KEY.
    """
    log_nothing()
    settings = read_settings()
    announced = announced_erasures(assembly.kafka_access(settings), since)
    count = run_async(_erase_again(settings, announced))
    typer.echo(f"{len(announced)} erasures since {since.isoformat()}, {count} of them repeated")


async def _erase_again(settings: Settings, announced: Sequence[ErasureAnnouncement]) -> int:
    """Returns how many of the erasures Redis did not know."""
    async with assembly.opened_storage(settings, None) as storage:
        erase = EraseStudent(
            storage.records,
            storage.repository,
            storage.elsewhere,
            assembly.audit_log_of(settings, storage.audit),
            None,
            mark_lifetime=settings.retention().erasure_mark,
            clock=assembly.utc_now,
        )
        return sum([await erase.again(each) for each in announced])
