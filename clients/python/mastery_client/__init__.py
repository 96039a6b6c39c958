"""The client of the mastery engine.

    from mastery_client import AsyncClient, NotFound

    async with AsyncClient("mastery.example.org:443", token=Path("/run/secrets/mastery/token")) as client:
        try:
            mastery = (await client.mastery.get_mastery(student_id="student_12345")).mastery
        except NotFound as error:
            print(error.reason)  # STUDENT_NOT_FOUND
        async for entry in client.compliance.list_audit_entries.each(student_id="student_12345"):
            print(entry.method)

`Client` has the same services and methods, and waits. Methods take the fields of their request, or the request,
and return the response; all of them are messages of `mastery.v1`, and its protos are the manual.

- Every call has a deadline. Reads, and writes that an id makes idempotent, are tried again when the service is
  away; the id is filled in where it is left out. All other calls are made once.
- `watch_mastery`, `watch_batch` and `stream_events` go on by themselves when the connection breaks.
- List methods return a page; their `each` yields the items of all pages.
- A token goes to no other machine in plaintext unless `plaintext` says so.

What can go wrong::

    MasteryError            code, reason, metadata, violations, retry_delay, request_id
    ├── InvalidRequest      INVALID_ARGUMENT, OUT_OF_RANGE
    ├── Unauthenticated     UNAUTHENTICATED
    ├── PermissionDenied    PERMISSION_DENIED
    ├── NotFound            NOT_FOUND
    ├── AlreadyExists       ALREADY_EXISTS
    ├── Conflict            ABORTED
    ├── FailedPrecondition  FAILED_PRECONDITION
    ├── ResourceExhausted   RESOURCE_EXHAUSTED
    ├── Unavailable         UNAVAILABLE
    ├── DeadlineExceeded    DEADLINE_EXCEEDED
    ├── NotOffered          UNIMPLEMENTED
    └── ServerFault         INTERNAL, UNKNOWN, DATA_LOSS

An item of a call that succeeded may have an `error` of its own: `error_of(item.error)` is that as an exception.
"""

from mastery_client.channel import Tls
from mastery_client.client import AsyncClient, Client
from mastery_client.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MasteryError,
    NotFound,
    NotOffered,
    PermissionDenied,
    ResourceExhausted,
    ServerFault,
    Unauthenticated,
    Unavailable,
    error_of,
)
from mastery_client.tokens import Token

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InvalidRequest",
    "MasteryError",
    "NotFound",
    "NotOffered",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerFault",
    "Tls",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "error_of",
]
