"""The advice that this engine knows to give: for each component, whether it was ever observed or not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mastery_grpc.domain.errors import RecommendationNotFound
from mastery_grpc.domain.scoring import Component


class Action(StrEnum):
    """A kind of advice."""

    PRACTICE = "practice"
    REVIEW = "review"
    REFACTOR = "refactor"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class Kind:
    """Advice that this engine knows to give."""

    recommendation_id: str
    action: Action
    component: Component
    area: str
    words: str
    """What to do, as a sentence for the student."""
    share: float
    """Of the gap, to be closed by this; those of one component add up to 1."""
    minutes: int
    """For the whole way of the component from 0 to 1: what is planned with, not what was measured."""
    standing: str
    """What is known of the component, in words that its value follows."""


def _kind(
    action: Action,
    component: Component,
    area: str,
    words: str,
    standing: str,
    *,
    share: float = 1.0,
    minutes: int,
) -> Kind:
    return Kind(f"{action}-{component}", action, component, area, words, share, minutes, standing)


_QUIZ = "Your quiz results stand at"
_QUALITY = "The quality of your work stands at"
OBSERVED = (
    (
        _kind(
            Action.PRACTICE,
            Component.COMPLETION,
            "open exercises",
            "Do the open exercises",
            "The share of the set work that you have done stands at",
            minutes=480,
        ),
    ),
    (
        _kind(
            Action.REVIEW,
            Component.QUIZ,
            "quiz questions answered wrongly",
            "Go through the quiz questions that you answered wrongly",
            _QUIZ,
            share=0.6,
            minutes=240,
        ),
        _kind(
            Action.PRACTICE,
            Component.QUIZ,
            "further quizzes",
            "Take further quizzes",
            _QUIZ,
            share=0.4,
            minutes=300,
        ),
    ),
    (
        _kind(
            Action.REFACTOR,
            Component.QUALITY,
            "work already handed in",
            "Improve work that you have handed in",
            _QUALITY,
            share=0.6,
            minutes=360,
        ),
        _kind(
            Action.REVIEW,
            Component.QUALITY,
            "remarks on your work",
            "Go through the remarks on your work",
            _QUALITY,
            share=0.4,
            minutes=180,
        ),
    ),
    (
        _kind(
            Action.SCHEDULE,
            Component.CONSISTENCY,
            "regular study days",
            "Plan regular study days",
            "The regularity of your work stands at",
            minutes=120,
        ),
    ),
)
"""For each component, in their order, the advice if it was observed."""
UNOBSERVED = (
    (
        _kind(
            Action.PRACTICE,
            Component.COMPLETION,
            "first exercises",
            "Do the first exercises",
            "No exercise of yours is known yet, which counts as",
            minutes=480,
        ),
    ),
    (
        _kind(
            Action.PRACTICE,
            Component.QUIZ,
            "a first quiz",
            "Take a first quiz",
            "No quiz of yours is known yet, which counts as",
            minutes=300,
        ),
    ),
    (
        _kind(
            Action.PRACTICE,
            Component.QUALITY,
            "a first piece of work",
            "Hand in a first piece of work",
            "No work of yours has been assessed yet, which counts as",
            minutes=360,
        ),
    ),
    OBSERVED[3],  # every event makes an active day
)
"""For each component the advice if it was not."""
_COMPONENT_OF = {
    kind.recommendation_id: kind.component for table in (OBSERVED, UNOBSERVED) for kinds in table for kind in kinds
}


def component_of(recommendation_id: str) -> Component:
    """Returns the component that advice is about. Raises RecommendationNotFound for what is never given."""
    try:
        return _COMPONENT_OF[recommendation_id]
    except KeyError:
        raise RecommendationNotFound(recommendation_id) from None
