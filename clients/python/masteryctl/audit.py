"""The audit log: who has looked at whose data, and whether the log is as it was written."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import grpc
import typer

from mastery.v1 import access_pb2
from mastery.v1 import compliance_service_pb2 as compliance
from masteryctl.failures import BAD_ANSWER
from masteryctl.output import Output, OutputOption, as_json, enum_word, print_json, print_table, time_text
from masteryctl.session import session_of

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

cli = typer.Typer(no_args_is_help=True, help=__doc__)


@cli.command("list")
def list_entries(
    context: typer.Context,
    student: Annotated[str, typer.Option(help="Whose data it was.")] = "",
    caller: Annotated[str, typer.Option(help="Who it was: the `sub` of his token.")] = "",
    method: Annotated[str, typer.Option(help="Such as mastery.v1.MasteryService/GetMastery.")] = "",
    since: Annotated[datetime | None, typer.Option(formats=FORMATS, help="UTC, inclusive.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=FORMATS, help="UTC, exclusive.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List entries of the audit log, newest first."""
    session = session_of(context)
    request = compliance.ListAuditEntriesRequest(
        student_id=student, caller=caller, method=method, page_size=min(limit, 1000), school_id=session.school_id
    )
    if since is not None:
        request.start_time.FromDatetime(since.replace(tzinfo=UTC))
    if until is not None:
        request.end_time.FromDatetime(until.replace(tzinfo=UTC))
    entries = list(islice(session.client.compliance.list_audit_entries.each(request), limit))
    if output is Output.JSON:
        print_json([as_json(entry) for entry in entries])
        return
    print_table(
        ["no", "time (UTC)", "caller", "role", "method", "student", "code"],
        [
            [
                str(entry.sequence),
                time_text(entry.create_time),
                entry.caller,
                enum_word(access_pb2.Role.Name(entry.role), "ROLE"),
                entry.method.removeprefix("mastery.v1."),
                entry.student_hash[:12],
                CODES.get(entry.code, str(entry.code)),
            ]
            for entry in entries
        ],
    )


@cli.command()
def verify(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Check the audit log from end to end. Ends with 1 if it is not as it was written."""
    session = session_of(context)
    verdict = session.client.compliance.verify_audit_log(school_id=session.school_id)
    if output is Output.JSON:
        print_json(as_json(verdict))
    elif verdict.intact:
        typer.echo(f"intact: {verdict.entry_count} entries checked")
    else:
        kind = enum_word(compliance.AuditFaultKind.Name(verdict.fault.kind), "AUDIT_FAULT_KIND")
        typer.echo(f"NOT intact: {kind} at entry {verdict.fault.sequence}")
    if not verdict.intact:
        raise typer.Exit(BAD_ANSWER)
