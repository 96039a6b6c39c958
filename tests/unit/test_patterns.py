import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.application.event_json import decode_event
from mastery_grpc.domain.events import ExerciseCompletion, LearningEvent, QuizPerformance, StudentKey
from mastery_grpc.domain.forecasting.forecast import HISTORY_WINDOW_DAYS, History, Past
from mastery_grpc.domain.patterns import Pattern, PatternKind, detect_patterns
from mastery_grpc.domain.patterns.rhythm import burstiness
from mastery_grpc.simulation.learners import simulate_class
from tests.builders import (
    DEFAULT_RULES,
    activity,
    at,
    calculation,
    day,
    event_of,
    exercise,
    payloads,
    quality,
    quiz,
)
from tests.real_learners import events_file, read_lines

COURSE_OF_THE_SCORE = {
    PatternKind.STEADY_IMPROVEMENT,
    PatternKind.PLATEAU,
    PatternKind.DECLINE,
    PatternKind.RECOVERY,
}


def past_of(events: Iterable[LearningEvent], today: date) -> Past:
    past = History(events, DEFAULT_RULES).until(today)
    assert past is not None
    return past


def found(events: Iterable[LearningEvent], *, today: int) -> dict[PatternKind, Pattern]:
    patterns = detect_patterns(past_of(events, day(today)))
    assert len({pattern.kind for pattern in patterns}) == len(patterns)
    return {pattern.kind: pattern for pattern in patterns}


def scores(values: dict[int, float]) -> list[LearningEvent]:
    """Gives each day its score: a calculation with all components alike scores just that."""
    return [calculation(value, number=when, time=at(when)) for when, value in values.items()]


def every(days: int, *values: float) -> dict[int, float]:
    return {place * days: value for place, value in enumerate(values)}


def score_pattern(values: dict[int, float]) -> dict[PatternKind, Pattern]:
    """What is found of the course of the score, on the last day with a score."""
    patterns = found(scores(values), today=max(values))
    return {kind: pattern for kind, pattern in patterns.items() if kind in COURSE_OF_THE_SCORE}


def works(*days: int, pieces: int = 1) -> list[LearningEvent]:
    """Quizzes on these days; pieces on each."""
    return [
        quiz(7, 10, number=100 * when + piece, time=at(when, hours=9 + piece))
        for when in days
        for piece in range(pieces)
    ]


def reports(*figures: tuple[int, int, int], sets: Sequence[str] = ()) -> list[LearningEvent]:
    """Exercise events as (day, completed, total); `sets` names the exercises of each."""
    return [
        event_of(
            ExerciseCompletion(
                completed_exercises=completed, total_exercises=total, exercise_id=sets[number] if sets else ""
            ),
            number=number,
            time=at(when),
        )
        for number, (when, completed, total) in enumerate(figures)
    ]


def figure(pattern: Pattern, name: str) -> float:
    return next(evidence.value for evidence in pattern.evidence if evidence.figure == name)


class TestSteadyImprovement:
    def test_shows_when_the_score_rises_from_week_to_week(self) -> None:
        (pattern,) = score_pattern(every(7, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)).values()

        assert pattern.kind is PatternKind.STEADY_IMPROVEMENT
        assert (pattern.start_day, pattern.end_day) == (day(0), day(35))
        assert figure(pattern, "change_score") == pytest.approx(0.20)
        assert figure(pattern, "slope_per_day") == pytest.approx(0.20 / 35)
        assert pattern.strength == pytest.approx(1.0)
        assert pattern.summary == "the score rose steadily from 0.40 on 12 January to 0.65 on 16 February"

    def test_shows_from_five_days_with_events_on(self) -> None:
        assert PatternKind.STEADY_IMPROVEMENT in score_pattern(every(7, 0.40, 0.45, 0.50, 0.55, 0.60))
        assert score_pattern(every(7, 0.40, 0.45, 0.50, 0.55)) == {}

    def test_shows_from_a_span_of_three_weeks_on(self) -> None:
        rising = (0.40, 0.45, 0.50, 0.55)
        assert PatternKind.STEADY_IMPROVEMENT in score_pattern({**every(5, *rising), 21: 0.60})
        assert score_pattern({**every(5, *rising), 20: 0.60}) == {}

    def test_is_weaker_the_less_the_score_rises_and_does_not_show_below_a_twentieth(self) -> None:
        strong = score_pattern(every(6, 0.40, 0.43, 0.46, 0.49, 0.52))
        weak = score_pattern(every(6, 0.40, 0.4125, 0.425, 0.4375, 0.451))
        assert strong[PatternKind.STEADY_IMPROVEMENT].strength > weak[PatternKind.STEADY_IMPROVEMENT].strength
        assert PatternKind.STEADY_IMPROVEMENT not in score_pattern(every(6, 0.40, 0.41, 0.42, 0.43, 0.449))

    def test_is_not_a_rise_from_first_to_last_alone(self) -> None:
        assert PatternKind.STEADY_IMPROVEMENT not in score_pattern(every(7, 0.40, 0.60, 0.45, 0.62, 0.44, 0.61))

    def test_is_not_a_fall_that_was_made_up_for(self) -> None:
        rising = {0: 0.68, 3: 0.55, 6: 0.62, 14: 0.66, 21: 0.70, 28: 0.71}
        assert PatternKind.STEADY_IMPROVEMENT not in score_pattern(rising)
        assert PatternKind.STEADY_IMPROVEMENT in score_pattern({**rising, 0: 0.56})

    def test_is_not_that_components_come_to_be_observed(self) -> None:
        events = [
            exercise(9, 10, number=1, time=at(0)),
            exercise(9, 10, number=2, time=at(7)),
            quiz(6, 10, number=3, time=at(14)),
            quiz(6, 10, number=4, time=at(21)),
            quality(0.6, number=5, time=at(28)),
            quality(0.6, number=6, time=at(35)),
        ]
        assert PatternKind.STEADY_IMPROVEMENT not in found(events, today=35)


class TestDecline:
    def test_shows_when_the_score_falls(self) -> None:
        (pattern,) = score_pattern(every(7, 0.65, 0.60, 0.55, 0.50, 0.45, 0.40)).values()

        assert pattern.kind is PatternKind.DECLINE
        assert figure(pattern, "kendall_tau_coefficient") == pytest.approx(-1)
        assert pattern.strength == pytest.approx(1.0)
        assert pattern.summary == "the score fell from 0.65 on 12 January to 0.40 on 16 February"

    def test_shows_when_the_score_falls_in_steps(self) -> None:
        assert PatternKind.DECLINE in score_pattern(every(7, 0.8, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5))

    def test_does_not_show_when_chance_could_have_done_it(self) -> None:
        # Of ten pairs of days, six fall and four rise.
        assert score_pattern(every(7, 0.60, 0.50, 0.65, 0.55, 0.52)) == {}

    def test_ends_where_a_plateau_begins(self) -> None:
        falling = every(5, 0.80, 0.75, 0.70, 0.65, 0.60, 0.55)
        standing = {25 + after: 0.50 for after in (5, 15, 25, 35)}
        patterns = score_pattern({**falling, **standing})

        assert set(patterns) == {PatternKind.DECLINE, PatternKind.PLATEAU}
        assert patterns[PatternKind.DECLINE].end_day == patterns[PatternKind.PLATEAU].start_day == day(30)


class TestPlateau:
    def test_shows_when_the_score_stands_still_although_the_student_works(self) -> None:
        (pattern,) = score_pattern(every(20, 0.60, 0.60, 0.60, 0.60)).values()

        assert pattern.kind is PatternKind.PLATEAU
        assert (pattern.start_day, pattern.end_day, pattern.strength) == (day(0), day(60), 1.0)
        assert (
            pattern.summary
            == "the score has stood at about 0.60 for 60 days since 12 January, with work on 4 of them"
        )

    def test_begins_with_the_first_score_that_is_near_enough(self) -> None:
        patterns = score_pattern(every(10, 0.30, 0.559, 0.60, 0.58, 0.57, 0.56))
        assert patterns[PatternKind.PLATEAU].start_day == day(20)
        patterns = score_pattern(every(10, 0.30, 0.560, 0.60, 0.58, 0.57, 0.56))
        assert patterns[PatternKind.PLATEAU].start_day == day(10)

    def test_needs_three_weeks(self) -> None:
        assert PatternKind.PLATEAU in score_pattern({0: 0.6, 7: 0.6, 14: 0.6, 21: 0.6})
        assert score_pattern({0: 0.6, 7: 0.6, 14: 0.6, 20: 0.6}) == {}

    def test_needs_four_days_of_work(self) -> None:
        assert score_pattern({0: 0.6, 20: 0.6, 40: 0.6}) == {}

    def test_does_not_show_at_the_top(self) -> None:
        assert PatternKind.PLATEAU in score_pattern(every(20, 0.89, 0.89, 0.89, 0.89))
        assert score_pattern(every(20, 0.90, 0.90, 0.90, 0.90)) == {}


class TestRecovery:
    def test_shows_when_the_score_rises_again_after_a_fall(self) -> None:
        (pattern,) = score_pattern({0: 0.80, 10: 0.60, 15: 0.62, 20: 0.78, 30: 0.76}).values()

        assert pattern.kind is PatternKind.RECOVERY
        assert (pattern.start_day, pattern.end_day) == (day(0), day(20))
        assert figure(pattern, "fall_score") == pytest.approx(0.20)
        assert figure(pattern, "regained_share") == pytest.approx(0.8)
        assert figure(pattern, "down_days") == 10
        assert pattern.strength == pytest.approx(0.8)
        assert pattern.summary == (
            "after falling from 0.80 to 0.60 by 22 January, the score rose again to 0.78 by 1 February"
        )

    @pytest.mark.parametrize(
        ("values", "shows"),
        [
            ({0: 0.80, 10: 0.699, 20: 0.80}, True),
            ({0: 0.80, 10: 0.701, 20: 0.80}, False),
            ({0: 0.80, 10: 0.60, 20: 0.701}, True),
            ({0: 0.80, 10: 0.60, 20: 0.699}, False),
            ({0: 0.80, 10: 0.60, 17: 0.80}, True),
            ({0: 0.80, 10: 0.60, 16: 0.80}, False),
            ({0: 0.80, 10: 0.69, 11: 0.75, 20: 0.60, 24: 0.80}, False),
            ({0: 0.80, 10: 0.60, 20: 0.80, 30: 0.65}, False),
        ],
        ids=[
            "fell just far enough",
            "fell too little",
            "regained just half",
            "regained less",
            "was down for a week",
            "came a few days late",
            "came a few days late twice",
            "fell again",
        ],
    )
    def test_shows_only_within_its_bounds(self, values: dict[int, float], shows: bool) -> None:
        assert (PatternKind.RECOVERY in score_pattern(values)) is shows


class TestCramming:
    def test_shows_when_work_comes_in_bursts_with_gaps_after_them(self) -> None:
        pattern = found(works(0, 20, 40, pieces=3) + works(30), today=55)[PatternKind.CRAMMING]

        assert pattern.strength == pytest.approx(0.9)
        assert (pattern.start_day, pattern.end_day) == (day(0), day(55))
        assert figure(pattern, "bursts_count") == 3
        assert figure(pattern, "longest_gap_days") == 20
        assert "9 of 10 pieces of work came in 3 bursts" in pattern.summary

    def test_counts_an_exercise_and_its_mark_as_one_piece(self) -> None:
        marked = [exercise(when, 40, number=5000 + when, time=at(when, hours=8)) for when in (0, 20, 40)]
        assert found(works(0, 20, 40, pieces=3) + marked, today=55) == found(
            works(0, 20, 40, pieces=3) + marked[:1], today=55
        )

    def test_takes_days_close_together_for_one_burst(self) -> None:
        assert PatternKind.CRAMMING in found(works(0, 2, 4, 20, 21, 22), today=22 + 10)

    @pytest.mark.parametrize(
        ("events", "today"),
        [
            (works(0, 20, 40, pieces=2), 55),
            (works(0, pieces=3), 20),
            (works(0, 9, 18, pieces=3), 27),
            (works(0, 20, pieces=3) + works(30, 35, 40, 45, 50), 51),
            (works(*range(9), *range(20, 29)), 40),
        ],
        ids=["too small", "one burst", "gaps too short", "most work outside", "weeks of daily work"],
    )
    def test_does_not_show_otherwise(self, events: list[LearningEvent], today: int) -> None:
        assert PatternKind.CRAMMING not in found(events, today=today)


class TestIrregularRhythm:
    def test_shows_when_some_gaps_are_far_longer_than_others(self) -> None:
        pattern = found(works(0, 1, 2, 3, 4, 5, 30, 31), today=31)[PatternKind.IRREGULAR_RHYTHM]

        assert figure(pattern, "usual_gap_days") == 1
        assert figure(pattern, "longest_gap_days") == 25
        assert pattern.summary == (
            "work comes at no regular distance: usually after 1 day, once only after 25 days"
            " (from 17 January to 11 February)"
        )

    def test_needs_five_gaps(self) -> None:
        assert PatternKind.IRREGULAR_RHYTHM in found(works(0, 1, 2, 3, 4, 60), today=60)
        assert PatternKind.IRREGULAR_RHYTHM not in found(works(0, 1, 2, 3, 60), today=60)

    def test_does_not_show_for_work_at_equal_distances_or_about_so(self) -> None:
        assert PatternKind.IRREGULAR_RHYTHM not in found(works(*range(0, 60, 7)), today=60)
        assert PatternKind.IRREGULAR_RHYTHM not in found(works(0, 2, 3, 6, 7, 11, 13), today=13)

    def test_is_replaced_by_cramming_which_explains_it(self) -> None:
        crammed = found(works(0, 1, 2, 40, 41, 42), today=60)
        assert PatternKind.CRAMMING in crammed
        assert PatternKind.IRREGULAR_RHYTHM not in crammed

    def test_burstiness_is_least_for_equal_gaps_none_at_random_and_most_for_a_single_gap(self) -> None:
        assert burstiness([3, 3, 3, 3, 3]) == -1.0
        # Of 5 gaps between days of work at random, the deviation is sqrt(4/6) of the mean.
        deviation = round(1000 * math.sqrt(5 / 6))
        some = [1000 + deviation, 1000 - deviation]
        assert burstiness([*some, *some, 1000]) == pytest.approx(0.0, abs=1e-3)
        assert burstiness([10**9, 1, 1, 1, 1]) == pytest.approx(1.0, abs=1e-6)


class TestInactivity:
    def test_shows_when_nothing_was_done_for_longer_than_usual(self) -> None:
        pattern = found(works(0, 6, 12, 18, 24), today=47)[PatternKind.INACTIVITY]

        assert pattern.summary == "nothing for 23 days, since 5 February; usually a gap is 6 days"
        assert pattern.strength == pytest.approx(1 - 0.75 * 12 / 23)
        assert (pattern.start_day, pattern.end_day) == (day(24), day(47))

    def test_needs_twice_the_usual_gap(self) -> None:
        assert PatternKind.INACTIVITY in found(works(0, 6, 12, 18), today=18 + 12)
        assert PatternKind.INACTIVITY not in found(works(0, 6, 12, 18), today=18 + 11)

    def test_needs_a_week_even_if_the_student_works_every_day(self) -> None:
        assert PatternKind.INACTIVITY in found(works(0, 1, 2, 3), today=3 + 7)
        assert PatternKind.INACTIVITY not in found(works(0, 1, 2, 3), today=3 + 6)

    def test_does_not_show_if_such_gaps_are_not_rare(self) -> None:
        assert PatternKind.INACTIVITY not in found(works(0, 1, 2, 22, 23, 24), today=24 + 18)
        assert PatternKind.INACTIVITY in found(works(0, 1, 2, 22, 23, 24, 25), today=25 + 18)

    def test_takes_a_month_while_nothing_is_usual_yet(self) -> None:
        assert PatternKind.INACTIVITY in found(works(0, 6), today=6 + 30)
        assert PatternKind.INACTIVITY not in found(works(0, 6), today=6 + 29)
        assert PatternKind.INACTIVITY not in found(works(0, 20), today=20 + 39)

    def test_is_not_ended_by_a_deadline_that_passes(self) -> None:
        events = [
            *reports((0, 1, 1), (6, 2, 2), (12, 3, 3), (18, 4, 4), (30, 4, 5)),
            activity(0.8, number=99, time=at(30)),
        ]
        assert figure(found(events, today=32)[PatternKind.INACTIVITY], "silence_days") == 14

    def test_is_ended_by_activity_on_a_day_on_which_a_deadline_passes(self) -> None:
        events = [
            *reports((0, 1, 1), (6, 2, 2), (12, 3, 3), (18, 4, 4), (30, 4, 5)),
            activity(number=99, time=at(30)),
        ]
        assert PatternKind.INACTIVITY not in found(events, today=32)

    def test_shows_when_nothing_was_done_in_all_the_days_that_count(self) -> None:
        pattern = found(works(0), today=200)[PatternKind.INACTIVITY]
        assert pattern.summary == "nothing for at least 90 days"
        assert (pattern.end_day - pattern.start_day).days == HISTORY_WINDOW_DAYS - 1


class TestFallingBehind:
    def test_shows_when_less_is_done_than_is_due(self) -> None:
        events = reports((0, 1, 1), (10, 2, 2), (20, 2, 3), (30, 3, 4), (40, 3, 5))
        pattern = found(events, today=42)[PatternKind.FALLING_BEHIND]

        assert pattern.strength == pytest.approx(0.4)
        assert (pattern.start_day, pattern.end_day) == (day(20), day(42))
        assert figure(pattern, "open_count") == 2
        assert pattern.evidence[-1].days == (day(20), day(40))
        assert pattern.summary == (
            "2 of 5 exercises that were due are not done, some of them open at least since 1 February"
        )

    def test_needs_two_open_exercises_and_a_fifth_of_those_due(self) -> None:
        assert PatternKind.FALLING_BEHIND not in found(reports((0, 1, 1), (10, 1, 2)), today=10)
        assert PatternKind.FALLING_BEHIND in found(reports((0, 8, 8), (10, 8, 10)), today=10)
        assert PatternKind.FALLING_BEHIND not in found(reports((0, 9, 9), (10, 9, 11)), today=10)

    def test_is_over_when_the_student_has_caught_up(self) -> None:
        events = reports((0, 1, 1), (10, 1, 2), (20, 1, 3), (30, 3, 3))
        assert PatternKind.FALLING_BEHIND in found(events[:3], today=30)
        assert PatternKind.FALLING_BEHIND not in found(events, today=30)

    def test_does_not_show_where_nothing_says_what_is_due(self) -> None:
        assert PatternKind.FALLING_BEHIND not in found(reports((0, 1, 60), (10, 3, 60), (20, 5, 60)), today=20)

    def test_counts_sets_of_exercises_once_the_student_has_gone_on(self) -> None:
        behind = reports((0, 9, 10), (10, 2, 10), (20, 1, 10), sets=("a", "b", "c"))
        pattern = found(behind, today=20)[PatternKind.FALLING_BEHIND]
        assert (figure(pattern, "open_count"), figure(pattern, "due_count")) == (9, 20)

        only_the_latest = reports((0, 10, 10), (10, 9, 10), (20, 1, 10), sets=("a", "b", "c"))
        assert PatternKind.FALLING_BEHIND not in found(only_the_latest, today=20)

    def test_is_not_misled_by_the_order_of_a_day(self) -> None:
        late_that_day = reports((0, 1, 1), (10, 2, 4), (10, 2, 3), (20, 3, 4), (30, 3, 5))
        assert figure(found(late_that_day, today=30)[PatternKind.FALLING_BEHIND], "due_count") == 5

    def test_adds_up_the_courses(self) -> None:
        events = [
            event_of(
                ExerciseCompletion(completed_exercises=1, total_exercises=total),
                number=number,
                time=at(number),
                course_id=course,
            )
            for number, (course, total) in enumerate([("maths", 1), ("art", 1), ("maths", 2), ("art", 2)])
        ]
        assert PatternKind.FALLING_BEHIND not in found(events[:3], today=3)
        assert figure(found(events, today=3)[PatternKind.FALLING_BEHIND], "due_count") == 4


class TestUnevenComponents:
    def test_shows_when_work_is_done_but_not_understood(self) -> None:
        events = reports((0, 1, 1), (10, 2, 2), (20, 3, 3)) + [
            quiz(4, 10, number=100 + when, time=at(when)) for when in (0, 10, 20)
        ]
        pattern = found(events, today=20)[PatternKind.UNEVEN_COMPONENTS]

        assert pattern.strength == pytest.approx(0.6)
        assert (pattern.start_day, pattern.end_day) == (day(0), day(20))
        assert pattern.summary == (
            "done but not understood: 100% of the exercises, but marks of 40%, since 12 January"
        )

    def test_shows_when_work_is_understood_but_not_done(self) -> None:
        events = reports((0, 1, 1), (10, 1, 2), (20, 1, 3)) + [
            quality(0.9, number=100 + when, time=at(when)) for when in (0, 10, 20)
        ]
        pattern = found(events, today=20)[PatternKind.UNEVEN_COMPONENTS]

        assert pattern.start_day == day(10)
        assert pattern.summary == (
            "understood but not done: marks of 90%, but 33% of the exercises, since 22 January"
        )

    @pytest.mark.parametrize(
        ("completed", "marks", "shows"),
        [
            (10, 0.59, True),
            (10, 0.60, False),
            (8, 0.55, True),
            (8, 0.56, False),
            (6, 0.85, True),
            (6, 0.84, False),
            (7, 0.96, False),
            (1, 0.59, False),
        ],
        ids=[
            "poor marks",
            "fair marks",
            "just far apart",
            "not far enough apart",
            "just far apart the other way",
            "not far enough apart the other way",
            "most is done",
            "neither",
        ],
    )
    def test_shows_only_within_its_bounds(self, completed: int, marks: float, shows: bool) -> None:
        events = reports((0, 0, 8), (1, 0, 9), (2, completed, 10)) + [
            quality(marks, number=100 + when, time=at(when)) for when in range(3)
        ]
        assert (PatternKind.UNEVEN_COMPONENTS in found(events, today=2)) is shows

    def test_needs_three_marks_and_three_reports(self) -> None:
        done = reports((0, 1, 1), (1, 2, 2), (2, 3, 3))
        marks = [quiz(4, 10, number=100 + when, time=at(when)) for when in range(3)]
        assert PatternKind.UNEVEN_COMPONENTS in found(done + marks, today=2)
        assert PatternKind.UNEVEN_COMPONENTS not in found(done + marks[1:], today=2)
        assert PatternKind.UNEVEN_COMPONENTS not in found(done[1:] + marks, today=2)

    def test_does_not_show_at_the_beginning_of_a_course_that_is_being_worked_through(self) -> None:
        events = reports((0, 1, 60), (1, 3, 60), (2, 5, 60)) + [
            quiz(9, 10, number=100 + when, time=at(when)) for when in range(3)
        ]
        assert PatternKind.UNEVEN_COMPONENTS not in found(events, today=2 + 13)
        assert PatternKind.UNEVEN_COMPONENTS in found(events, today=2 + 14)


class TestAllKinds:
    def test_a_single_event_makes_no_pattern(self) -> None:
        assert found(works(0), today=0) == {}

    def test_the_strongest_comes_first(self) -> None:
        events = reports((0, 1, 1), (10, 1, 2), (20, 1, 3), (30, 1, 4)) + works(0, 1, 2)
        patterns = detect_patterns(past_of(events, day(60)))
        assert len(patterns) > 1
        assert all(before.strength >= after.strength for before, after in pairwise(patterns))


# --- whatever the history ---------------------------------------------------------------------------------

_ID = "iD7-"


@st.composite
def long_histories(draw: st.DrawFn) -> list[LearningEvent]:
    """Up to 40 events over 150 days in no order, with ids that no word contains."""
    names = st.sampled_from([f"{_ID}a", f"{_ID}b"])
    any_payload = payloads(names)
    total = st.integers(1, 12)
    growing = total.flatmap(
        lambda most: st.integers(0, most).map(
            lambda done: ExerciseCompletion(completed_exercises=done, total_exercises=most, exercise_id=f"{_ID}a")
        )
    )
    marks = st.sampled_from([2, 5, 9]).map(
        lambda right: QuizPerformance(correct_answers=right, total_questions=10, quiz_id=f"{_ID}q")
    )
    days = draw(st.lists(st.integers(0, 150), min_size=1, max_size=40))
    return [
        event_of(
            draw(any_payload | growing | marks),
            number=number,
            time=at(when, hours=draw(st.sampled_from([0, 9, 23.99]))),
            of=StudentKey(f"{_ID}student"),
            course_id=draw(names),
            source=f"{_ID}source",
        )
        for number, when in enumerate(days)
    ]


@given(long_histories(), st.integers(0, 60))
def test_every_pattern_is_sound(events: list[LearningEvent], later: int) -> None:
    today = max(event.event_time.date() for event in events) + timedelta(days=later)
    for pattern in detect_patterns(past_of(events, today)):
        assert 0.0 < pattern.strength <= 1.0
        assert today - timedelta(days=HISTORY_WINDOW_DAYS) < pattern.start_day <= pattern.end_day <= today
        assert pattern.evidence
        for evidence in pattern.evidence:
            assert math.isfinite(evidence.value)
            assert evidence.figure.endswith(("_score", "_share", "_count", "_days", "_per_day", "_coefficient"))
            assert list(evidence.days) == sorted(evidence.days)
            assert all(pattern.start_day <= one <= pattern.end_day for one in evidence.days)
        assert _ID not in pattern.summary
        assert "nan" not in pattern.summary


@given(long_histories(), st.data())
def test_the_order_in_which_events_are_given_does_not_matter(
    events: list[LearningEvent], data: st.DataObject
) -> None:
    today = max(event.event_time.date() for event in events)
    shuffled = data.draw(st.permutations(events))
    assert detect_patterns(past_of(events, today)) == detect_patterns(past_of(shuffled, today))


@given(long_histories(), st.data())
def test_nothing_after_today_matters(events: list[LearningEvent], data: st.DataObject) -> None:
    today = data.draw(st.sampled_from([event.event_time.date() for event in events]))
    known = [event for event in events if event.event_time.date() <= today]
    assert detect_patterns(past_of(events, today)) == detect_patterns(past_of(known, today))


@given(long_histories(), st.integers(0, 60))
def test_nothing_older_than_90_days_matters(events: list[LearningEvent], later: int) -> None:
    today = max(event.event_time.date() for event in events) + timedelta(days=later)
    past = past_of(events, today)
    first = today - timedelta(days=HISTORY_WINDOW_DAYS - 1)
    old = sum(event.event_time.date() < first for event in past.events)
    cut = Past(today, past.events[old:], past.states[old:], past.rules)
    assert detect_patterns(past) == detect_patterns(cut)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=20))
def test_the_score_does_one_thing_at_a_time(steps: list[tuple[int, int]]) -> None:
    values: dict[int, float] = {}
    when = 0
    for gap, twentieths in steps:
        when += gap
        values[when] = twentieths / 20
    shown = list(score_pattern(values).values())
    assert not any(one.overlaps(other) for one in shown for other in shown if one is not other)


# --- learners who were not made for these tests -----------------------------------------------------------

EVERY_FOURTH = 4
SHOWN_BY_REAL_LEARNERS = set(PatternKind)
SHOWN_BY_SIMULATED_LEARNERS = {
    # Simulated exercises have no deadlines, and simulated learners neither cram nor do without understanding.
    PatternKind.STEADY_IMPROVEMENT,
    PatternKind.PLATEAU,
    PatternKind.IRREGULAR_RHYTHM,
    PatternKind.RECOVERY,
    PatternKind.INACTIVITY,
}


def learners() -> tuple[list[History], set[PatternKind]]:
    """Returns real learners where they are to be had, else simulated ones, and the kinds that they can show."""
    events: dict[str, list[LearningEvent]] = defaultdict(list)
    if (path := events_file()) is not None:
        texts: dict[str, list[bytes]] = {}
        for text in read_lines(path):
            texts.setdefault(json.loads(text)["student_id"], []).append(text)
        for learner in list(texts)[::EVERY_FOURTH]:
            events[learner] = [decode_event(text) for text in texts[learner]]
        kinds = SHOWN_BY_REAL_LEARNERS
    else:
        for sent in simulate_class(seed=7, learners=60, first_day=day(), days=120):
            event = decode_event(json.dumps(sent).encode())
            events[event.student.student_id].append(event)
        kinds = SHOWN_BY_SIMULATED_LEARNERS
    return [History(of_learner, DEFAULT_RULES) for of_learner in events.values()], kinds


def test_among_learners_every_kind_occurs_and_none_is_common_to_all() -> None:
    histories, kinds = learners()
    shown: Counter[PatternKind] = Counter()
    looked_at = 0
    for history in histories:
        first, last = history.days[0], history.days[-1]
        for today in (first + (last - first) * 3 / 5, last):
            past = history.until(today)
            assert past is not None
            looked_at += 1
            shown.update(pattern.kind for pattern in detect_patterns(past))

    assert kinds <= set(shown)
    # Simulated learners nearly all improve, by and by.
    assert max(shown.values()) < looked_at * 0.9
