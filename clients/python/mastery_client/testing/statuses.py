"""Statuses as the service makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message


def status_with(
    code: str,
    *,
    reason: str = "",
    message: str = "as the test wants it",
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[tuple[str, str]] = (),
    retry_delay: float | None = None,
) -> status_pb2.Status:
    """Returns a status as the service makes it; `code` by its name, such as "NOT_FOUND"."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="mastery.v1", metadata=metadata))
    if fields := [
        error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        for field, description in violations
    ]:
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry_delay is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_delay * 1000))
        details.append(retry)
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=message)
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def student_not_found(student_id: str) -> status_pb2.Status:
    """Returns what the service says of a student it does not know."""
    return status_with(
        "NOT_FOUND",
        reason="STUDENT_NOT_FOUND",
        message=f"no event of the student {student_id} is known",
        metadata={"student_id": student_id},
    )
