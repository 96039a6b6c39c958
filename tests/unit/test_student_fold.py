from collections.abc import Sequence
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.scoring import Component, Method, ScoringRules, Weights
from mastery_grpc.domain.student import (
    EMPTY_STATE,
    Activity,
    Mastery,
    StudentState,
    fold,
    fold_all,
    mastery_of,
    reweighted,
)
from tests.builders import (
    DEFAULT_RULES,
    STUDENT,
    StoredStudent,
    activity,
    all_rules,
    arrivals,
    at,
    batches,
    calculation,
    components,
    day,
    event_id,
    exercise,
    flat,
    histories,
    in_order,
    quality,
    quiz,
    student,
)
from tests.reference_fold import ReferenceMastery, ReferenceRules, ReferenceStudent, fold_events

properties = settings(deadline=None, derandomize=True, max_examples=100)


def mastery_after(*events: LearningEvent, rules: ScoringRules = DEFAULT_RULES) -> Mastery:
    return mastery_of(STUDENT, fold_all(events, rules), rules)


def consistency_after(*events: LearningEvent, rules: ScoringRules = DEFAULT_RULES) -> float:
    return mastery_after(*events, rules=rules).components.consistency


def active_on(*days: int) -> Activity:
    active = Activity()
    for number in days:
        active = active.on(day(number))
    return active


def reference_of(events: Sequence[LearningEvent], rules: ScoringRules) -> ReferenceStudent:
    reference_rules = ReferenceRules(
        weights={
            "completion": rules.weights.completion,
            "quiz": rules.weights.quiz,
            "quality": rules.weights.quality,
            "consistency": rules.weights.consistency,
        },
        methods={"completion": rules.completion, "quiz": rules.quiz, "quality": rules.quality},
        decay_weight=rules.decay_weight,
        n_mastery_count=rules.n_mastery_count,
        n_mastery_score=rules.n_mastery_score,
        window_days=rules.consistency_window_days,
    )
    (folded,) = fold_events(map(flat, events), reference_rules).values()
    return folded


def assert_same(mastery: Mastery, expected: ReferenceMastery) -> None:
    assert mastery.mastery_score == pytest.approx(expected.score, abs=1e-9)
    assert mastery.level == expected.level
    for part in mastery.breakdown:
        assert part.score == pytest.approx(expected.components[part.component], abs=1e-9)
        assert part.score == getattr(mastery.components, part.component)
    assert {str(part.component): part.observed for part in mastery.breakdown} == expected.observed
    assert mastery.update_time == expected.update_time
    assert mastery.version == expected.version


# --- the properties that everything else rests on ---------------------------------------------------------


@properties
@given(st.data(), histories(), all_rules)
def test_any_order_and_duplication_folds_to_the_same_state(
    data: st.DataObject, events: list[LearningEvent], rules: ScoringRules
) -> None:
    expected = EMPTY_STATE
    for event in in_order(events):
        expected = fold(expected, event, rules)

    assert fold_all(data.draw(arrivals(events)), rules) == expected


@properties
@given(histories(max_size=20), all_rules)
def test_the_fold_agrees_with_the_rules_written_down_a_second_time(
    events: list[LearningEvent], rules: ScoringRules
) -> None:
    mastery = mastery_of(STUDENT, fold_all(events, rules), rules)

    assert_same(mastery, reference_of(events, rules).mastery)


@properties
@given(st.data(), histories(), all_rules)
def test_updates_in_order_of_arrival_lead_to_the_same_state_and_snapshots(
    data: st.DataObject, events: list[LearningEvent], rules: ScoringRules
) -> None:
    stored = StoredStudent(rules=rules)
    records_expire = data.draw(st.booleans())
    for batch in data.draw(batches(events)):
        stored.deliver(*batch)
        if records_expire:
            stored.records.clear()
    expected = reference_of(events, rules)

    assert stored.state == fold_all(events, rules)
    assert stored.mastery == mastery_of(STUDENT, stored.state, rules)
    assert {entry.event.event_id for entry in stored.log} == {event.event_id for event in events}
    assert len(stored.log) == len(events)
    assert stored.snapshots.keys() == expected.days.keys()
    for snapshot_day, snapshot in stored.snapshots.items():
        assert_same(snapshot, expected.days[snapshot_day])


@properties
@given(st.data(), histories())
def test_snapshots_after_any_arrival_are_those_of_arrival_in_order(
    data: st.DataObject, events: list[LearningEvent]
) -> None:
    stored, in_time = StoredStudent(), StoredStudent()
    for batch in data.draw(batches(events)):
        stored.deliver(*batch)
    for event in in_order(events):
        in_time.deliver(event)

    assert stored.snapshots == in_time.snapshots


@properties
@given(st.lists(st.integers(0, 70), min_size=1, max_size=40))
def test_activity_is_what_the_active_days_say(numbers: list[int]) -> None:
    active = active_on(*sorted(numbers))
    days, last = set(numbers), max(numbers)
    streaks = [len([n for n in range(first, 71) if set(range(first, n + 1)) <= days]) for first in days]

    assert active.last_day == day(last)
    assert active.active_days == len(days)
    assert active.longest_streak == max(streaks)
    assert active.current_streak == max(
        length for length in range(1, 72) if set(range(last - length + 1, last + 1)) <= days
    )
    assert active.recent_days() == [day(number) for number in sorted(days) if number > last - 30]
    for window in range(1, 31):
        assert active.days_within(window) == len([number for number in days if number > last - window])


# --- one rule at a time -----------------------------------------------------------------------------------


def test_a_first_event_makes_a_mastery() -> None:
    mastery = mastery_after(quiz(8, 10, time=at(0)))

    assert mastery.components == components(quiz=0.8, consistency=1 / 14)
    assert mastery.mastery_score == pytest.approx(0.24 + 0.1 / 14)
    assert mastery.version == 1
    assert mastery.update_time == at(0)
    assert mastery.student == STUDENT


def test_a_component_never_observed_counts_zero_and_says_so() -> None:
    mastery = mastery_after(quality(1.0))

    assert {part.component: (part.score, part.observed) for part in mastery.breakdown} == {
        Component.COMPLETION: (0.0, False),
        Component.QUIZ: (0.0, False),
        Component.QUALITY: (1.0, True),
        Component.CONSISTENCY: (1 / 14, True),
    }


def test_a_student_without_events_has_no_mastery() -> None:
    with pytest.raises(ValueError, match="without events"):
        mastery_of(STUDENT, EMPTY_STATE, DEFAULT_RULES)


def test_completion_is_the_latest_and_quiz_and_quality_decay() -> None:
    mastery = mastery_after(
        exercise(9, 10, number=1, time=at(0)),
        exercise(1, 10, number=2, time=at(1)),
        quiz(8, 10, number=3, time=at(2)),
        quiz(4, 10, number=4, time=at(3)),
        quality(0.2, number=5, time=at(4)),
        quality(1.0, number=6, time=at(5)),
    )

    assert mastery.components.completion == pytest.approx(0.1)
    assert mastery.components.quiz == pytest.approx(0.65 * 0.4 + 0.35 * 0.8)
    assert mastery.components.quality == pytest.approx(0.65 * 1.0 + 0.35 * 0.2)


def test_each_component_follows_the_method_of_its_own() -> None:
    rules = ScoringRules(completion=Method.HIGHEST, quiz=Method.LATEST, quality=Method.AVERAGE)
    mastery = mastery_after(
        *[exercise(given, 10, number=given, time=at(given)) for given in (9, 1)],
        *[quiz(given, 10, number=10 + given, time=at(given)) for given in (2, 7)],
        *[quality(given / 10, number=20 + given, time=at(given)) for given in (2, 7)],
        rules=rules,
    )

    assert mastery.components.completion == 0.9
    assert mastery.components.quiz == 0.7
    assert mastery.components.quality == pytest.approx(0.45)


def test_a_calculation_sets_all_components_and_later_observations_follow_it() -> None:
    before, set_to = quiz(0, 1, number=1, time=at(0)), calculation(0.8, number=2, time=at(1))

    assert mastery_after(before, set_to).components == components(0.8)
    assert mastery_after(before, set_to, quiz(4, 10, number=3, time=at(2))).components == components(
        0.8, quiz=0.65 * 0.4 + (1 - 0.65) * 0.8
    )


def test_a_calculation_gives_a_consistency_that_stays_until_a_producer_gives_another() -> None:
    set_to = calculation(0.5, number=1, time=at(0))

    assert consistency_after(set_to, activity(number=2, time=at(1))) == 0.5
    assert consistency_after(set_to, activity(0.7, number=2, time=at(1))) == 0.7


def test_the_latest_consistency_that_a_producer_gave_stands() -> None:
    events = [activity(0.9, number=1, time=at(1)), activity(0.0, number=2, time=at(2))]

    assert consistency_after(*events) == 0.0
    assert consistency_after(*events, quiz(number=3, time=at(30))) == 0.0


def test_events_of_every_type_make_their_day_active() -> None:
    events = [
        exercise(number=1, time=at(0)),
        quiz(number=2, time=at(1)),
        quality(number=3, time=at(2)),
        activity(number=4, time=at(3)),
    ]

    assert consistency_after(*events) == 4 / 14
    assert fold_all([*events, calculation(number=5, time=at(4))], DEFAULT_RULES).activity.active_days == 5


def test_several_events_of_a_day_are_one_active_day() -> None:
    events = [quiz(number=1, time=at(0, hours=0)), quiz(number=2, time=at(0, hours=23, seconds=3599.999))]

    assert consistency_after(*events) == 1 / 14
    assert consistency_after(*events, quiz(number=3, time=at(1, hours=0))) == 2 / 14


@pytest.mark.parametrize(("days_later", "active_days"), [(1, 2), (12, 2), (13, 2), (14, 1), (15, 1), (400, 1)])
def test_the_window_is_the_14_days_that_end_on_the_day_of_the_event(days_later: int, active_days: int) -> None:
    first = activity(number=1, time=at(0, hours=0))
    last = activity(number=2, time=at(days_later, hours=23.9))

    assert consistency_after(first, last) == active_days / 14


@pytest.mark.parametrize("window", [1, 2, 7, 14, 29, 30])
def test_the_window_is_as_long_as_the_rules_say(window: int) -> None:
    rules = ScoringRules(consistency_window_days=window)
    daily = [activity(number=number, time=at(number)) for number in range(40)]
    at_its_edge = [daily[0], activity(number=50, time=at(window - 1, hours=10))]
    beyond = [daily[0], activity(number=50, time=at(window))]

    assert consistency_after(*daily, rules=rules) == 1.0
    assert consistency_after(*at_its_edge, rules=rules) == len({0, window - 1}) / window
    assert consistency_after(*beyond, rules=rules) == 1 / window


def test_the_window_ends_on_the_day_of_the_event_and_not_on_the_day_of_another_clock() -> None:
    daily = [activity(number=number, time=at(number)) for number in range(14)]

    assert consistency_after(*daily) == 1.0
    assert consistency_after(*daily[:7]) == 0.5


def test_a_streak_ends_with_a_day_off_and_the_longest_is_kept() -> None:
    assert active_on(0, 1, 2).current_streak == 3
    assert active_on(0, 1, 1, 2).current_streak == 3
    assert active_on(0, 1, 2, 4).current_streak == 1
    assert active_on(0, 1, 2, 4).longest_streak == 3
    assert active_on(0, 2, 3, 4, 5).longest_streak == 4


def test_activity_before_the_first_day_is_empty() -> None:
    assert Activity().recent_days() == []
    assert Activity().days_within(14) == 0
    assert Activity().last_day is None


@pytest.mark.parametrize(("gap", "remembered"), [(29, 2), (30, 1), (31, 1), (100_000, 1)])
def test_thirty_days_of_activity_are_remembered(gap: int, remembered: int) -> None:
    active = active_on(0, gap)

    assert len(active.recent_days()) == remembered
    assert active.recent_days()[-1] == day(gap)
    assert active.active_days == 2


def test_what_is_remembered_of_activity_does_not_grow_for_ever() -> None:
    assert active_on(*range(100)).recent == active_on(*range(30)).recent


def test_events_equal_in_time_are_folded_in_order_of_their_ids() -> None:
    first, second = exercise(1, 10, number=1, time=at(0)), exercise(2, 10, number=2, time=at(0))

    assert mastery_after(first, second).components.completion == 0.2
    assert mastery_after(second, first).components.completion == 0.2
    assert fold_all([second, first], DEFAULT_RULES).last_event_id == event_id(2)


def test_events_are_folded_in_order_of_time_even_if_their_ids_say_otherwise() -> None:
    first, second = exercise(1, 10, number=2, time=at(0)), exercise(2, 10, number=1, time=at(0, seconds=1e-6))

    assert mastery_after(second, first).components.completion == 0.2


def test_a_repeated_event_counts_once() -> None:
    assert mastery_after(quiz(number=1), quiz(number=1), quiz(number=2)).version == 2


def test_four_components_of_nine_tenths_make_an_expert() -> None:
    mastery = mastery_after(calculation(0.9))

    assert mastery.mastery_score == 0.9
    assert mastery.level == "expert"


def test_a_mastery_can_be_read_with_other_weights() -> None:
    mastery = mastery_after(calculation(0.2, quiz=0.9))
    only_quiz = reweighted(mastery, Weights(completion=0.0, quiz=1.0, quality=0.0, consistency=0.0))

    assert only_quiz.mastery_score == 0.9
    assert only_quiz.level == "expert"
    assert only_quiz.components == mastery.components
    assert (only_quiz.version, only_quiz.update_time) == (mastery.version, mastery.update_time)
    assert [part.contribution for part in only_quiz.breakdown] == [0.0, 0.9, 0.0, 0.0]


def test_a_mastery_with_other_weights_still_says_what_was_never_observed() -> None:
    other = reweighted(mastery_after(quiz()), Weights(completion=0.1, quiz=0.2, quality=0.3, consistency=0.4))

    assert [part.observed for part in other.breakdown] == [False, True, False, True]


def test_a_student_belongs_to_his_school() -> None:
    mastery = mastery_of(student(school_id="north"), fold_all([quiz()], DEFAULT_RULES), DEFAULT_RULES)

    assert mastery.student == student(school_id="north")


def test_a_fold_leaves_the_state_before_it_alone() -> None:
    before: StudentState = fold_all([quiz(number=1, time=at(0))], DEFAULT_RULES)
    fold(before, quiz(0, 1, number=2, time=at(1)), DEFAULT_RULES)

    assert before == fold_all([quiz(number=1, time=at(0))], DEFAULT_RULES)


def test_the_reference_needs_no_order_either() -> None:
    events = [quiz(given, 10, number=given, time=at(given)) for given in range(1, 6)]

    assert reference_of(events[::-1], DEFAULT_RULES) == reference_of([*events, *events], DEFAULT_RULES)
    assert list(reference_of(events, DEFAULT_RULES).days) == [
        date(2026, 1, 12) + timedelta(n) for n in range(1, 6)
    ]
