"""A failed call as an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REQUEST_ID = "x-request-id"
_STATUS = "grpc-status-details-bin"
_TRANSPORT_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
_Detail = TypeVar("_Detail", bound=Message)
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class MasteryError(Exception):
    """A call that failed, or one item of a call that did; the message is for people, the rest for programs."""

    codes: ClassVar[tuple[grpc.StatusCode, ...]] = ()

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[tuple[str, str]] = (),
        retry_delay: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        """A name of `mastery.v1.ErrorReason` without its prefix, such as "STUDENT_NOT_FOUND"; empty where the
        service did not get to answer."""
        self.metadata = dict(metadata or {})
        """What `error_reason.proto` shows with the reason."""
        self.violations = tuple(violations)
        """Pairs of a field of the request and what is wrong with it."""
        self.retry_delay = retry_delay
        """After how many seconds the service asks to try again."""
        self.request_id = request_id
        """Finds the call in the logs of the service."""

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @property
    def is_passing(self) -> bool:
        """Whether a stream that ended with this may be opened again as it was: bad weather, not a bad call."""
        if self.code is grpc.StatusCode.UNAVAILABLE or self.reason in ("SLOW_READER", "RATE_LIMITED"):
            return True
        # The service always gives a reason: without one the connection broke, or a proxy cut it.
        return self.code in _TRANSPORT_FAULTS and not self.reason


class InvalidRequest(MasteryError):
    """The request breaks a rule of its message; `violations` lists them all."""

    codes = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)


class Unauthenticated(MasteryError):
    """There is no token, or the service does not accept it."""

    codes = (grpc.StatusCode.UNAUTHENTICATED,)


class PermissionDenied(MasteryError):
    """The caller may not do this."""

    codes = (grpc.StatusCode.PERMISSION_DENIED,)


class NotFound(MasteryError):
    """There is no such student, day, cohort, batch or recommendation."""

    codes = (grpc.StatusCode.NOT_FOUND,)


class AlreadyExists(MasteryError):
    """There is one of this id already, or the request id was used for something else."""

    codes = (grpc.StatusCode.ALREADY_EXISTS,)


class Conflict(MasteryError):
    """Others changed the same thing meanwhile."""

    codes = (grpc.StatusCode.ABORTED,)


class FailedPrecondition(MasteryError):
    """Things are not in the state that the call needs."""

    codes = (grpc.StatusCode.FAILED_PRECONDITION,)


class ResourceExhausted(MasteryError):
    """A limit is reached; `retry_delay` says when to come back, if that helps."""

    codes = (grpc.StatusCode.RESOURCE_EXHAUSTED,)


class Unavailable(MasteryError):
    """The service, or what it needs, is away just now."""

    codes = (grpc.StatusCode.UNAVAILABLE,)


class DeadlineExceeded(MasteryError):
    """The call took longer than its timeout; a write may have had its effect."""

    codes = (grpc.StatusCode.DEADLINE_EXCEEDED,)


class NotOffered(MasteryError):
    """The method is part of the contract, and the server does not serve it."""

    codes = (grpc.StatusCode.UNIMPLEMENTED,)


class ServerFault(MasteryError):
    """The service, or something on the way to it, is at fault."""

    codes = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


_CLASSES = {code: kind for kind in MasteryError.__subclasses__() for code in kind.codes}


def error_of(status: status_pb2.Status, *, request_id: str = "") -> MasteryError:
    """Returns what a status tells: of a call, or the `error` of one item of a call that succeeded."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    reason, metadata = "", {}
    violations: list[tuple[str, str]] = []
    retry_delay: float | None = None
    for packed in status.details:
        if info := _unpacked(packed, error_details_pb2.ErrorInfo()):
            reason, metadata = info.reason, dict(info.metadata)
        elif bad_request := _unpacked(packed, error_details_pb2.BadRequest()):
            violations = [(each.field, each.description) for each in bad_request.field_violations]
        elif retry_info := _unpacked(packed, error_details_pb2.RetryInfo()):
            retry_delay = retry_info.retry_delay.ToMilliseconds() / 1000
    return _CLASSES.get(code, MasteryError)(
        status.message,
        code,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_delay=retry_delay,
        request_id=request_id,
    )


def error_from(failed: grpc.aio.AioRpcError) -> MasteryError:
    """Returns what a failed call tells. Never raises, whatever a proxy may have put into the trailers."""
    trailers = dict(failed.trailing_metadata() or ())
    request_id = trailers.get(REQUEST_ID, "")
    status = status_pb2.Status()
    try:
        status.ParseFromString(trailers.get(_STATUS, b""))
    except (DecodeError, TypeError):
        status.Clear()
    code: int = failed.code().value[0]
    if status.code != code:
        status = status_pb2.Status(code=code, message=failed.details() or "")
    return error_of(status, request_id=request_id if isinstance(request_id, str) else "")


def _unpacked(packed: Any, detail: _Detail) -> _Detail | None:
    try:
        return detail if packed.Unpack(detail) else None
    except DecodeError:
        return None
