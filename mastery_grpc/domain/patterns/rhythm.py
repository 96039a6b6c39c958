"""When the student works: cramming, irregular rhythm, inactivity. Only days of work count (see `Window`)."""

from __future__ import annotations

from datetime import timedelta
from math import sqrt
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.forecasting.forecast import HISTORY_WINDOW_DAYS
from mastery_grpc.domain.patterns.pattern import Evidence, Pattern, PatternKind, counted, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from mastery_grpc.domain.patterns.window import Window, Work

BURST_GAP_DAYS = 2
"""Days of work no further apart belong to one burst."""
BURST_PIECES = 3
LONGEST_BURST_DAYS = 7
"""Work that goes on for longer is no burst but a habit."""
LULL_DAYS = 10
LEAST_BURSTS = 2
CRAMMED_SHARE = 0.6
ENOUGH_GAPS = 5
IRREGULAR = 0.2
VERY_IRREGULAR = 0.8
KNOWN_GAPS = 3
"""With fewer gaps nothing is usual yet."""
LEAST_SILENCE_DAYS = 7
TIMES_USUAL = 2
LONG_SILENCE_DAYS = 30


def detect_rhythm(window: Window) -> list[Pattern]:
    """Returns what is found in the days of work; cramming explains an irregular rhythm and replaces it."""
    rhythm = _cramming(window) or _irregular_rhythm(window)
    return [pattern for pattern in (rhythm, _inactivity(window)) if pattern]


class _Burst(NamedTuple):
    work: Sequence[Work]
    lull_days: int
    """Days until the next work, or until today."""

    @property
    def pieces(self) -> int:
        return sum(work.pieces for work in self.work)

    @property
    def length_days(self) -> int:
        """The first and the last day included."""
        return (self.work[-1].day - self.work[0].day).days + 1


def _cramming(window: Window) -> Pattern | None:
    """Cramming: work comes in bursts, with gaps after them.

    A burst is a run of days of work at most 2 apart, at least 3 pieces of work within at most 7 days, after which
    nothing is done for at least 10 (up to today, for the last one). Shows if at least 2 bursts hold at least 60 %
    of all pieces of work.

    Strength: the share of the work that bursts hold.
    """
    bursts = [
        burst
        for burst in _runs(window)
        if burst.pieces >= BURST_PIECES
        and burst.length_days <= LONGEST_BURST_DAYS
        and burst.lull_days >= LULL_DAYS
    ]
    if len(bursts) < LEAST_BURSTS:
        return None
    crammed = sum(burst.pieces for burst in bursts)
    pieces = sum(work.pieces for work in window.work)
    if crammed < CRAMMED_SHARE * pieces:
        return None
    lulls = [burst.lull_days for burst in bursts]
    last = bursts[-1].work[-1].day
    return Pattern(
        kind=PatternKind.CRAMMING,
        strength=crammed / pieces,
        start_day=bursts[0].work[0].day,
        end_day=last + timedelta(days=lulls[-1]),
        evidence=(
            Evidence("bursts_count", len(bursts), tuple(burst.work[0].day for burst in bursts)),
            Evidence("crammed_share", crammed / pieces),
            Evidence("longest_gap_days", max(lulls)),
        ),
        summary=(
            f"{crammed} of {pieces} pieces of work came in {len(bursts)} bursts, each followed by at least"
            f" {min(lulls)} days without any"
        ),
    )


def _runs(window: Window) -> list[_Burst]:
    runs: list[_Burst] = []
    start = 0
    gaps = [*window.gaps, (window.today - window.work[-1].day).days] if window.work else []
    for place, gap in enumerate(gaps):
        if gap > BURST_GAP_DAYS or place == len(gaps) - 1:
            runs.append(_Burst(window.work[start : place + 1], gap))
            start = place + 1
    return runs


def _irregular_rhythm(window: Window) -> Pattern | None:
    """Irregular rhythm: work comes at no regular distance.

    Measured by the burstiness of the gaps between days of work (K.-I. Goh and A.-L. Barabasi, EPL 81, 48002,
    2008), corrected for their number (E.-K. Kim and H.-H. Jo, Phys. Rev. E 94, 032311, 2016): -1 for equal
    gaps, 0 for work at random, 1 at most. Shows from 0.2 on, with at least 5 gaps.

    Strength: the burstiness, of which 0.8 and more count in full.
    """
    gaps = window.gaps
    if len(gaps) < ENOUGH_GAPS or (irregularity := burstiness(gaps)) < IRREGULAR:
        return None
    days = [work.day for work in window.work]
    longest = gaps.index(max(gaps))
    return Pattern(
        kind=PatternKind.IRREGULAR_RHYTHM,
        strength=min(irregularity / VERY_IRREGULAR, 1.0),
        start_day=days[0],
        end_day=days[-1],
        evidence=(
            Evidence("burstiness_coefficient", irregularity),
            Evidence("usual_gap_days", median(gaps)),
            Evidence("longest_gap_days", gaps[longest], (days[longest], days[longest + 1])),
        ),
        summary=(
            f"work comes at no regular distance: usually after {_days(median(gaps))}, once only after"
            f" {_days(gaps[longest])} (from {in_words(days[longest])} to {in_words(days[longest + 1])})"
        ),
    )


def burstiness(gaps: Sequence[int]) -> float:
    """Returns how irregular at least 4 positive gaps are: -1 if all are equal, 0 at random, 1 at most."""
    count = len(gaps)
    variation = pstdev(gaps) / fmean(gaps)
    least, most = sqrt(count - 1), sqrt(count + 1)
    return (most * variation - least) / ((most - 2) * variation + least)


def _inactivity(window: Window) -> Pattern | None:
    """Inactivity: nothing was done for longer than is usual for the student.

    The silence is the time since the last work. Shows if it is at least 7 days, at least twice the usual (median)
    gap between days of work, and longer than 4 in 5 of the gaps. With fewer than 3 gaps nothing is usual yet:
    then from 30 days on, if also twice the longest gap. Nothing in all of the 90 days shows as well.

    Strength: 1 - 3/4 * bound / silence, so 1/4 for a silence that just shows and 5/8 for one twice as long.
    """
    if not window.work:
        return _inactive(window, window.first_day, HISTORY_WINDOW_DAYS, LONG_SILENCE_DAYS, None)
    last = window.work[-1].day
    silence = (window.today - last).days
    gaps = window.gaps
    if len(gaps) < KNOWN_GAPS:
        bound = float(max(LONG_SILENCE_DAYS, TIMES_USUAL * max(gaps, default=0)))
        return _inactive(window, last, silence, bound, None) if silence >= bound else None
    usual = median(gaps)
    bound = max(LEAST_SILENCE_DAYS, TIMES_USUAL * usual)
    if silence < bound or 5 * sum(gap < silence for gap in gaps) <= 4 * len(gaps):
        return None
    return _inactive(window, last, silence, bound, usual)


def _inactive(window: Window, since: date, silence: int, bound: float, usual: float | None) -> Pattern:
    evidence = [Evidence("silence_days", silence)]
    if usual is not None:
        evidence.append(Evidence("usual_gap_days", usual))
    if not window.work:
        summary = f"nothing for at least {silence} days"
    elif usual is None:
        summary = f"nothing for {silence} days, since {in_words(since)}"
    else:
        summary = f"nothing for {silence} days, since {in_words(since)}; usually a gap is {_days(usual)}"
    return Pattern(
        kind=PatternKind.INACTIVITY,
        strength=1.0 - 0.75 * bound / silence,
        start_day=since,
        end_day=window.today,
        evidence=tuple(evidence),
        summary=summary,
    )


def _days(days: float) -> str:
    return counted(int(days), "day") if days == int(days) else f"{days:.1f} days"
