"""Who accessed whose data: what is written about every call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mastery_grpc.application.callers import Caller
from mastery_grpc.domain.events import StudentKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCall:
    """One call, as it ended."""

    time: datetime
    caller: Caller
    school_id: str
    """Of the log that it goes into."""
    method: str
    """Such as "mastery.v1.MasteryService/GetMastery"."""
    students: tuple[StudentKey, ...]
    """Whose data it was about; empty for a call about nobody's."""
    code: int
    """A number of `google.rpc.Code`."""
    request_id: str
