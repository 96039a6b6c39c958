"""Reliability drawn: of the cases with about the same probability, the share in which it came about."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.training.metrics import ReliabilityBin

TRACK = 41
"""Characters from 0 to 1 in the text plot."""
SIDE, LEFT, TOP, BOTTOM, RIGHT = 480, 64, 40, 52, 44
SMALLEST_DOT, LARGEST_DOT = 3.0, 14.0
COLOUR = "#2b6cb0"


def track(tenth: ReliabilityBin) -> str:
    """Returns a line from 0 to 1: `|` what was stated, `o` what came about, `#` both in one place."""
    stated, happened = (round(value * (TRACK - 1)) for value in (tenth.mean_probability, tenth.share_happened))
    line = ["."] * TRACK
    line[stated], line[happened] = "|", "o"
    if stated == happened:
        line[stated] = "#"
    return "".join(line)


def reliability_svg(title: str, bins: Sequence[ReliabilityBin]) -> str:
    """Returns an SVG: a dot per bin at (stated, happened), its number of cases beside it, and the diagonal."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + SIDE + RIGHT}" height="{TOP + SIDE + BOTTOM}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="14">{escape(title)}</text>',
        *_axes(),
    ]
    most = max((one.cases for one in bins), default=1)
    for one in bins:
        x, y = _x(one.mean_probability), _y(one.share_happened)
        # The area tells the share of the cases, down to a dot that can still be seen.
        radius = max(SMALLEST_DOT, LARGEST_DOT * (one.cases / most) ** 0.5)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{COLOUR}" fill-opacity="0.6"/>')
        parts.append(f'<text x="{x + radius + 3:.1f}" y="{y + 4:.1f}">{one.cases}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _axes() -> list[str]:
    parts = []
    for fifth in range(6):
        x, y = _x(fifth / 5), _y(fifth / 5)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + SIDE}" stroke="#ddd"/>')
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + SIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP + SIDE + 18}" text-anchor="middle">{fifth / 5}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{fifth / 5}</text>')
    parts.append(f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#888" stroke-dasharray="4"/>')
    parts.append(f'<text x="{_x(0.5)}" y="{TOP + SIDE + 40}" text-anchor="middle">probability stated</text>')
    turned = f'x="18" y="{_y(0.5)}" text-anchor="middle" transform="rotate(-90 18 {_y(0.5)})"'
    return [*parts, f"<text {turned}>share in which it came about</text>"]


def _x(value: float) -> float:
    return LEFT + SIDE * value


def _y(value: float) -> float:
    return TOP + SIDE * (1.0 - value)
