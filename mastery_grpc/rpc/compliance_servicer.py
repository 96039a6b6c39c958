"""ComplianceService: convert, call the use case, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery.v1 import compliance_service_pb2 as pb
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.rpc.convert_compliance import (
    entry_to_proto,
    export_to_proto,
    filter_from_proto,
    receipt_to_proto,
    rule_to_proto,
    verdict_to_proto,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from mastery_grpc.application.audit.log import AuditLog
    from mastery_grpc.application.compliance.erase_student import EraseStudent
    from mastery_grpc.application.compliance.export_student import ExportStudent
    from mastery_grpc.application.compliance.retention import RetentionRule
    from mastery_grpc.rpc.access import Call


class ComplianceServicer:
    """Serves `mastery.v1.ComplianceService`."""

    def __init__(
        self, *, export: ExportStudent, erase: EraseStudent, audit: AuditLog, policy: Sequence[RetentionRule]
    ) -> None:
        self._export = export
        self._erase = erase
        self._audit = audit
        self._policy = pb.GetRetentionPolicyResponse(rules=map(rule_to_proto, policy))

    async def ExportStudentData(
        self, request: pb.ExportStudentDataRequest, call: Call
    ) -> AsyncIterator[pb.ExportStudentDataResponse]:
        student = StudentKey(request.student_id, call.school_id)
        async for part in self._export(student, manifest_only=request.validate_only):
            yield export_to_proto(part)

    async def EraseStudentData(
        self, request: pb.EraseStudentDataRequest, call: Call
    ) -> pb.EraseStudentDataResponse:
        student = StudentKey(request.student_id, call.school_id)
        if request.validate_only:
            receipt = await self._erase.preview(student)
        else:
            receipt = await self._erase(student, request_id=request.request_id.lower())
        return pb.EraseStudentDataResponse(receipt=receipt_to_proto(receipt))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, call: Call
    ) -> pb.ListAuditEntriesResponse:
        page = await self._audit.entries(filter_from_proto(request, call.school_id))
        return pb.ListAuditEntriesResponse(
            entries=map(entry_to_proto, page.entries), next_page_token=page.next_page_token
        )

    async def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, call: Call) -> pb.VerifyAuditLogResponse:
        return verdict_to_proto(await self._audit.verify(call.school_id))

    async def GetRetentionPolicy(
        self, request: pb.GetRetentionPolicyRequest, call: Call
    ) -> pb.GetRetentionPolicyResponse:
        return self._policy
