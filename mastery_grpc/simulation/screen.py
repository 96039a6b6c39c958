"""The terminal of a running demonstration: a class whose mastery grows, a row per learner."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

LEVEL_STYLES: Final = {
    "beginner": "red",
    "developing": "yellow",
    "competent": "cyan",
    "proficient": "green",
    "expert": "bold magenta",
}
"""The levels from the lowest to the highest, each with its colour."""

COMPONENTS: Final = {"completion": "comp", "quiz": "quiz", "quality": "qual", "consistency": "cons"}
"""The components of a score and the column titles that stand for them."""

REFRESHES_PER_SECOND = 8
PLAIN_LINE_SECONDS = 2.0
RATE_SECONDS = 5.0  # events/s is the mean over this long: steady to read, quick to follow
SPARKLINE_POINTS = 14  # two weeks of simulated days

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.:-=+*#"
_LINES_BESIDE_ROWS = 5  # two of header, the column titles, the note on hidden rows, the cursor's own


@dataclass(slots=True)
class _Row:
    score: float = 0.0
    level: str = "beginner"
    components: Mapping[str, float] = field(default_factory=dict)
    history: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKLINE_POINTS))
    history_day: date | None = None


class ClassScreen:
    """A live table of a class, or a plain line every two seconds where nobody watches a terminal.

    Use it as a context manager and tell it what happens. Every method may be called from any thread.
    """

    def __init__(
        self, console: Console, *, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write to `console`; `live` forces the choice between table and lines, `clock` counts seconds."""
        self._console = console
        self._clock = clock
        # The file is asked as well as rich: FORCE_COLOR makes rich take a pipe for a terminal.
        watched = console.is_interactive and not console.is_dumb_terminal and console.file.isatty()
        self._is_live = watched if live is None else live
        self._lock = threading.Lock()  # rich draws in a thread of its own
        self._rows: dict[str, _Row] = {}
        self._day: date | None = None
        self._events = 0
        self._started = clock()
        self._rate_samples: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._last_line = self._started
        self._has_news = False  # since the last plain line
        self._live = Live(console=console, get_renderable=self.__rich__, refresh_per_second=REFRESHES_PER_SECOND)

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()
        elif self._has_news:
            with self._lock:
                line = self._next_line()
            _print_plain(self._console, line)

    def update(
        self,
        student_id: str,
        *,
        score: float,
        level: str,
        components: Mapping[str, float],
        events: int = 1,
    ) -> None:
        """Show a learner's new mastery, the effect of so many `events` since the last update.

        Score and components are 0..1, the level is in lower case. A component that is missing was never
        observed.
        """
        with self._lock:
            row = self._rows.setdefault(student_id, _Row())
            # One point a day where days are known, so that the sparkline covers two weeks and not an hour.
            if row.history and self._day is not None and row.history_day == self._day:
                row.history[-1] = score
            else:
                row.history.append(score)
            row.history_day = self._day
            row.score, row.level, row.components = score, level, dict(components)
            self._events += events
            self._sample_rate()
            self._has_news = True
        self.print_due()

    def print_due(self) -> None:
        """Print the next plain line if there is news and two seconds have passed; a live table does nothing."""
        with self._lock:
            is_due = self._clock() - self._last_line >= PLAIN_LINE_SECONDS
            line = self._next_line() if is_due and self._has_news and not self._is_live else None
        if line is not None:
            _print_plain(self._console, line)

    def show_day(self, day: date) -> None:
        """Show the simulated date; the day of an event that comes late does not turn it back."""
        with self._lock:
            self._day = day if self._day is None else max(self._day, day)

    def __rich__(self) -> RenderableType:
        with self._lock:
            shown = max(1, self._console.height - _LINES_BESIDE_ROWS)
            parts: list[RenderableType] = [self._headline(), self._levels(), self._table(shown)]
            if len(self._rows) > shown:
                parts.append(Text(f"and {len(self._rows) - shown:,} more", style="dim"))
            return Group(*parts)

    def _headline(self) -> Text:
        parts = [
            f"{self._day.isoformat()}  " if self._day else "",
            f"{len(self._rows):,} learners  {self._events:,} events applied  {self._rate():,.0f} events/s",
        ]
        return Text("".join(parts), style="bold", no_wrap=True, overflow="ellipsis")

    def _levels(self) -> Text:
        counts = [(f"{level} {count}", LEVEL_STYLES.get(level, "")) for level, count in self._count().items()]
        line = Text("  ").join(Text(*count) for count in counts)
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _table(self, shown: int) -> Table:
        table = Table(
            Column("learner", max_width=16, no_wrap=True),
            Column("mastery", min_width=8, ratio=1),
            Column("", width=4, justify="right", no_wrap=True),
            Column("level", width=10, no_wrap=True),
            *(Column(title, width=4, justify="right", no_wrap=True) for title in COMPONENTS.values()),
            Column("lately", width=SPARKLINE_POINTS, no_wrap=True),
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            expand=True,
            header_style="dim",
        )
        for student_id in sorted(self._rows)[:shown]:
            row = self._rows[student_id]
            style = LEVEL_STYLES.get(row.level, "")
            table.add_row(
                Text(student_id),
                ProgressBar(
                    total=1.0,
                    completed=row.score,
                    style="bright_black",
                    complete_style=style,
                    finished_style=style,
                ),
                Text(f"{row.score:.2f}", style="bold"),
                Text(row.level, style=style),
                *(Text(_percent(row.components.get(name)), style="dim") for name in COMPONENTS),
                Text(self._sparkline(row.history), style=style),
            )
        return table

    def _sparkline(self, scores: Sequence[float] | deque[float]) -> str:
        blocks = _ASCII_BLOCKS if self._console.options.ascii_only else _BLOCKS
        highest = len(blocks) - 1
        # All rows share the scale 0..1: learners can be compared, and noise does not look like a change.
        return "".join(blocks[min(highest, max(0, int(score * len(blocks))))] for score in scores)

    def _count(self) -> dict[str, int]:
        counts = dict.fromkeys(LEVEL_STYLES, 0)
        for row in self._rows.values():
            counts[row.level] = counts.get(row.level, 0) + 1
        return counts

    def _sample_rate(self) -> None:
        now = self._clock()
        self._rate_samples.append((now, self._events))
        # The newest sample at or beyond the window's edge stays, so that the window is always full.
        while len(self._rate_samples) > 1 and self._rate_samples[1][0] <= now - RATE_SECONDS:
            self._rate_samples.popleft()

    def _rate(self) -> float:
        self._sample_rate()
        now, events_now = self._rate_samples[-1]
        then, events_then = self._rate_samples[0]
        return (events_now - events_then) / (now - then) if now > then else 0.0

    def _next_line(self) -> str:
        self._last_line = self._clock()
        self._has_news = False
        day = f"{self._day.isoformat()}  " if self._day else ""
        counts = "  ".join(f"{level} {count}" for level, count in self._count().items())
        return f"{day}{self._events} events applied  {self._rate():.0f} events/s  {counts}"


def announce(console: Console, title: str, sections: Sequence[tuple[str, str]]) -> None:
    """Print commands to try, each below a line that says what it does.

    A command is printed as it is, flush left and without line breaks of ours, so that it can be copied with
    the mouse; what it does is a shell comment, so that all of it can be copied at once.
    """
    console.print()
    _print_plain(console, title, style="bold")
    for purpose, command in sections:
        console.print()
        _print_plain(console, f"# {purpose}", style="dim")
        _print_plain(console, command)
    console.print()


def _print_plain(console: Console, text: str, *, style: str | None = None) -> None:
    # rich would wrap the line, and read square brackets and colons as mark-up and emoji.
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
