"""The errors that items of batches fail with as they are kept: so that a caller is told the same at any time."""

from __future__ import annotations

from datetime import datetime

import msgspec

from mastery_grpc.domain.errors import (
    Contention,
    EventTooOld,
    InsufficientHistory,
    InvalidInput,
    ItemFailed,
    LogIncomplete,
    MasteryError,
    StudentErased,
    StudentNotFound,
    Violation,
)


class _Kept(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """An error as it is kept: its kind, and what it tells."""


class _InvalidInput(_Kept, tag="invalid_input"):
    violations: tuple[tuple[str, str], ...]


class _StudentNotFound(_Kept, tag="student_not_found"):
    student_id: str


class _InsufficientHistory(_Kept, tag="insufficient_history"):
    student_id: str
    history_days: int
    required_days: int


class _LogIncomplete(_Kept, tag="log_incomplete"):
    student_id: str


class _EventTooOld(_Kept, tag="event_too_old"):
    event_id: str


class _StudentErased(_Kept, tag="student_erased"):
    event_id: str
    erase_time: datetime


class _Contention(_Kept, tag="contention"):
    message: str


class _ItemFailed(_Kept, tag="failed"):
    pass


Fault = (
    _InvalidInput
    | _StudentNotFound
    | _InsufficientHistory
    | _LogIncomplete
    | _EventTooOld
    | _StudentErased
    | _Contention
    | _ItemFailed
)


def fault_of(error: MasteryError) -> Fault:
    """Returns what is kept of an error that an item failed with."""
    match error:
        case InvalidInput():
            return _InvalidInput(tuple((each.field, each.reason) for each in error.violations))
        case StudentNotFound():
            return _StudentNotFound(error.resource_name)
        case InsufficientHistory():
            return _InsufficientHistory(error.student_id, error.history_days, error.required_days)
        case LogIncomplete():
            return _LogIncomplete(error.student_id)
        case EventTooOld():
            return _EventTooOld(error.event_id)
        case StudentErased():
            return _StudentErased(error.event_id, error.erase_time)
        case Contention():
            return _Contention(str(error))
        case ItemFailed():
            return _ItemFailed()
        case _:
            raise TypeError(f"{type(error).__name__} is not what an item fails with")


def error_of(fault: Fault) -> MasteryError:
    """Returns the error that was kept."""
    match fault:
        case _InvalidInput():
            return InvalidInput([Violation(*each) for each in fault.violations])
        case _StudentNotFound():
            return StudentNotFound(fault.student_id)
        case _InsufficientHistory():
            return InsufficientHistory(
                fault.student_id, history_days=fault.history_days, required_days=fault.required_days
            )
        case _LogIncomplete():
            return LogIncomplete(fault.student_id)
        case _EventTooOld():
            return EventTooOld(fault.event_id)
        case _StudentErased():
            return StudentErased(fault.event_id, fault.erase_time)
        case _Contention():
            return Contention(fault.message)
        case _:
            return ItemFailed()
