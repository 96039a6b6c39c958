"""Check the audit logs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mastery_grpc import assembly
from mastery_grpc.commands.process import log_nothing, run_async
from mastery_grpc.settings import Settings, read_settings

DEFAULT_SCHOOL = "the default school"


def audit(
    school: Annotated[str | None, typer.Option(help="Of this school alone, empty for the default one.")] = None,
) -> None:
    """Check the audit logs from end to end, and say where one was tampered with.

    Needs the key that the servers have, MASTERY_AUDIT_KEY. Ends with status 1 if a log is not as it was written.
    """
    log_nothing()
    if not run_async(_audit(read_settings(), school)):
        raise typer.Exit(1)


async def _audit(settings: Settings, school: str | None) -> bool:
    """Returns whether all logs are as they were written."""
    console, are_intact = Console(), True
    async with assembly.opened_storage(settings, None) as storage:
        log = assembly.audit_log_of(settings, storage.audit)
        for school_id in sorted(await storage.audit.schools()) if school is None else [school]:
            with console.status(f"checking {school_id or DEFAULT_SCHOOL}"):
                verdict = await log.verify(school_id)
            told = "intact" if verdict.fault is None else f"{verdict.fault.kind} at {verdict.fault.sequence}"
            console.print(f"{school_id or DEFAULT_SCHOOL}: {verdict.entry_count} entries checked, {told}")
            are_intact &= verdict.intact
    return are_intact
