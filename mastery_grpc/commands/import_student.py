"""Put an exported student back."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from google.protobuf.json_format import ParseDict, ParseError

from mastery.v1 import compliance_service_pb2 as pb
from mastery_grpc import assembly
from mastery_grpc.application.compliance.import_student import ImportStudent
from mastery_grpc.commands.process import log_nothing, run_async
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.rpc.convert_compliance import export_from_proto
from mastery_grpc.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mastery_grpc.application.compliance.export_student import ExportManifest, ExportRecord
    from mastery_grpc.domain.events import StudentKey


def import_student(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What ExportStudentData streamed.")],
) -> None:
    """Put an exported student into an engine that does not know him.

    FILE holds the messages of ExportStudentData as JSON, one after the other, as grpcurl prints them. It is
    refused unless it is complete and as the manifest says. Entries of the audit log stay where they are.
    """
    log_nothing()
    student = run_async(_import(read_settings(), file.read_text()))
    typer.echo(f"{student.student_id} is back")


async def _import(settings: Settings, text: str) -> StudentKey:
    async with assembly.opened_storage(settings, None) as storage:
        return await ImportStudent(storage.records, storage.elsewhere)(_parts(text))


def _parts(text: str) -> Iterator[ExportRecord | ExportManifest]:
    """Yields the parts of an export in a text. Raises InvalidInput."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        try:
            message, place = decoder.raw_decode(text, place)
            yield export_from_proto(ParseDict(message, pb.ExportStudentDataResponse()))
        except (ValueError, KeyError, ParseError):
            raise InvalidInput.of("file", f"is not an export: see character {place}") from None
