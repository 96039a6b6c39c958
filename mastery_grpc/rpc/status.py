"""The one table from typed errors to statuses: canonical code, ErrorInfo, and what else helps the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from mastery_grpc.domain.errors import (
    BatchEnded,
    BatchNotFound,
    BrokerUnavailable,
    CohortByRule,
    CohortExists,
    CohortNotFound,
    CohortTooLarge,
    CohortTooSmall,
    Contention,
    EtagMismatch,
    EventTooOld,
    InsufficientHistory,
    InvalidInput,
    InvalidPageToken,
    ItemFailed,
    KeysUnavailable,
    LogIncomplete,
    NotFound,
    RateLimited,
    RecommendationNotFound,
    RequestIdReused,
    ShuttingDown,
    SlowReader,
    SnapshotNotFound,
    StorageUnavailable,
    StudentErased,
    StudentNotFound,
    TooManyOpen,
    Unavailable,
)
from mastery_grpc.rpc.access import PermissionDenied
from mastery_grpc.rpc.authentication import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

DOMAIN = "mastery.v1"
MOST_VIOLATIONS = 20
"""Listed in one status: it travels in the trailers of a call, of which clients take 8 KiB."""

log = structlog.get_logger(__name__)

_TABLE: dict[type[Exception], tuple[int, str]] = {
    InvalidInput: (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    InvalidPageToken: (code_pb2.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
    EventTooOld: (code_pb2.FAILED_PRECONDITION, "EVENT_TOO_OLD"),
    InsufficientHistory: (code_pb2.FAILED_PRECONDITION, "INSUFFICIENT_HISTORY"),
    StudentNotFound: (code_pb2.NOT_FOUND, "STUDENT_NOT_FOUND"),
    SnapshotNotFound: (code_pb2.NOT_FOUND, "SNAPSHOT_NOT_FOUND"),
    RecommendationNotFound: (code_pb2.NOT_FOUND, "RECOMMENDATION_NOT_FOUND"),
    BatchNotFound: (code_pb2.NOT_FOUND, "BATCH_NOT_FOUND"),
    CohortNotFound: (code_pb2.NOT_FOUND, "COHORT_NOT_FOUND"),
    CohortExists: (code_pb2.ALREADY_EXISTS, "COHORT_EXISTS"),
    RequestIdReused: (code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    EtagMismatch: (code_pb2.ABORTED, "ETAG_MISMATCH"),
    CohortTooSmall: (code_pb2.FAILED_PRECONDITION, "COHORT_TOO_SMALL"),
    CohortTooLarge: (code_pb2.FAILED_PRECONDITION, "COHORT_TOO_LARGE"),
    CohortByRule: (code_pb2.FAILED_PRECONDITION, "COHORT_BY_RULE"),
    StudentErased: (code_pb2.FAILED_PRECONDITION, "STUDENT_ERASED"),
    BatchEnded: (code_pb2.FAILED_PRECONDITION, "BATCH_ENDED"),
    LogIncomplete: (code_pb2.FAILED_PRECONDITION, "LOG_INCOMPLETE"),
    RateLimited: (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    TooManyOpen: (code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN"),
    SlowReader: (code_pb2.RESOURCE_EXHAUSTED, "SLOW_READER"),
    Contention: (code_pb2.ABORTED, "CONFLICT"),
    StorageUnavailable: (code_pb2.UNAVAILABLE, "STORAGE_UNAVAILABLE"),
    BrokerUnavailable: (code_pb2.UNAVAILABLE, "BROKER_UNAVAILABLE"),
    KeysUnavailable: (code_pb2.UNAVAILABLE, "KEYS_UNAVAILABLE"),
    ShuttingDown: (code_pb2.UNAVAILABLE, "SHUTTING_DOWN"),
    TimeoutError: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    ItemFailed: (code_pb2.INTERNAL, "INTERNAL"),
}
_MESSAGES = {
    StorageUnavailable: "the storage is not reachable just now",
    BrokerUnavailable: "the message broker is not reachable just now",
    KeysUnavailable: "the keys that tokens are verified with cannot be had just now",
    TimeoutError: "the call took longer than its deadline",
}


def status_of(error: Exception) -> status_pb2.Status:
    """Returns the status that a caller sees. An error without a place in the table is a bug: logged in full,
    and told as INTERNAL without a word of what it was."""
    if isinstance(error, Unauthenticated):
        return _status(code_pb2.UNAUTHENTICATED, error.reason, str(error))
    if isinstance(error, PermissionDenied):
        return _status(code_pb2.PERMISSION_DENIED, error.reason, str(error), metadata=error.metadata)
    if (entry := _TABLE.get(type(error))) is None:
        log.error("unexpected error", exc_info=error)
        return _status(code_pb2.INTERNAL, "INTERNAL", "internal error")
    code, reason = entry
    return _status(code, reason, _message(error), *_details(error), metadata=_metadata(error))


def _message(error: Exception) -> str:
    if isinstance(error, InvalidInput) and len(error.violations) > MOST_VIOLATIONS:
        listed = "; ".join(map(str, error.violations[:MOST_VIOLATIONS]))
        return f"{listed}; and {len(error.violations) - MOST_VIOLATIONS} more"
    return _MESSAGES.get(type(error), str(error))


def _metadata(error: Exception) -> dict[str, str]:
    match error:
        case InvalidInput():
            return {"field": error.violations[0].field}
        case InvalidPageToken():
            return {"field": "page_token"}
        case InsufficientHistory():
            return {
                "student_id": error.student_id,
                "history_days": str(error.history_days),
                "required_days": str(error.required_days),
            }
        case StudentNotFound():
            return {"student_id": error.resource_name}
        case SnapshotNotFound():
            student_id, _, day = error.resource_name.partition("/")
            return {"student_id": student_id, "date": day}
        case StudentErased():
            return {"event_id": error.event_id, "erase_time": error.erase_time.isoformat().replace("+00:00", "Z")}
        case RateLimited():
            return {"limit": str(error.limit), "period": f"{error.period:g}s"}
        case TooManyOpen():
            return {"limit": str(error.limit), "subject": error.subject}
        case BatchNotFound():
            return {"batch_id": error.resource_name}
        case BatchEnded():
            return {"batch_id": error.batch_id, "state": error.state}
        case LogIncomplete():
            return {"student_id": error.student_id}
        case RecommendationNotFound():
            return {"recommendation_id": error.resource_name}
        case CohortNotFound():
            return {"cohort_id": error.resource_name}
        case CohortExists() | EtagMismatch() | CohortByRule():
            return {"cohort_id": error.cohort_id}
        case RequestIdReused():
            return {"request_id": error.request_id}
        case CohortTooSmall():
            return {
                "cohort_id": error.cohort_id,
                "size": str(error.size),
                "required_size": str(error.required_size),
            }
        case CohortTooLarge():
            return {"cohort_id": error.cohort_id, "size": str(error.size), "limit": str(error.limit)}
        case _:
            return {}


def _details(error: Exception) -> list[Message]:
    match error:
        case InvalidInput():
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.reason)
                for violation in error.violations[:MOST_VIOLATIONS]
            ]
            return [error_details_pb2.BadRequest(field_violations=violations)]
        case NotFound():
            return [
                error_details_pb2.ResourceInfo(
                    resource_type=error.resource_type, resource_name=error.resource_name
                )
            ]
        case CohortExists():
            return [
                error_details_pb2.ResourceInfo(resource_type="mastery.v1.Cohort", resource_name=error.cohort_id)
            ]
        case RateLimited():
            return [_retry_info(error.retry_after), _quota_failure("calls", str(error))]
        case TooManyOpen():
            return [_quota_failure(error.subject, str(error))]
        case Unavailable():
            return [_retry_info(error.retry_after)]
        case _:
            return []


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _quota_failure(subject: str, description: str) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)
    return error_details_pb2.QuotaFailure(violations=[violation])


def _status(
    code: int, reason: str, message: str, *details: Message, metadata: Mapping[str, str] | None = None
) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    packed = []
    for detail in (info, *details):
        any_message = AnyMessage()
        any_message.Pack(detail)
        packed.append(any_message)
    return status_pb2.Status(code=code, message=message, details=packed)
