"""The typed errors of the engine, raised inside and turned into a status once, at the edge.

* MasteryError
  + InvalidInput          the caller's data breaks a rule; says which field and why
  + InvalidPageToken      the page token is not from this list with these filters
  + EventTooOld           the event precedes what the student's log still remembers
  + InsufficientHistory   the student is known, but too little of his history is left for the answer
  + NotFound
    - StudentNotFound     no event of this student was ever applied
    - SnapshotNotFound    the student has no event on that day, or it is past retention
    - RecommendationNotFound  no advice of this id is ever given
    - BatchNotFound       there is no such batch, or it is past retention
    - CohortNotFound      the school has no cohort of this id
  + CohortExists          the school has a cohort of this id already
  + RequestIdReused       the request id was used before, for another request
  + EtagMismatch          the object has changed since its etag was read
  + CohortTooSmall        too few members of the cohort have a score for the answer
  + CohortTooLarge        the cohort has, or would have, more members than allowed
  + CohortByRule          the members are given by a rule, and cannot be added or removed one by one
  + StudentErased         the event was produced before its student was erased
  + LogIncomplete         the student's log holds fewer events than his mastery counts
  + BatchEnded            the batch has succeeded already
  + ItemFailed            a fault of ours with one item of a batch
  + RateLimited           the caller makes more calls than his limit
  + TooManyOpen           the caller holds as many streams or batches as he may
  + SlowReader            the caller reads a stream too slowly
  + Contention            somebody else kept changing the student while we tried to
  + Unavailable           a dependency is away; the same call may succeed later
    - StorageUnavailable
    - BrokerUnavailable
    - KeysUnavailable     the keys that tokens are verified with were never had
    - ShuttingDown        this process is about to stop; another one will answer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime


class MasteryError(Exception):
    """The root of every error that the engine raises on purpose."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: the field as the producer spells it, and the reason in words."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class InvalidInput(MasteryError):
    """Data that breaks a rule of the contract. It will never become valid by retrying."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, reason: str) -> InvalidInput:
        """Returns the error for a single violation."""
        return cls([Violation(field, reason)])


class InvalidPageToken(MasteryError):
    """A page token that was not made by this list for these filters."""

    def __init__(self) -> None:
        super().__init__("page_token: was not returned by this method for these filters")


class EventTooOld(MasteryError):
    """An event older than the part of the student's log that is still kept, so its place is unknown."""

    def __init__(self, event_id: str) -> None:
        super().__init__("event_time precedes the retained event log of the student")
        self.event_id = event_id


class InsufficientHistory(MasteryError):
    """A known student of whom too few days with events are held for the answer."""

    def __init__(self, student_id: str, *, history_days: int = 0, required_days: int = 1) -> None:
        super().__init__(
            f"events of {history_days} days are held of student {student_id!r}, at least {required_days} needed"
        )
        self.student_id = student_id
        self.history_days = history_days
        self.required_days = required_days


class NotFound(MasteryError):
    """A resource that does not exist."""

    def __init__(self, resource_type: str, resource_name: str) -> None:
        super().__init__(f"{resource_type} {resource_name!r} not found")
        self.resource_type = resource_type
        self.resource_name = resource_name


class StudentNotFound(NotFound):
    """No event of this student was ever applied."""

    def __init__(self, student_id: str) -> None:
        super().__init__("mastery.v1.Student", student_id)


class SnapshotNotFound(NotFound):
    """The student has no snapshot of that day."""

    def __init__(self, student_id: str, day: date) -> None:
        super().__init__("mastery.v1.MasterySnapshot", f"{student_id}/{day.isoformat()}")


class RecommendationNotFound(NotFound):
    """No advice of this id is ever given."""

    def __init__(self, recommendation_id: str) -> None:
        super().__init__("mastery.v1.Recommendation", recommendation_id)


class BatchNotFound(NotFound):
    """No batch of this id is kept in the school."""

    def __init__(self, batch_id: str) -> None:
        super().__init__("mastery.v1.Batch", batch_id)


class CohortNotFound(NotFound):
    """The school has no cohort of this id."""

    def __init__(self, cohort_id: str) -> None:
        super().__init__("mastery.v1.Cohort", cohort_id)


class CohortExists(MasteryError):
    """The school has a cohort of this id already."""

    def __init__(self, cohort_id: str) -> None:
        super().__init__(f"cohort {cohort_id!r} exists already")
        self.cohort_id = cohort_id


class RequestIdReused(MasteryError):
    """A request id that came with another request before."""

    def __init__(self, request_id: str) -> None:
        super().__init__("request_id: was used before for another request")
        self.request_id = request_id


class EtagMismatch(MasteryError):
    """A cohort that has changed since its etag was read."""

    def __init__(self, cohort_id: str) -> None:
        super().__init__(f"cohort {cohort_id!r} has changed since the etag was read")
        self.cohort_id = cohort_id


class CohortTooSmall(MasteryError):
    """A cohort of which only `size` members have a score."""

    def __init__(self, cohort_id: str, *, size: int, required_size: int) -> None:
        super().__init__(f"members of cohort {cohort_id!r} with a score: {size}, at least {required_size} needed")
        self.cohort_id = cohort_id
        self.size = size
        self.required_size = required_size


class CohortTooLarge(MasteryError):
    """A cohort that has, or would have, `size` members; of a whole school, counted no further than needed."""

    def __init__(self, cohort_id: str, *, size: int, limit: int) -> None:
        super().__init__(f"members of cohort {cohort_id!r}: {size}, at most {limit} allowed")
        self.cohort_id = cohort_id
        self.size = size
        self.limit = limit


class CohortByRule(MasteryError):
    """A cohort whose members are given by a rule."""

    def __init__(self, cohort_id: str) -> None:
        super().__init__(f"the members of cohort {cohort_id!r} are given by a rule")
        self.cohort_id = cohort_id


class StudentErased(MasteryError):
    """An event from before its student was erased: dropped, wherever it comes from."""

    def __init__(self, event_id: str, erase_time: datetime) -> None:
        super().__init__("the event was produced before its student was erased")
        self.event_id = event_id
        self.erase_time = erase_time


class LogIncomplete(MasteryError):
    """A student cannot be recomputed: what is stored of him counts more events than his log still holds."""

    def __init__(self, student_id: str) -> None:
        super().__init__(f"the event log of student {student_id!r} holds fewer events than his mastery counts")
        self.student_id = student_id


class BatchEnded(MasteryError):
    """A batch that is to be cancelled and has succeeded already."""

    def __init__(self, batch_id: str, state: str) -> None:
        super().__init__(f"batch {batch_id!r} has ended: {state}")
        self.batch_id = batch_id
        self.state = state


class ItemFailed(MasteryError):
    """A fault of ours with one item of a batch; the log of the process that met it says which."""

    def __init__(self) -> None:
        super().__init__("internal error")


class RateLimited(MasteryError):
    """More calls than the caller's limit of `limit` in `period` seconds; the next is his after `retry_after`."""

    def __init__(self, call_class: str, *, limit: int, period: float, retry_after: float) -> None:
        super().__init__(f"more than {limit} calls of the class {call_class!r} in {period:g} s")
        self.call_class = call_class
        self.limit = limit
        self.period = period
        self.retry_after = retry_after


class TooManyOpen(MasteryError):
    """As many of something held open as the caller may: `subject` is "streams" or "batches"."""

    def __init__(self, subject: str, limit: int) -> None:
        super().__init__(f"no more than {limit} {subject} at a time")
        self.subject = subject
        self.limit = limit


class SlowReader(MasteryError):
    """A stream whose reader does not take what he is sent."""

    def __init__(self) -> None:
        super().__init__("the stream is read too slowly")


class Contention(MasteryError):
    """A student kept changing under a compare-and-set; nothing of the attempt was written."""


class Unavailable(MasteryError):
    """A dependency is away. Nothing is lost; the same call may succeed after `retry_after` seconds."""

    retry_after = 1.0


class StorageUnavailable(Unavailable):
    """Redis did not answer, or cannot take writes just now."""


class BrokerUnavailable(Unavailable):
    """Kafka did not answer."""


class KeysUnavailable(Unavailable):
    """The issuer of the tokens has not told his keys yet, so that nobody can be told from a stranger."""

    retry_after = 5.0


class ShuttingDown(Unavailable):
    """The process is about to stop."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")
