"""What a comparison bears out, in plain words, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mastery_grpc.domain.analytics.comparison import Comparison, EffectSize, Interval

MOST_CHANCE = 0.05
"""Above this p-value nothing is claimed, however low the level of the intervals; a higher level asks for less."""
SMALL_SAMPLE = 20
TINY_SAMPLE = 10
"""Below, a comparison is a hint and no more."""
EFFECTS = ((0.2, "negligible"), (0.5, "small"), (0.8, "medium"))
"""Below which |g| an effect is called so, by J. Cohen, "Statistical power analysis" (1988); above, it is large."""


@dataclass(frozen=True, slots=True)
class GroupNames:
    """How two groups are called."""

    first: str
    second: str


def verdict(comparisons: Sequence[Comparison], names: GroupNames, *, level: float, common_count: int) -> str:
    """Returns a few sentences about comparisons by the score, first, and by the components.

    A difference is claimed only where both tests find one. `common_count`: students that both groups have.
    """
    score, *components = comparisons
    most = min(MOST_CHANCE, 1.0 - level)
    said = [*_on_score(score, names, level, most), *_on_components(components, most)]
    return " ".join([*said, *_cautions(score, common_count)])


def _on_score(score: Comparison, names: GroupNames, level: float, most: float) -> Iterator[str]:
    first, second = f'"{names.first}"', f'"{names.second}"'
    means = f"{score.first.mean:.2f} against {score.second.mean:.2f}"
    if score.welch is None:
        yield (
            f"In {first} all scores are {score.first.mean:.2f}, in {second} all are {score.second.mean:.2f}:"
            " without any spread there is no t-test and no effect size"
            f" (Mann-Whitney {_p(score.rank_sum.p_value)})."
        )
        return
    interval = f"{100 * level:.4g}% interval of the difference {_range(score.difference_interval)}"
    size = f"{abs(score.mean_difference):.2f} on average ({means}; {interval})"
    tests = f"Welch's t-test {_p(score.welch.p_value)}, Mann-Whitney {_p(score.rank_sum.p_value)}"
    higher, lower = (first, second) if score.mean_difference > 0 else (second, first)
    shown = [score.welch.p_value < most, score.rank_sum.p_value < most]
    # The higher mean may be due to a few, while most of the others are lower.
    same_way = (score.mean_difference > 0) == (score.rank_sum.u > score.first.count * score.second.count / 2.0)
    if all(shown) and same_way:
        yield f"{higher} scores higher than {lower} by {size}, which is more than chance explains ({tests})."
        if score.effect is not None:
            yield _on_effect(score.effect)
    elif any(shown):
        yield (
            f"{higher} scores higher than {lower} by {size}, but whether that is more than chance is open:"
            f" the two tests disagree ({tests})."
        )
    else:
        yield (
            f"No difference is shown: the scores of {first} and {second} differ by {size}, which chance alone may"
            f" explain ({tests}). That does not show that there is none."
        )


def _on_effect(effect: EffectSize) -> str:
    lower, upper = effect.interval
    nearest = 0.0 if effect.interval.holds(0.0) else min(abs(lower), abs(upper))
    least, most = _effect_name(nearest), _effect_name(max(abs(lower), abs(upper)))
    reach = f"is {most}" if least == most else f"may be anything from {least} to {most}"
    return f"The effect {reach} (Hedges' g {effect.g:.2f}, interval {_range(effect.interval)})."


def _effect_name(size: float) -> str:
    return next((name for below, name in EFFECTS if size < below), "large")


def _on_components(components: Sequence[Comparison], most: float) -> Iterator[str]:
    shown = [
        f"{one.component} ({one.mean_difference:+.2f}, {_p(one.adjusted_p_value)})"
        for one in components
        if one.adjusted_p_value is not None and one.adjusted_p_value < most
    ]
    if shown:
        yield f"Of the components, corrected for four comparisons, these show one: {', '.join(shown)}."
    else:
        yield "No single component shows a difference, corrected for four comparisons."


def _cautions(score: Comparison, common_count: int) -> Iterator[str]:
    sizes = score.first.count, score.second.count
    if min(sizes) < SMALL_SAMPLE:
        meaning = (
            "take this as a hint and no more"
            if min(sizes) < TINY_SAMPLE
            else "a difference may go unseen, and the size of one that is seen is uncertain"
        )
        yield f"The samples are small, {sizes[0]} and {sizes[1]} scores: {meaning}."
    if common_count:
        who = "1 student is" if common_count == 1 else f"{common_count} students are"
        # The means then vary together, and less apart than the tests take them to: these miss more, never less.
        yield f"{who} in both groups, which makes a difference harder to show."
    yield "Why groups differ, a comparison does not tell."


def _range(interval: Interval) -> str:
    return f"{interval.lower:.2f} to {interval.upper:.2f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
