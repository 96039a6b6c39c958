"""Scores over days, drawn in the terminal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import plotext

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINE, FORECAST, INTERVAL = "braille", "•", "░"
HEIGHT = 18
WIDEST, NARROWEST = 100, 40
TICKS = 5


@dataclass(frozen=True, slots=True)
class ScorePoint:
    """One day; with an interval where the score is not certain."""

    day: date
    score: float
    lower: float | None = None
    upper: float | None = None


def drawn_scores(
    past: Sequence[ScorePoint], forecast: Sequence[ScorePoint] = (), *, colours: bool, width: int | None = None
) -> str:
    """Returns a plot of one score or more, from 0 to 1; `width` in columns, by default that of the terminal."""
    points = [*past, *forecast]
    first = points[0].day
    columns = max(NARROWEST, min(width or shutil.get_terminal_size().columns, WIDEST))
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("simple" if colours else "colorless")
    figure.plot_size(columns, HEIGHT)
    figure.legend(False)

    def signal(points: Sequence[ScorePoint], marker: str) -> Any:
        places = [(each.day - first).days for each in points]
        return figure.signal(places, [each.score for each in points], marker=marker)

    if forecast:
        places, lowers, uppers = zip(*_band([*past[-1:], *forecast], first), strict=True)
        bottom = figure.signal(places, lowers, marker=INTERVAL)
        figure.draw(figure.signal(places, uppers, marker=INTERVAL).fill(bottom))
        figure.draw(signal(forecast, FORECAST))
    if past:
        figure.draw(signal(past, LINE).lines(len(past) > 1))
    days = max((points[-1].day - first).days, 1)
    figure.ruler("y").lim(0, 1)
    figure.ruler("x").lim(0, days)
    ticks = sorted({round(days * index / (TICKS - 1)) for index in range(TICKS)})
    figure.ruler("x").ticks(ticks, [f"{first + timedelta(days=tick):%m-%d}" for tick in ticks])
    picture: str = figure.build().string(colorless=not colours)
    return picture.rstrip("\n")


def legend(*, forecast: bool, interval_level: float = 0) -> str:
    """Returns what the signs of a plot mean."""
    if not forecast:
        return "⠒ score"
    return f"⠒ score   {FORECAST} forecast   {INTERVAL} holds the score with a probability of {interval_level:.0%}"


def _band(points: Sequence[ScorePoint], first: date) -> Iterator[tuple[float, float, float]]:
    """Yields place, lower and upper end of the interval, so densely that no column stays empty."""
    for one, other in pairwise(points):
        (x, low, high), (x_next, low_next, high_next) = _ends(one, first), _ends(other, first)
        steps = WIDEST * max(x_next - x, 1) // 10
        for step in range(steps + 1):
            share = step / steps
            yield x + share * (x_next - x), low + share * (low_next - low), high + share * (high_next - high)
    if len(points) == 1:
        yield _ends(points[0], first)


def _ends(point: ScorePoint, first: date) -> tuple[int, float, float]:
    low = point.score if point.lower is None else point.lower
    high = point.score if point.upper is None else point.upper
    return (point.day - first).days, low, high
