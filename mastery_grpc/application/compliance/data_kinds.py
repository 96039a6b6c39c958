"""The kinds of data held about a student."""

from __future__ import annotations

from enum import StrEnum


class DataKind(StrEnum):
    """As in `mastery.v1.DataKind`, in its order."""

    CURRENT_MASTERY = "current_mastery"
    SNAPSHOT = "snapshot"
    EVENT = "event"
    PROCESSING_RECORD = "processing_record"
    ACTIVITY = "activity"
    PREDICTION = "prediction"
    LEARNING_PATH = "learning_path"
    FEEDBACK = "feedback"
    COHORT_MEMBERSHIP = "cohort_membership"
    BATCH_RESULT = "batch_result"
    AUDIT_ENTRY = "audit_entry"
    ERASURE_MARK = "erasure_mark"
