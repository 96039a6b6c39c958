"""Who may call what: the access option of the protos, read once per method and enforced at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mastery.v1 import access_pb2
from mastery_grpc.application.callers import CallClass, Caller, Role

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

LONGEST_ID = 64


class PermissionDenied(Exception):
    """A caller who may not do this. `reason` is the name of an ErrorReason; never tells what exists."""

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata


@dataclass(frozen=True, slots=True)
class Call:
    """One call by an authenticated caller."""

    caller: Caller
    school_id: str
    """The school that the call is about."""
    request_id: str = ""
    """By which the call is found in logs and in the audit log."""

    def school_of(self, requested: str) -> str:
        """Returns the school that an event is about. Raises PermissionDenied for a foreign one."""
        return reachable_school(self.caller, requested)


def reachable_school(caller: Caller, requested: str) -> str:
    """Returns the school meant by `requested`, empty for the caller's own. Raises PermissionDenied."""
    if requested in ("", caller.school_id):
        return caller.school_id
    if caller.is_confined:
        # Not validated yet, hence of any length, which the trailers of a call are not.
        raise PermissionDenied(
            "OTHER_SCHOOL", "the token is confined to another school", school_id=requested[:LONGEST_ID]
        )
    return requested


class AccessRule:
    """The access option of one method."""

    def __init__(self, method: MethodDescriptor) -> None:
        """Raises ValueError for a method that does not say who may call it, or what it counts as."""
        access = method.GetOptions().Extensions[access_pb2.access]
        if not access.roles:
            raise ValueError(f"{method.full_name} has no access option")
        self._roles = frozenset(
            Role(access_pb2.Role.Name(role).removeprefix("ROLE_").lower()) for role in access.roles
        )
        self._self_field = access.self_field
        self.call_class = CallClass(
            access_pb2.CallClass.Name(access.call_class).removeprefix("CALL_CLASS_").lower()
        )
        self.method = f"{method.containing_service.full_name}/{method.name}"

    def admit(self, caller: Caller, request: Message | None, request_id: str = "") -> Call:
        """Returns the call that the caller may make. Raises PermissionDenied."""
        if caller.role not in self._roles:
            role = caller.role.value
            raise PermissionDenied("ROLE_NOT_ALLOWED", f"not for the role {role!r}", role=role, method=self.method)
        if request is None:
            return Call(caller, caller.school_id, request_id)
        if caller.role is Role.STUDENT and self._self_field:
            named = getattr(request, self._self_field)
            ids = [named] if isinstance(named, str) else list(named)
            if any(student_id != caller.subject for student_id in ids):
                raise PermissionDenied(
                    "NOT_OWN_RECORD", "students may ask about themselves only", field=self._self_field
                )
        return Call(caller, reachable_school(caller, getattr(request, "school_id", "")), request_id)
