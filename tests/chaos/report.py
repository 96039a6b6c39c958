"""The figures as a table, as Markdown, and as one plot."""

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tests.chaos.scenarios import Figures

COLUMNS = (
    "scenario",
    "rounds",
    "kills",
    "events",
    "lost (log/state/results)",
    "doubled (log/state/results)",
    "inconsistent",
    "dead letters",
    "recovery, median (s)",
    "worst (s)",
)
ROW, LEFT, WIDTH, TOP = 26, 250, 640, 46


def table(all_figures: Sequence[Figures]) -> str:
    """Returns a Markdown table that reads well on a terminal too."""
    rows = [COLUMNS, *(_row(figures) for figures in all_figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write(all_figures: Sequence[Figures], about: Sequence[str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    notes = [f"- {figures.name}: {note}" for figures in all_figures for note in figures.notes]
    details = [f"- {figures.name}: {detail}" for figures in all_figures for detail in figures.faults.details]
    parts = ["# Exactly once, under chaos", "\n".join(f"- {line}" for line in about), table(all_figures)]
    parts += ["\n".join(notes)] if notes else []
    parts += ["## Faults", "\n".join(details)] if details else []
    parts.append("![Seconds to recover](recovery.svg)")
    (directory / "report.md").write_text("\n\n".join(parts) + "\n")
    (directory / "recovery.svg").write_text(plot(all_figures))


def plot(all_figures: Sequence[Figures]) -> str:
    """Returns an SVG: a dot for the seconds of each round, a bar for the median of each kind of fault."""
    kinds: dict[str, list[float]] = {}
    for figures in all_figures:
        for label, seconds in figures.recoveries:
            kinds.setdefault(f"{figures.name}: {label}", []).append(seconds)
    longest = max((seconds for taken in kinds.values() for seconds in taken), default=1.0)
    step = next(width for width in (1, 2, 5, 10, 20, 50, 100) if longest / width <= 12)
    scale = WIDTH / (step * (int(longest / step) + 1))
    height = TOP + ROW * len(kinds) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Seconds from a fault until the group had caught up</text>',
    ]
    for tick in range(0, step * (int(longest / step) + 1) + 1, step):
        x = LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 26}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick}</text>')
    for index, (kind, taken) in enumerate(kinds.items()):
        y = TOP + ROW * index + ROW / 2
        x = LEFT + statistics.median(taken) * scale
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(kind)}</text>')
        parts += (
            f'<circle cx="{LEFT + seconds * scale:.1f}" cy="{y}" r="4" fill="#2b6cb0" fill-opacity="0.35"/>'
            for seconds in taken
        )
        parts.append(f'<rect x="{x - 1:.1f}" y="{y - 9}" width="2.5" height="18" fill="#c53030"/>')
    return "\n".join([*parts, "</svg>\n"])


def _row(figures: Figures) -> tuple[str, ...]:
    faults, seconds = figures.faults, figures.seconds or [float("nan")]
    return (
        figures.name,
        str(figures.rounds),
        str(figures.kills),
        str(figures.events),
        f"{faults.lost_in_log}/{faults.lost_in_state}/{faults.lost_in_results}",
        f"{faults.doubled_in_log}/{faults.doubled_in_state}/{faults.doubled_in_results}",
        str(faults.inconsistent_results),
        str(faults.dead_letters),
        f"{statistics.median(seconds):.1f}",
        f"{max(seconds):.1f}",
    )
