"""What was done against what was due and what was understood: falling behind, uneven components."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.patterns.pattern import Evidence, Pattern, PatternKind, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from mastery_grpc.domain.patterns.window import Report, Window
    from mastery_grpc.domain.scoring import ScoringRules
    from mastery_grpc.domain.student import StudentState

LEAST_OPEN = 2
OPEN_SHARE = 0.2
ENOUGH_MARKS = 3
ENOUGH_REPORTS = 3
LEAST_DISTANCE = 0.25
NOT_UNDERSTOOD = 0.60
"""Marks below this, that of COMPETENT, are poor."""
NOT_DONE = 0.70
STALLED_DAYS = 14


def detect_balance(window: Window) -> list[Pattern]:
    """Returns what is out of balance."""
    return [pattern for pattern in (_falling_behind(window), _uneven_components(window)) if pattern]


class _Due(NamedTuple):
    """The exercises of one course that should be done by now."""

    total: int
    completed: int
    open_since: date


def _falling_behind(window: Window) -> Pattern | None:
    """Falling behind: less is done than is due.

    What is due is what the exercise events report. If from the last event of one day to that of another their
    total grew and neither number ever fell, they count the whole course so far, and the latest says what is due.
    If a number fell, each event counts one set of exercises, and a set is due once the course has gone on to
    another. If the total stood still, it says how much there is, not by when: nothing is due. Courses are added
    up. Shows if at least 2 exercises and at least 20 % of those due are open.

    Strength: the share of the due exercises that is open.
    """
    dues = [due for reports in window.reports.values() if (due := _due(reports))]
    total = sum(due.total for due in dues)
    open_count = total - sum(due.completed for due in dues)
    if open_count < LEAST_OPEN or open_count < OPEN_SHARE * total:
        return None
    since = min(due.open_since for due in dues if due.completed < due.total)
    missed = [day for day in window.missed if day >= since]
    return Pattern(
        kind=PatternKind.FALLING_BEHIND,
        strength=open_count / total,
        start_day=since,
        end_day=window.today,
        evidence=(
            Evidence("open_count", open_count),
            Evidence("due_count", total),
            Evidence("open_share", open_count / total),
            *([Evidence("missed_count", len(missed), tuple(sorted(set(missed))))] if missed else []),
        ),
        summary=(
            f"{open_count} of {total} exercises that were due are not done, some of them open at least since"
            f" {in_words(since)}"
        ),
    )


def _due(reports: Sequence[Report]) -> _Due | None:
    # Events of one day, a deadline and what came in before it, need not be in the order in which they count.
    ends = list({report.day: report for report in reports}.values())
    if any(after.total < before.total or after.completed < before.completed for before, after in pairwise(ends)):
        return _due_sets(reports)
    latest = ends[-1]
    if latest.total == ends[0].total:
        return None
    since = latest.day
    for end in reversed(ends):
        if end.completed == end.total:
            break
        since = end.day
    return _Due(latest.total, latest.completed, since)


def _due_sets(reports: Sequence[Report]) -> _Due:
    latest = {report.exercise_id: report for report in reports}
    latest.pop(reports[-1].exercise_id)
    unfinished = [report.day for report in latest.values() if report.completed < report.total]
    return _Due(
        sum(report.total for report in latest.values()),
        sum(report.completed for report in latest.values()),
        min(unfinished, default=reports[-1].day),
    )


def _uneven_components(window: Window) -> Pattern | None:
    """Uneven components: done but not understood, or understood but not done.

    Understanding is the mean of quiz and quality, as far as observed, by their weights. Shows, with at least 3
    marks and 3 exercise reports, if completion exceeds it by at least 0.25 and it is below 0.60, or if it exceeds
    completion by at least 0.25 and completion is below 0.70 while understanding is not poor. The latter is left
    out for 14 days after the last completed exercise if nothing says what is due: the student is on the way.
    The pattern begins on the day since which the distance was there on every day with events.

    Strength: the distance.
    """
    reports = sum(map(len, window.reports.values()))
    if window.marks < ENOUGH_MARKS or reports < ENOUGH_REPORTS:
        return None
    days = window.day_ends
    done = days[-1].state.completion.value
    understood = _understood(days[-1].state, window.rules)
    if understood is None:
        return None
    if done - understood >= LEAST_DISTANCE and understood < NOT_UNDERSTOOD:
        ahead = 1
        summary = f"done but not understood: {done:.0%} of the exercises, but marks of {understood:.0%}"
    elif (
        understood - done >= LEAST_DISTANCE
        and done < NOT_DONE
        and understood >= NOT_UNDERSTOOD
        and not _on_the_way(window)
    ):
        ahead = -1
        summary = f"understood but not done: marks of {understood:.0%}, but {done:.0%} of the exercises"
    else:
        return None
    since = days[-1].day
    for end in reversed(days):
        then = _understood(end.state, window.rules)
        if then is None or ahead * (end.state.completion.value - then) < LEAST_DISTANCE:
            break
        since = end.day
    return Pattern(
        kind=PatternKind.UNEVEN_COMPONENTS,
        strength=abs(done - understood),
        start_day=since,
        end_day=days[-1].day,
        evidence=(
            Evidence("completion_score", done, (days[-1].day,)),
            Evidence("understanding_score", understood, (days[-1].day,)),
        ),
        summary=f"{summary}, since {in_words(since)}",
    )


def _understood(state: StudentState, rules: ScoringRules) -> float | None:
    """Returns the weighted mean of quiz and quality, None if neither is observed or counts."""
    quiz = rules.weights.quiz * state.quiz.observed
    quality = rules.weights.quality * state.quality.observed
    if quiz + quality <= 0.0:
        return None
    return (quiz * state.quiz.value + quality * state.quality.value) / (quiz + quality)


def _on_the_way(window: Window) -> bool:
    if any(_due(reports) for reports in window.reports.values()):
        return False
    since = window.today - timedelta(days=STALLED_DAYS)
    return any(
        after.completed > before.completed and after.day > since
        for reports in window.reports.values()
        for before, after in pairwise(reports)
    )
