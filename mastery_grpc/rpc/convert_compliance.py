"""Between the messages of compliance and the domain; no rule lives here."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from mastery.v1 import access_pb2, events_pb2
from mastery.v1 import compliance_service_pb2 as pb
from mastery_grpc.application.audit.reader import AuditFilter
from mastery_grpc.application.callers import Role
from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.export_student import ExportManifest, ExportRecord, ManifestEntry
from mastery_grpc.application.event_protobuf import time_from_proto
from mastery_grpc.domain.audit_chain import FaultKind
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.results import data_erased
from mastery_grpc.rpc.convert import time_to_proto

if TYPE_CHECKING:
    from mastery_grpc.application.audit.reader import AuditVerdict
    from mastery_grpc.application.compliance.erase_student import ErasureReceipt
    from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement
    from mastery_grpc.application.compliance.retention import RetentionRule
    from mastery_grpc.domain.audit_chain import AuditEntry

_KINDS = {kind: pb.DataKind.Value(f"DATA_KIND_{kind.name}") for kind in DataKind}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
_FAULTS = {kind: pb.AuditFaultKind.Value(f"AUDIT_FAULT_KIND_{kind.name}") for kind in FaultKind}
_ROLES = {role.value: access_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}


def erasure_to_proto(announcement: ErasureAnnouncement) -> events_pb2.StudentDataErased:
    """Returns the announcement of an erasure as the contract shapes it."""
    told = data_erased(
        student=announcement.student,
        receipt_id=announcement.receipt_id,
        erase_millis=announcement.erase_millis,
    )
    return events_pb2.StudentDataErased(
        event_id=told.event_id,
        event_time=time_to_proto(announcement.erase_time),
        student_id=told.student_id,
        school_id=told.school_id,
        receipt_id=told.receipt_id,
    )


def receipt_to_proto(receipt: ErasureReceipt) -> pb.ErasureReceipt:
    """Returns a receipt as the contract shapes it."""
    return pb.ErasureReceipt(
        receipt_id=receipt.receipt_id,
        pseudonym=receipt.pseudonym,
        erase_time=None if receipt.erase_time is None else time_to_proto(receipt.erase_time),
        erased=[pb.ErasedData(kind=_KINDS[kind], count=count) for kind, count in receipt.counts.items()],
        suppress_end_time=time_to_proto(receipt.suppress_end_time),
    )


def export_to_proto(part: ExportRecord | ExportManifest) -> pb.ExportStudentDataResponse:
    """Returns a part of an export as the contract shapes it."""
    if isinstance(part, ExportRecord):
        record = pb.ExportRecord(kind=_KINDS[part.kind], json=part.json.decode())
        return pb.ExportStudentDataResponse(record=record)
    return pb.ExportStudentDataResponse(
        manifest=pb.ExportManifest(
            student_id=part.student.student_id,
            school_id=part.student.school_id,
            create_time=time_to_proto(part.create_time),
            entries=[
                pb.ManifestEntry(kind=_KINDS[entry.kind], count=entry.count, sha256=entry.sha256)
                for entry in part.entries
            ],
        )
    )


def export_from_proto(message: pb.ExportStudentDataResponse) -> ExportRecord | ExportManifest:
    """Returns a part of an export; its kinds must be known. Raises KeyError for one that is not."""
    if message.WhichOneof("part") == "record":
        return ExportRecord(_KIND_OF[message.record.kind], message.record.json.encode())
    manifest = message.manifest
    return ExportManifest(
        StudentKey(manifest.student_id, manifest.school_id),
        manifest.create_time.ToDatetime(UTC),
        tuple(ManifestEntry(_KIND_OF[entry.kind], entry.count, entry.sha256) for entry in manifest.entries),
    )


def filter_from_proto(request: pb.ListAuditEntriesRequest, school_id: str) -> AuditFilter:
    """Returns which entries are asked for. Raises InvalidInput for a time that is none."""
    return AuditFilter(
        school_id=school_id,
        student=StudentKey(request.student_id, school_id) if request.student_id else None,
        caller=request.caller,
        method=request.method,
        start_time=time_from_proto(request.start_time, "start_time") if request.HasField("start_time") else None,
        end_time=time_from_proto(request.end_time, "end_time") if request.HasField("end_time") else None,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def entry_to_proto(entry: AuditEntry) -> pb.AuditEntry:
    """Returns an entry of the audit log as the contract shapes it."""
    return pb.AuditEntry(
        sequence=entry.sequence,
        create_time=time_to_proto(entry.create_time),
        caller=entry.caller,
        role=_ROLES.get(entry.role, access_pb2.ROLE_UNSPECIFIED),
        school_id=entry.school_id,
        method=entry.method,
        student_hash=entry.student_hash,
        code=entry.code,
        request_id=entry.request_id,
        mac=entry.mac,
    )


def verdict_to_proto(verdict: AuditVerdict) -> pb.VerifyAuditLogResponse:
    """Returns whether a log is intact as the contract shapes it."""
    fault = verdict.fault
    return pb.VerifyAuditLogResponse(
        intact=verdict.intact,
        entry_count=verdict.entry_count,
        fault=fault and pb.AuditFault(sequence=fault.sequence, kind=_FAULTS[fault.kind]),
    )


def rule_to_proto(rule: RetentionRule) -> pb.RetentionRule:
    """Returns a lifetime as the contract shapes it."""
    message = pb.RetentionRule(kind=_KINDS[rule.kind], purpose=rule.purpose)
    if rule.lifetime is not None:
        message.lifetime.CopyFrom(Duration())
        message.lifetime.FromTimedelta(rule.lifetime)
    return message
