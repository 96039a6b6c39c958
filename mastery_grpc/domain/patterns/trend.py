"""Where the score went: steady improvement, decline, plateau, recovery.

All four look at the score at the end of each day with events, from the day on which the last of the components
observed by now was first observed: until then the score rises by being measured, not by learning.
"""

from __future__ import annotations

from itertools import groupby
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

from mastery_grpc.domain.patterns.pattern import Evidence, Pattern, PatternKind, counted, in_words
from mastery_grpc.domain.scoring import Level, level_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mastery_grpc.domain.patterns.window import DayEnd, Window
    from mastery_grpc.domain.student import StudentState

ENOUGH_DAYS = 5
"""Fewer days with events make no trend: of four in a row, one in 24 rises throughout by chance."""
ENOUGH_SPAN_DAYS = 21
LEAST_CHANGE = 0.05
GREAT_CHANGE = 0.20
"""A change of the score by this much, a whole level, counts in full."""
SIGNIFICANT = 1.645
"""The standard score that is exceeded by chance once in 20."""
PLATEAU_BAND = 0.04
"""Scores this close together stand still."""
PLATEAU_WORK_DAYS = 4
LONG_PLATEAU_DAYS = 60
LEAST_FALL = 0.10
LEAST_REGAINED = 0.5
LEAST_DOWN_DAYS = 7
"""A score that is up again sooner was not down: work came in a few days late."""


def detect_course(window: Window) -> list[Pattern]:
    """Returns what the score did, at most one pattern for any span: of two that overlap, the stronger."""
    days = _comparable(window.day_ends)
    found = []
    if plateau := _plateau(days, window):
        found.append(plateau)
        # What came before the plateau may have been a trend; with it, it would only look like a weaker one.
        days = [end for end in days if end.day <= plateau.start_day]
    found += [pattern for pattern in (_trend(days), _recovery(days)) if pattern]
    found.sort(key=lambda pattern: (-pattern.strength, pattern.kind))
    kept: list[Pattern] = []
    for pattern in found:
        if not any(pattern.overlaps(stronger) for stronger in kept):
            kept.append(pattern)
    return kept


def _comparable(days: Sequence[DayEnd]) -> list[DayEnd]:
    if not days:
        return []
    observed = _observed(days[-1].state)
    return [end for end in days if _observed(end.state) == observed]


def _observed(state: StudentState) -> tuple[bool, bool, bool]:
    return state.completion.observed, state.quiz.observed, state.quality.observed


def _trend(days: Sequence[DayEnd]) -> Pattern | None:
    """Steady improvement or decline: the score goes one way, not only from first to last but throughout.

    Shows if, on at least 5 days that span at least 21, the test of Mann and Kendall finds a trend (one-sided,
    5 %; ties corrected; M. G. Kendall, Rank Correlation Methods, 1975) and the median score of the last third
    of the days differs from that of the first by at least 0.05, as the last score does from the first. (Not the
    median slope of Theil and Sen: scores move in steps, and with many days alike it is 0.)

    Strength: Kendall's tau (tau-b, 1 if every later score is beyond every earlier one) times the change, of
    which 0.20 and more count in full.
    """
    if len(days) < ENOUGH_DAYS or (days[-1].day - days[0].day).days < ENOUGH_SPAN_DAYS:
        return None
    scores = [end.score for end in days]
    standard, tau = _mann_kendall(scores)
    third = len(days) // 3
    change = median(scores[-third:]) - median(scores[:third])
    rises = standard > 0
    least = min(change, scores[-1] - scores[0]) if rises else -max(change, scores[-1] - scores[0])
    if abs(standard) < SIGNIFICANT or least < LEAST_CHANGE:
        return None
    span = (days[-1].day - days[0].day).days
    return Pattern(
        kind=PatternKind.STEADY_IMPROVEMENT if rises else PatternKind.DECLINE,
        strength=min(abs(tau), 1.0) * min(abs(change) / GREAT_CHANGE, 1.0),
        start_day=days[0].day,
        end_day=days[-1].day,
        evidence=(
            Evidence("change_score", change),
            Evidence("slope_per_day", change / span),
            Evidence("kendall_tau_coefficient", tau),
            Evidence("first_score", scores[0], (days[0].day,)),
            Evidence("last_score", scores[-1], (days[-1].day,)),
        ),
        summary=(
            f"the score {'rose steadily' if rises else 'fell'} from {scores[0]:.2f} on {in_words(days[0].day)}"
            f" to {scores[-1]:.2f} on {in_words(days[-1].day)}"
        ),
    )


def _mann_kendall(values: Sequence[float]) -> tuple[float, float]:
    """Returns the standard score and tau-b of the values against their order; (0, 0) if all are alike."""
    count = len(values)
    excess = sum(
        (later > earlier) - (later < earlier)
        for place, earlier in enumerate(values)
        for later in values[place + 1 :]
    )
    if excess == 0:
        return 0.0, 0.0
    ties = [len(list(group)) for _, group in groupby(sorted(values))]
    variance = (_tie_term(count) - sum(map(_tie_term, ties))) / 18
    pairs = count * (count - 1) / 2
    untied = pairs - sum(tie * (tie - 1) / 2 for tie in ties)
    corrected = excess - 1 if excess > 0 else excess + 1
    return corrected / sqrt(variance), excess / sqrt(pairs * untied)


def _tie_term(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)


def _plateau(days: Sequence[DayEnd], window: Window) -> Pattern | None:
    """Plateau: the score stands still although the student works.

    Shows if, from some day on until the last day with events, all scores lie within 0.04 of each other, over at
    least 21 days, 4 of them with work, and the score is below EXPERT, above which there is nowhere to go.

    Strength: the length, of which 60 days count in full, less up to a half for moving within the band.
    """
    if not days or level_of(days[-1].score) is Level.EXPERT:
        return None
    lowest = highest = days[-1].score
    start = len(days)
    for end in reversed(days):
        lowest, highest = min(lowest, end.score), max(highest, end.score)
        # The tolerance is for scores that are a band apart but for their last binary digit.
        if highest - lowest > PLATEAU_BAND + 1e-9:
            break
        start -= 1
    still = days[start:]
    if not still:
        return None
    first, last = still[0].day, still[-1].day
    length = (last - first).days
    work = [work.day for work in window.work if first <= work.day <= last]
    if length < ENOUGH_SPAN_DAYS or len(work) < PLATEAU_WORK_DAYS:
        return None
    scores = [end.score for end in still]
    spread = max(scores) - min(scores)
    return Pattern(
        kind=PatternKind.PLATEAU,
        strength=min(length / LONG_PLATEAU_DAYS, 1.0) * (1.0 - min(spread / PLATEAU_BAND, 1.0) / 2),
        start_day=first,
        end_day=last,
        evidence=(
            Evidence("length_days", length),
            Evidence("work_count", len(work), tuple(work)),
            Evidence("spread_score", spread),
            Evidence("median_score", median(scores)),
        ),
        summary=(
            f"the score has stood at about {median(scores):.2f} for {counted(length, 'day')} since"
            f" {in_words(first)}, with work on {len(work)} of them"
        ),
    )


def _recovery(days: Sequence[DayEnd]) -> Pattern | None:
    """Recovery: the score rises again after a fall.

    Shows if the score fell by at least 0.10 from its highest to a later low, has since regained at least half of
    that, and was down by at least that half for 7 days or more in a row. Of several lows, that between the
    greatest fall and rise (the smaller of the two) counts. It ends on the day of the last rise.

    Strength: the share regained, at most 1, times the fall, of which 0.20 and more count in full.
    """
    best: tuple[float, int, int] | None = None
    peak = 0
    for place, end in enumerate(days):
        if end.score > days[peak].score:
            peak = place
        turn = min(days[peak].score - end.score, days[-1].score - end.score)
        if turn > 0 and (best is None or turn > best[0]):
            best = turn, peak, place
    if best is None:
        return None
    _, top, low = best
    fall = days[top].score - days[low].score
    rise = days[-1].score - days[low].score
    half = days[top].score - LEAST_REGAINED * fall
    down = days[max(place for place in range(top, low) if days[place].score > half) + 1].day
    up = next((end.day for end in days[low:] if end.score >= half), None)
    if fall < LEAST_FALL or days[-1].score < half or up is None or (up - down).days < LEAST_DOWN_DAYS:
        return None
    last = _last_rise(days)
    regained = min(rise / fall, 1.0)
    return Pattern(
        kind=PatternKind.RECOVERY,
        strength=regained * min(fall / GREAT_CHANGE, 1.0),
        start_day=days[top].day,
        end_day=days[last].day,
        evidence=(
            Evidence("fall_score", fall, (days[top].day, days[low].day)),
            Evidence("rise_score", rise, (days[low].day, days[last].day)),
            Evidence("regained_share", regained),
            Evidence("down_days", (up - down).days, (down, up)),
        ),
        summary=(
            f"after falling from {days[top].score:.2f} to {days[low].score:.2f} by {in_words(days[low].day)},"
            f" the score rose again to {days[last].score:.2f} by {in_words(days[last].day)}"
        ),
    )


def _last_rise(days: Sequence[DayEnd]) -> int:
    """Returns the place of the last day whose score is above that of the day before."""
    rises: Iterator[int] = (
        place for place in range(len(days) - 1, 0, -1) if days[place].score > days[place - 1].score
    )
    return next(rises, 0)
