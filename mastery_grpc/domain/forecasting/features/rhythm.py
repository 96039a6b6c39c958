"""When things happened and how the score moved."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from mastery_grpc.domain.forecasting.features.recent import NEVER, gaps_between, newest, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mastery_grpc.domain.forecasting.features.recent import Recent
    from mastery_grpc.domain.forecasting.forecast import Past


RHYTHM = (
    *(f"due_{i}" for i in range(6)),
    *(f"due_gap_{i}" for i in range(4)),
    *("due_median", "due_next", "due_least", "due_most", "due_together", "due_28", "due_56", "due_count"),
    *("gap_median", "gap_relative", "gap_most", "gap_newest", "gap_mean", "day_1", "day_2", "day_3"),
    *("days", "first_day", "weekday", "due_weekday", "days_to_due_weekday"),
)


def rhythm(past: Past, recent: Recent) -> Iterator[float]:
    """When exercises fell due and when the student was active, and on which weekdays."""
    dues = [age for place, age in enumerate(recent.dues) if place == 0 or age != recent.dues[place - 1]]
    yield from newest(dues, 6, NEVER)
    gaps = gaps_between(dues)
    yield from newest(gaps, 4, -1)
    median = sorted(gaps)[len(gaps) // 2] if gaps else -1
    yield median
    yield median - dues[-1] if gaps else -NEVER
    yield min(gaps, default=-1)
    yield max(gaps, default=-1)
    yield recent.dues.count(dues[-1]) if dues else 0
    yield within(recent.dues, 28)
    yield within(recent.dues, 56)
    yield len(recent.dues)
    days = recent.days
    gaps = gaps_between(days)
    median = sorted(gaps)[len(gaps) // 2] if gaps else -1
    yield median
    yield days[-1] / median if gaps else -1
    yield max(gaps, default=-1)
    yield gaps[-1] if gaps else -1
    yield sum(gaps) / len(gaps) if gaps else -1
    yield from newest(days[:-1], 3, NEVER)
    yield len(days)
    yield days[0] if days else NEVER
    weekday = past.today.weekday()
    yield weekday
    yield (weekday - dues[-1]) % 7 if dues else -1
    yield (-dues[-1] - 1) % 7 + 1 if dues else -1


SHAPE = (
    *(f"change_{days}" for days in (7, 14, 28, 56)),
    *(f"{what}_{i}" for i in range(3) for what in ("move", "move_age")),
    *("ups", "downs", "below_peak", "above_low"),
)


def shape(past: Past, recent: Recent) -> Iterator[float]:
    """The course of the score: its change over some weeks, its latest moves."""
    days, scores = recent.days, recent.day_scores
    score = scores[-1] if scores else 0.0
    for age in (7, 14, 28, 56):
        known = sum(day >= age for day in days)
        yield score - scores[known - 1] if known else score - recent.score_before
    before = [recent.score_before, *scores]
    moves = [(move, day) for move, day in zip(_differences(before), days, strict=True) if abs(move) > 1e-9]
    for move, day in (moves[:-4:-1] + [(0.0, NEVER)] * 3)[:3]:
        yield move
        yield day
    yield sum(move > 0 for move, _ in moves)
    yield sum(move < 0 for move, _ in moves)
    yield max(scores, default=score) - score
    yield score - min(scores, default=score)


def _differences(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]
