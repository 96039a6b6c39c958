"""The steps that lead a student to a goal, and the days to do them on."""

from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.domain.advice_kinds import Action
from mastery_grpc.domain.learning_path import LearningGoal, LearningPath, advice_of, learning_path, path_of
from mastery_grpc.domain.recommendations import AdviceConfig, Verdict, recommend
from mastery_grpc.domain.scoring import Component
from mastery_grpc.domain.student import Mastery
from tests.builders import at, day
from tests.unit.test_recommendations import CONFIG, config_for, feedback, masteries, mastery, properties

goals = st.sampled_from(LearningGoal)
efforts = st.integers(5 * 60, 12 * 3600).map(lambda seconds: timedelta(seconds=seconds))


def path_for(of: Mastery, goal: LearningGoal = LearningGoal.IMPROVE_MASTERY, **given: object) -> LearningPath:
    return learning_path(of, goal=goal, **{"config": config_for(of), "now": at()} | given)  # type: ignore[arg-type]


def ids(path: LearningPath) -> list[str]:
    return [step.recommendation.recommendation_id for step in path.steps]


# --- steps ------------------------------------------------------------------------------------------------


@properties
@given(masteries, goals, efforts)
def test_scores_rise_with_every_step_by_its_gain(of: Mastery, goal: LearningGoal, effort: timedelta) -> None:
    path = path_for(of, goal, daily_effort=effort)
    scores = [of.mastery_score, *(step.expected_score for step in path.steps)]
    assert scores == sorted(scores)
    assert scores[-1] <= 1.0
    assert [step.position for step in path.steps] == list(range(1, len(path.steps) + 1))
    for step, (before, after) in zip(path.steps, pairwise(scores), strict=True):
        assert after - before == pytest.approx(step.recommendation.expected_gain, abs=1e-9)


@properties
@given(masteries)
def test_to_improve_the_most_gain_per_minute_comes_first(of: Mastery) -> None:
    path = path_for(of)
    worth = [step.recommendation.expected_gain / step.recommendation.effort_minutes for step in path.steps]
    assert all(first >= second - 1e-12 for first, second in pairwise(worth))
    advice = recommend(of, config=config_for(of), now=at())
    assert sorted(ids(path)) == sorted(each.recommendation_id for each in advice)


@properties
@given(masteries)
def test_to_master_the_topic_every_component_comes_to_proficiency_the_weakest_first(of: Mastery) -> None:
    path = path_for(of, LearningGoal.MASTER_TOPIC)
    gained: defaultdict[Component, float] = defaultdict(float)
    for step in path.steps:
        gained[step.recommendation.component] += step.recommendation.expected_gain
    for part in of.breakdown:
        if part.weight:
            assert part.score + gained[part.component] / part.weight >= 0.75 - 1e-9
    begun = [getattr(of.components, step.recommendation.component) for step in path.steps]
    assert begun == sorted(begun)


def test_a_component_short_of_proficiency_is_part_of_the_topic_though_it_needs_no_advice() -> None:
    almost = mastery(0.9, quiz=0.72)
    assert path_for(almost).steps == ()
    path = path_for(almost, LearningGoal.MASTER_TOPIC)
    assert set(ids(path)) == {"review-quiz", "practice-quiz"}
    assert all("below the 75 asked for" in step.recommendation.rationale for step in path.steps)


@properties
@given(masteries)
def test_to_prepare_an_assessment_quizzes_come_first_then_review_then_the_rest(of: Mastery) -> None:
    path = path_for(of, LearningGoal.PREPARE_ASSESSMENT)
    ranks = [
        0
        if step.recommendation.component is Component.QUIZ
        else 1
        if step.recommendation.action is Action.REVIEW
        else 2
        for step in path.steps
    ]
    assert ranks == sorted(ranks)


def test_there_are_no_steps_to_a_goal_that_is_reached() -> None:
    for goal in LearningGoal:
        path = path_for(mastery(0.8), goal)
        assert (path.steps, path.schedule, path.completion_date, path.words) == ((), (), None, [])


def test_a_dismissed_step_is_left_out_and_one_that_is_done_comes_later() -> None:
    weak = mastery(0.9, quiz=0.5, completion=0.5)
    plain = ids(path_for(weak))
    assert plain[0] == "review-quiz"
    dismissed = path_for(weak, feedback=[feedback(Verdict.DISMISSED)])
    assert "review-quiz" not in ids(dismissed)
    assert dismissed.steps[-1].expected_score == pytest.approx(path_for(weak).steps[-1].expected_score)
    done = path_for(weak, feedback=[feedback(Verdict.DONE, component_score=0.5)])
    assert ids(done)[-1] == "review-quiz"


def test_a_course_is_named_in_what_to_work_at() -> None:
    path = path_for(mastery(0.9, completion=0.2), course_id="algebra-1")
    assert [step.recommendation.area for step in path.steps] == ["open exercises of algebra-1"]


# --- schedule ---------------------------------------------------------------------------------------------


@properties
@given(masteries, goals, efforts)
def test_the_schedule_sums_to_the_efforts_and_never_exceeds_a_day(
    of: Mastery, goal: LearningGoal, effort: timedelta
) -> None:
    path = path_for(of, goal, daily_effort=effort)
    planned: defaultdict[int, timedelta] = defaultdict(timedelta)
    for study_day in path.schedule:
        spent = sum((block.effort for block in study_day.blocks), timedelta())
        assert timedelta() < spent <= effort
        assert spent == effort or study_day is path.schedule[-1]
        assert all(block.effort > timedelta() for block in study_day.blocks)
        for block in study_day.blocks:
            planned[block.position] += block.effort
    assert planned == {step.position: timedelta(minutes=step.recommendation.effort_minutes) for step in path.steps}
    positions = [block.position for study_day in path.schedule for block in study_day.blocks]
    assert positions == sorted(positions)
    days = [study_day.date for study_day in path.schedule]
    assert days == [day(number) for number in range(len(days))]
    assert path.completion_date == (days[-1] if days else None)


def test_a_long_step_takes_several_days_and_a_short_one_shares_one() -> None:
    # 240 minutes of exercises, then 65 of study days: a gap of 0.5 at 120 minutes for the whole way is 60.
    path = path_for(mastery(1.0, completion=0.25, consistency=0.25), daily_effort=timedelta(minutes=100))
    assert [step.recommendation.effort_minutes for step in path.steps] == [240, 60]
    assert [
        [(block.position, block.effort // timedelta(minutes=1)) for block in study_day.blocks]
        for study_day in path.schedule
    ] == [[(1, 100)], [(1, 100)], [(1, 40), (2, 60)]]


def test_the_daily_effort_is_that_of_the_settings_unless_one_is_given() -> None:
    weak, config = mastery(1.0, completion=0.5), AdviceConfig(daily_effort=timedelta(minutes=60))
    assert len(learning_path(weak, config=config, now=at()).schedule) == 2
    assert len(learning_path(weak, config=config, now=at(), daily_effort=timedelta(minutes=20)).schedule) == 6


# --- what the worker announces ----------------------------------------------------------------------------


@properties
@given(masteries)
def test_advice_is_what_recommending_and_the_path_say(of: Mastery) -> None:
    config = config_for(of)
    advice = advice_of(of, (), config, at())
    assert advice.recommendations == recommend(of, config=config, now=at())
    assert list(advice.path) == path_for(of).words
    assert advice.path == path_of(of, (), config, at())


def test_a_path_changes_with_its_steps_and_their_order_but_not_with_their_size() -> None:
    def steps(of: Mastery) -> tuple[str, ...]:
        return path_of(of, (), CONFIG, at())

    weak = mastery(0.9, quiz=0.5, completion=0.3)
    assert steps(mastery(0.9, quiz=0.5, completion=0.28)) == steps(weak)
    assert steps(mastery(0.9, quiz=0.9, completion=0.3)) != steps(weak)
    assert steps(mastery(0.9, quiz=0.5, completion=0.3, consistency=0.2)) != steps(weak)
    assert steps(mastery(0.9)) == ()
