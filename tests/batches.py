"""Short ways to make batches, their items and their results."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from mastery_grpc.application.batches.store import BatchItem, ItemForecast, ItemOutcome, ItemResult, NewBatch
from mastery_grpc.application.compliance.erasure_mark import ErasureMark, erase_millis
from mastery_grpc.domain.batch import BatchKey, BatchOperation, BatchPriority, Chunk
from mastery_grpc.domain.forecasting.forecast import Forecast, Trend
from mastery_grpc.domain.student import Mastery, fold_all, mastery_of
from mastery_grpc.storage.records import encode_mark
from tests.builders import DEFAULT_RULES, components, day, quiz, student

LIFETIME = timedelta(days=7)
_numbers = count(1)


def now() -> datetime:
    """Returns the time, because storage by its own clock forgets what is past its time.

    A whole number of milliseconds, as an erasure has one, and later than any before.
    """
    time.sleep(0.002)
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def batch_key(number: int | None = None, *, school_id: str = "") -> BatchKey:
    return BatchKey(f"{next(_numbers) if number is None else number:08x}-0000-4000-8000-00000000ba7c", school_id)


def new_batch(items: int | Sequence[BatchItem] = 3, **given: Any) -> NewBatch:
    """Returns a batch of students s0, s1, …, or of the items given."""
    made = [BatchItem(f"s{number}") for number in range(items)] if isinstance(items, int) else items
    create_time = given.pop("create_time", None) or now()
    defaults: dict[str, Any] = {
        "key": batch_key(),
        "operation": BatchOperation.RECALCULATE,
        "priority": BatchPriority.NORMAL,
        "items": made,
        "create_time": create_time,
        "expire_time": create_time + LIFETIME,
        "owner": "somebody",
        "digest": "what was asked for",
    }
    return NewBatch(**defaults | given)


def mastery(student_id: str = "s0", score: float = 0.5, *, school_id: str = "") -> Mastery:
    state = fold_all([quiz(round(score * 10), 10)], DEFAULT_RULES)
    return mastery_of(student(student_id, school_id=school_id), state, DEFAULT_RULES)


def forecast(student_id: str = "s0", score: float = 0.25) -> ItemForecast:
    return ItemForecast(
        student_id=student_id,
        school_id="",
        forecast=Forecast(
            target_date=day(7),
            horizon_days=7,
            current_score=0.5,
            predicted_score=score,
            lower_bound=0.1,
            upper_bound=0.9,
            interval_level=0.8,
            confidence=0.2,
            trend=Trend.DECLINING,
            predicted_components=components(score),
            intervention_probability=0.75,
            intervention_needed=True,
            history_days=3,
        ),
        forecaster="pooled",
        model_version="1",
        create_time=datetime(2026, 1, 12, tzinfo=UTC),
        from_cache=True,
    )


def results_of(items: dict[int, BatchItem], outcome: ItemOutcome | None = None) -> list[ItemResult]:
    """Returns a result for each item: its error, else the outcome given, else a mastery of its own."""
    return [
        ItemResult(
            index,
            item.student_id,
            item.error or (mastery(item.student_id) if outcome is None else outcome),
        )
        for index, item in items.items()
    ]


def chunk(key: BatchKey, number: int = 0) -> Chunk:
    return Chunk(key, number)


def erasure_mark(erase_time: datetime) -> bytes:
    """Returns the mark of an erasure as it is stored."""
    millis = erase_millis(erase_time)
    return encode_mark(ErasureMark(rebuilds=1, erase_millis=millis, receipt_id="a-receipt", pseudonym="abcd"))
