"""How long data is kept, and what for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.forecasting.verification import VERIFIED_HORIZON_DAYS
from mastery_grpc.domain.recommendations import FEEDBACK_LIFETIME

REQUESTS_KEPT = timedelta(days=1)
RESULTS_KEPT = timedelta(days=2)
DEAD_LETTERS_KEPT = timedelta(days=30)
"""How long the topics keep their records; a dead letter may be replayed until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long each kind of data lives after it was written."""

    snapshots: timedelta = timedelta(days=90)
    event_log: timedelta = timedelta(days=90)
    processed: timedelta = timedelta(days=7)
    activity: timedelta = timedelta(days=30)
    course_pulse: timedelta = timedelta(days=100)
    prediction: timedelta = timedelta(hours=1)
    issued_forecasts: timedelta = timedelta(days=14)
    """From the end of the day that they are for."""
    forecast_scores: timedelta = timedelta(days=60)
    path: timedelta = timedelta(hours=24)
    feedback: timedelta = FEEDBACK_LIFETIME
    feedback_requests: timedelta = timedelta(days=7)
    """How long a repeated request to record feedback is known for one."""
    cohort_requests: timedelta = timedelta(days=7)
    """How long a repeated request to change a cohort is known for one."""
    batches: timedelta = timedelta(days=7)
    audit: timedelta = timedelta(days=365)
    erasure_mark: timedelta = timedelta(days=37)
    """The longest retention of a topic and a week."""


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """How long one kind of data is kept, and what for."""

    kind: DataKind
    lifetime: timedelta | None
    """From when it was written; None for until it is erased."""
    purpose: str


def policy(retention: Retention) -> list[RetentionRule]:
    """Returns one rule per kind of data, in the order of the kinds."""
    # A forecast is issued at most so long before the end of the day that it is for.
    issued = timedelta(days=VERIFIED_HORIZON_DAYS + 1) + retention.issued_forecasts
    rules = {
        DataKind.CURRENT_MASTERY: (None, "Tells the student's mastery, and is what new events are folded into."),
        DataKind.SNAPSHOT: (retention.snapshots, "Tells the mastery of past days, for histories and trends."),
        DataKind.EVENT: (
            retention.event_log,
            "Gives late events their place and is what masteries are recomputed and forecasts made from.",
        ),
        DataKind.PROCESSING_RECORD: (
            retention.processed,
            "Proves that an event was applied, so that it counts once however often it is delivered.",
        ),
        DataKind.ACTIVITY: (retention.activity, "Tells the recent active days and streaks."),
        DataKind.PREDICTION: (
            max(retention.prediction, issued),
            "Answers the same question again for a while; later it is compared with what came.",
        ),
        DataKind.LEARNING_PATH: (retention.path, "Keeps a learning path steady while nothing new is known."),
        DataKind.FEEDBACK: (retention.feedback, "Keeps dismissed advice away and ranks what helped higher."),
        DataKind.COHORT_MEMBERSHIP: (None, "Says with whom a student is compared."),
        DataKind.BATCH_RESULT: (retention.batches, "Lets the results of a batch be collected."),
        DataKind.AUDIT_ENTRY: (retention.audit, "Shows who accessed the data of which student."),
        DataKind.ERASURE_MARK: (
            retention.erasure_mark,
            "Keeps an erased student's old events from coming back out of queues and backups of them.",
        ),
    }
    return [RetentionRule(kind, *rules[kind]) for kind in DataKind]
