"""The steps that lead a student to a goal, the score expected after each, and the days to do them on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from mastery_grpc.domain.advice_kinds import Action
from mastery_grpc.domain.recommendations import (
    PROFICIENCY,
    AdviceConfig,
    Feedback,
    Option,
    Recommendation,
    options,
    recommend_among,
    recommendation_of,
)
from mastery_grpc.domain.scoring import Component, Components, score_breakdown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.domain.student import Mastery


class LearningGoal(StrEnum):
    """What a path leads to."""

    IMPROVE_MASTERY = "improve_mastery"
    """The score, where the effort pays most: the most gain per minute first."""
    MASTER_TOPIC = "master_topic"
    """Every component that counts at proficiency: the weakest first."""
    PREPARE_ASSESSMENT = "prepare_assessment"
    """To be assessed: quizzes first, then review, then the rest, each by gain per minute."""


@dataclass(frozen=True, slots=True)
class LearningStep:
    """One step of a path."""

    position: int
    """From 1."""
    words: str
    """What to do, as a sentence for the student."""
    recommendation: Recommendation
    expected_score: float
    """After this step and all before it, 0..1."""


@dataclass(frozen=True, slots=True)
class StudyBlock:
    """A part of a day for one step."""

    position: int
    effort: timedelta


@dataclass(frozen=True, slots=True)
class StudyDay:
    """One UTC day with work."""

    date: date
    blocks: tuple[StudyBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPath:
    """A path as it was made at `create_time`; the field names are those stored."""

    goal: LearningGoal
    steps: tuple[LearningStep, ...]
    schedule: tuple[StudyDay, ...]
    create_time: datetime

    @property
    def completion_date(self) -> date | None:
        """The UTC day on which the last step is expected to be done, None if there are no steps."""
        return self.schedule[-1].date if self.schedule else None

    @property
    def words(self) -> list[str]:
        """The steps in order, in words for the student."""
        return [step.words for step in self.steps]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a new mastery means for the student."""

    recommendations: tuple[Recommendation, ...]
    path: tuple[str, ...]
    """The steps of the path to improve the mastery, in words. Equal words, equal path."""


_ORDER: dict[LearningGoal, Callable[[Option], tuple[float, ...]]] = {
    LearningGoal.IMPROVE_MASTERY: lambda option: (-option.worth,),
    LearningGoal.MASTER_TOPIC: lambda option: (option.value, -option.worth),
    LearningGoal.PREPARE_ASSESSMENT: lambda option: (
        option.kind.component is not Component.QUIZ,
        option.kind.action is not Action.REVIEW,
        -option.worth,
    ),
}


def learning_path(
    mastery: Mastery,
    *,
    goal: LearningGoal = LearningGoal.IMPROVE_MASTERY,
    feedback: Sequence[Feedback] = (),
    config: AdviceConfig,
    now: datetime,
    daily_effort: timedelta | None = None,
    course_id: str = "",
) -> LearningPath:
    """Returns the path from a mastery to a goal, begun on the day of `now`; without steps if it is reached.

    `daily_effort`: the time that the student has on a day; None is that of the settings. `course_id`: named in
    what to work at, because a mastery is one over all courses.
    """
    below = PROFICIENCY if goal is LearningGoal.MASTER_TOPIC else config.component_threshold
    chosen = sorted(options(mastery, feedback, config, now, below=below), key=_ORDER[goal])
    scores = _expected_scores(mastery, chosen, config)
    steps = tuple(
        LearningStep(
            position,
            option.kind.words,
            recommendation_of(option, mastery, below, config, course_id=course_id),
            score,
        )
        for position, (option, score) in enumerate(zip(chosen, scores, strict=True), start=1)
    )
    return LearningPath(
        goal=goal,
        steps=steps,
        schedule=_schedule(steps, now.date(), config.daily_effort if daily_effort is None else daily_effort),
        create_time=now,
    )


def path_of(
    mastery: Mastery, feedback: Sequence[Feedback], config: AdviceConfig, now: datetime
) -> tuple[str, ...]:
    """Returns the steps of the path to improve a mastery, in words; all that tells whether it has changed."""
    return _words(options(mastery, feedback, config, now))


def advice_of(mastery: Mastery, feedback: Sequence[Feedback], config: AdviceConfig, now: datetime) -> Advice:
    """Returns what to announce with a mastery; without a forecast, because this runs once per event."""
    found = options(mastery, feedback, config, now)
    return Advice(recommend_among(found, mastery, config), _words(found))


def _words(found: Sequence[Option]) -> tuple[str, ...]:
    return tuple([option.kind.words for option in sorted(found, key=_ORDER[LearningGoal.IMPROVE_MASTERY])])


def _expected_scores(mastery: Mastery, chosen: Sequence[Option], config: AdviceConfig) -> list[float]:
    """Returns the score after each option, by the formula: the component raised, all else as it is."""
    values = {part.component: part.score for part in mastery.breakdown}
    completion, quiz, quality, consistency = (part.observed for part in mastery.breakdown)
    scores = []
    for option in chosen:
        values[option.kind.component] += option.lift
        raised = Components(
            completion=values[Component.COMPLETION],
            quiz=values[Component.QUIZ],
            quality=values[Component.QUALITY],
            consistency=values[Component.CONSISTENCY],
        )
        score, _ = score_breakdown(raised, (completion, quiz, quality, consistency), config.weights)
        scores.append(score)
    return scores


def _schedule(steps: Sequence[LearningStep], first_day: date, daily_effort: timedelta) -> tuple[StudyDay, ...]:
    """Returns the days, each filled up before the next one is begun."""
    days: list[StudyDay] = []
    blocks: list[StudyBlock] = []
    free = daily_effort
    for step in steps:
        effort = timedelta(minutes=step.recommendation.effort_minutes)
        while effort:
            if not free:
                days.append(StudyDay(first_day + timedelta(days=len(days)), tuple(blocks)))
                blocks, free = [], daily_effort
            taken = min(effort, free)
            blocks.append(StudyBlock(step.position, taken))
            effort -= taken
            free -= taken
    if blocks:
        days.append(StudyDay(first_day + timedelta(days=len(days)), tuple(blocks)))
    return tuple(days)
