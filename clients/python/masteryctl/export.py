"""Exporting a student: what was sent, held against its manifest before the file is called whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from google.protobuf.json_format import MessageToDict

from mastery.v1 import compliance_service_pb2 as compliance
from masteryctl.failures import BAD_ANSWER, CommandFailed
from masteryctl.output import Output, OutputOption, as_json, enum_word, print_json, print_table
from masteryctl.session import session_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def export(
    context: typer.Context,
    student_id: Annotated[str, typer.Argument(metavar="STUDENT", show_default=False)],
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Where to; STUDENT.jsonl by default.", show_default=False)
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write everything held about a student to a file, which `mastery-grpc import` takes back.

    It holds a message of the export on each line, the manifest on the last. It is there once counts and digests
    are those of the manifest, and nobody but its owner may read it.
    """
    session = session_of(context)
    file = file or Path(f"{student_id}.jsonl")
    part = file.with_name(f"{file.name}.part")
    responses = session.client.compliance.export_student_data(student_id=student_id, school_id=session.school_id)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
            manifest = write_checked(responses, written)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    if output is Output.JSON:
        print_json({"file": str(file), "manifest": as_json(manifest)})
        return
    rows = [[_kind(entry.kind), str(entry.count), entry.sha256.hex()[:16]] for entry in manifest.entries]
    print_table(["kind", "records", "sha-256"], rows)
    typer.echo(f"{file} is whole: all counts and digests are those of the manifest")


def write_checked(
    responses: Iterable[compliance.ExportStudentDataResponse], written: TextIO
) -> compliance.ExportManifest:
    """Writes the messages, a line each, and returns the manifest. Raises CommandFailed if they are not like it."""
    counts: defaultdict[int, int] = defaultdict(int)
    digests: defaultdict[int, Any] = defaultdict(hashlib.sha256)
    manifest = None
    for response in responses:
        message = MessageToDict(response, preserving_proto_field_name=True)
        written.write(json.dumps(message, ensure_ascii=False) + "\n")
        if response.HasField("manifest"):
            manifest = response.manifest
        elif response.HasField("record"):
            counts[response.record.kind] += 1
            digests[response.record.kind].update(response.record.json.encode() + b"\n")
    if manifest is None:
        raise CommandFailed("the export was cut off: its manifest is missing; nothing was kept", BAD_ANSWER)
    if faults := "; ".join(_faults(manifest, counts, digests)):
        raise CommandFailed(f"the export is not as its manifest says: {faults}; nothing was kept", BAD_ANSWER)
    return manifest


def _faults(manifest: compliance.ExportManifest, counts: dict[int, int], digests: dict[int, Any]) -> Iterator[str]:
    expected: dict[int, compliance.ManifestEntry] = {entry.kind: entry for entry in manifest.entries}
    for kind in sorted({*expected, *counts}):
        entry, count = expected.get(kind), counts.get(kind, 0)
        if entry is None or entry.count != count:
            yield f"{_kind(kind)}: {count} records, not {entry.count if entry else 0}"
        elif count and entry.sha256 != digests[kind].digest():
            yield f"{_kind(kind)}: the digest is another"


def _kind(kind: Any) -> str:
    return enum_word(compliance.DataKind.Name(kind), "DATA_KIND")
