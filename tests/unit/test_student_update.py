from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.application.ports import LoadedStudent, ProcessingRecord
from mastery_grpc.application.student_update import AdviceTerms, Delivery, Outcome, StudentUpdate, needs_log
from mastery_grpc.domain.errors import EventTooOld
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.recommendations import Feedback, Verdict
from mastery_grpc.domain.results import RESULTS_NAMESPACE, MasteryResult, MasteryUpdated, PathRecommended, Result
from mastery_grpc.domain.student import EMPTY_STATE, StudentState, fold_all, mastery_of
from tests.builders import (
    DEFAULT_RULES,
    STUDENT,
    StoredStudent,
    at,
    batches,
    calculation,
    day,
    event_id,
    exercise,
    histories,
    logged,
    quiz,
    student,
)

RETENTION = timedelta(days=90)
ORIGIN = "mastery.requests/0/7"


def folded(*events: LearningEvent) -> StudentState:
    return fold_all(events, DEFAULT_RULES)


def needs(
    *events: LearningEvent,
    state: StudentState = EMPTY_STATE,
    known: tuple[str, ...] = (),
    log_age: timedelta | None = None,
) -> bool:
    now = at(100)
    record = ProcessingRecord(at(), "", ())
    loaded = LoadedStudent(
        student=STUDENT,
        state=state,
        log_start_time=None if log_age is None else now - log_age,
        processed=dict.fromkeys(known, record),
    )
    return needs_log(loaded, [Delivery(event) for event in events], now=now, log_retention=RETENTION)


def update_of(loaded: LoadedStudent, *, now: datetime | None = None) -> StudentUpdate:
    return StudentUpdate(loaded, None, rules=DEFAULT_RULES, now=at() if now is None else now)


def shown(outcome: Outcome) -> list[MasteryResult]:
    """Returns the results that show the mastery: all but those about the path."""
    return [result for result in outcome.results if isinstance(result, MasteryResult)]


def unadvised(outcome: Outcome) -> tuple[Result, ...]:
    """Returns the results as they are stored: without the recommendations."""
    return tuple(
        replace(result, recommendations=()) if isinstance(result, MasteryUpdated) else result
        for result in outcome.results
    )


def kinds(outcome: Outcome) -> list[str]:
    return [result.event_type.value for result in shown(outcome)]


def path_told(outcome: Outcome) -> tuple[str, ...] | None:
    told = [result.path for result in outcome.results if isinstance(result, PathRecommended)]
    assert len(told) <= 1
    return told[0] if told else None


def recommendations(outcome: Outcome) -> list[str]:
    [update] = [result for result in outcome.results if isinstance(result, MasteryUpdated)]
    return [advice.recommendation_id for advice in update.recommendations]


# --- whether the log is needed ----------------------------------------------------------------------------


def test_events_newer_than_all_others_need_no_log() -> None:
    assert not needs(quiz(number=2, time=at(1)), quiz(number=3, time=at(2)), state=folded(quiz(time=at(0))))


def test_the_first_events_of_a_student_need_no_log_in_whatever_order() -> None:
    assert not needs(quiz(number=2, time=at(1)), quiz(number=1, time=at(0)))


def test_a_late_event_needs_the_log() -> None:
    newest = quiz(number=5, time=at(1))

    assert needs(quiz(number=2, time=at(0)), state=folded(newest))
    assert needs(quiz(number=9, time=at(2)), quiz(number=2, time=at(0)), state=folded(newest))


@pytest.mark.parametrize(("number", "expected"), [(4, True), (5, True), (6, False)])
def test_an_event_equal_in_time_is_late_by_its_id(number: int, expected: bool) -> None:
    newest = quiz(number=5, time=at(1))

    assert needs(quiz(number=number, time=at(1)), state=folded(newest)) is expected


def test_an_event_known_from_its_record_needs_no_log() -> None:
    assert not needs(quiz(number=1, time=at(0)), state=folded(quiz(number=5, time=at(1))), known=(event_id(1),))


@pytest.mark.parametrize(
    ("log_age", "expected"),
    [(timedelta(days=1), False), (RETENTION, False), (RETENTION + timedelta(microseconds=1), True)],
)
def test_a_log_that_has_outlived_its_time_is_needed_so_that_it_can_be_forgotten(
    log_age: timedelta, expected: bool
) -> None:
    assert needs(quiz(number=2, time=at(2)), state=folded(quiz(time=at(0))), log_age=log_age) is expected


# --- what is written --------------------------------------------------------------------------------------


def test_a_change_holds_all_that_is_to_be_written() -> None:
    first, second = quiz(1, 2, number=1, time=at(0)), quiz(2, 2, number=2, time=at(1))
    update = update_of(LoadedStudent(student=STUDENT), now=at(3))
    outcomes = [update.apply(Delivery(first, ORIGIN)), update.apply(Delivery(second))]
    change = update.change(log_retention=RETENTION)

    assert change is not None
    assert change.student == STUDENT
    assert change.expected_version == 0
    assert change.state == folded(first, second)
    assert change.base == EMPTY_STATE
    assert change.log_start_time == at(3)
    assert change.mastery == mastery_of(STUDENT, folded(first, second), DEFAULT_RULES)
    assert change.snapshots == {
        day(0): mastery_of(STUDENT, folded(first), DEFAULT_RULES),
        day(1): mastery_of(STUDENT, folded(first, second), DEFAULT_RULES),
    }
    assert [(applied.event, applied.record) for applied in change.applied] == [
        (first, ProcessingRecord(at(3), ORIGIN, unadvised(outcomes[0]))),
        (second, ProcessingRecord(at(3), "", unadvised(outcomes[1]))),
    ]
    assert not change.forgotten


def test_a_change_expects_the_version_that_it_was_computed_from() -> None:
    first, second, third = (quiz(number=number, time=at(number)) for number in range(3))
    loaded = LoadedStudent(student=STUDENT, state=folded(first, second), log_start_time=at(1))
    update = update_of(loaded, now=at(3))
    update.apply(Delivery(third))
    change = update.change(log_retention=RETENTION)

    assert change is not None
    assert change.expected_version == 2
    assert change.mastery.version == 3
    assert change.snapshots.keys() == {day(2)}
    assert change.log_start_time == at(1)


def test_without_new_events_there_is_nothing_to_write() -> None:
    stored = StoredStudent()
    stored.deliver(quiz())
    update = update_of(stored.loaded([Delivery(quiz())]))
    update.apply(Delivery(quiz()))

    assert update.change(log_retention=RETENTION) is None
    assert update_of(LoadedStudent(student=STUDENT)).change(log_retention=RETENTION) is None


# --- late events ------------------------------------------------------------------------------------------


def test_a_late_event_refolds_the_later_days() -> None:
    days = [quiz(number, 4, number=number, time=at(number)) for number in range(4)]
    stored = StoredStudent()
    stored.deliver(days[0], days[1], days[3])
    before = dict(stored.snapshots)
    (outcome,) = stored.deliver(days[2])

    assert stored.state == folded(*days)
    assert outcome.mastery == stored.mastery == mastery_of(STUDENT, folded(*days), DEFAULT_RULES)
    assert stored.snapshots[day(2)] == mastery_of(STUDENT, folded(*days[:3]), DEFAULT_RULES)
    assert stored.snapshots[day(3)] == stored.mastery
    assert stored.snapshots[day(3)] != before[day(3)]
    assert (stored.snapshots[day(0)], stored.snapshots[day(1)]) == (before[day(0)], before[day(1)])


def test_a_late_event_within_a_day_leaves_the_day_its_last_state() -> None:
    early, late = (
        exercise(1, 4, number=1, time=at(0, hours=8)),
        exercise(4, 4, number=2, time=at(0, hours=20)),
    )
    stored = StoredStudent()
    stored.deliver(late)
    stored.deliver(early)

    assert stored.mastery is not None
    assert stored.snapshots == {day(0): stored.mastery}
    assert stored.mastery.components.completion == 1.0
    assert stored.mastery.version == 2


def test_a_late_event_only_rewrites_days_from_its_own_on() -> None:
    first, late, last = (quiz(number=number, time=at(number)) for number in range(3))
    stored = StoredStudent()
    stored.deliver(first, last)
    loaded = stored.loaded([Delivery(late)])
    update = StudentUpdate(loaded, stored.log, rules=DEFAULT_RULES, now=at(3))
    update.apply(Delivery(late))
    change = update.change(log_retention=RETENTION)

    assert change is not None
    assert change.snapshots.keys() == {day(1), day(2)}


def test_events_equal_in_time_are_applied_in_order_of_their_ids_in_whatever_order_they_arrive() -> None:
    first, second = exercise(1, 4, number=1), exercise(4, 4, number=2)
    for arrival in ([first, second], [second, first]):
        at_once, one_by_one = StoredStudent(), StoredStudent()
        at_once.deliver(*arrival)
        for event in arrival:
            one_by_one.deliver(event)

        assert at_once.state == one_by_one.state == folded(first, second)
        assert at_once.state.completion.value == 1.0


# --- duplicates -------------------------------------------------------------------------------------------


def test_an_event_repeated_within_a_batch_is_applied_once() -> None:
    stored = StoredStudent()
    applied, repeated = stored.deliver(Delivery(quiz(), "t/0/1"), Delivery(quiz(), "t/0/2"))

    assert not applied.duplicate
    assert repeated == Outcome(mastery=applied.mastery, duplicate=True)
    assert stored.state.event_count == 1
    assert len(stored.log) == 1
    assert stored.records[event_id(1)].origin == "t/0/1"


def test_the_same_record_again_yields_the_stored_results() -> None:
    stored = StoredStudent()
    (applied,) = stored.deliver(Delivery(quiz(), ORIGIN))
    stored.deliver(quiz(0, 1, number=2, time=at(1)))
    (again,) = stored.deliver(Delivery(quiz(), ORIGIN))

    assert applied.results
    assert again == Outcome(mastery=applied.mastery, duplicate=True, results=applied.results)
    assert stored.state.event_count == 2


@pytest.mark.parametrize(
    ("first_origin", "second_origin"),
    [(ORIGIN, "mastery.requests/0/8"), (ORIGIN, ""), ("", ORIGIN), ("", "")],
)
def test_the_same_event_from_elsewhere_yields_no_results(first_origin: str, second_origin: str) -> None:
    stored = StoredStudent()
    (applied,) = stored.deliver(Delivery(quiz(), first_origin))
    (again,) = stored.deliver(Delivery(quiz(), second_origin))

    assert again == Outcome(mastery=applied.mastery, duplicate=True)
    assert stored.state.event_count == 1


def test_a_duplicate_is_known_from_the_log_when_its_record_has_expired() -> None:
    stored = StoredStudent()
    stored.deliver(quiz(1, 2, number=1, time=at(0)), quiz(2, 2, number=2, time=at(1)))
    stored.records.clear()
    before = stored.state
    outcomes = stored.deliver(
        Delivery(quiz(1, 2, number=1, time=at(0))), Delivery(quiz(2, 2, number=2, time=at(1)), ORIGIN)
    )

    assert outcomes == [Outcome(duplicate=True), Outcome(duplicate=True)]
    assert stored.state == before
    assert len(stored.log) == 2


def test_a_duplicate_among_new_events_does_not_hold_them_up() -> None:
    first, second, third = (quiz(number=number, time=at(number)) for number in range(3))
    stored = StoredStudent()
    stored.deliver(first, third)
    stored.records.clear()
    outcomes = stored.deliver(first, second, second)

    assert [outcome.duplicate for outcome in outcomes] == [True, False, True]
    assert stored.state == folded(first, second, third)


# --- forgetting -------------------------------------------------------------------------------------------


def test_entries_past_retention_are_forgotten_and_the_state_stays_right() -> None:
    events = [quiz(number, 4, number=number, time=at(number)) for number in range(4)]
    stored = StoredStudent()
    for number in range(3):
        stored.deliver(events[number], now=at(number), retention=RETENTION)
    # The first two entries are past retention, the third is as old as it may be.
    stored.deliver(events[3], now=at(2) + RETENTION, retention=RETENTION)

    assert [entry.event for entry in stored.log] == events[2:]
    assert stored.base == folded(*events[:2])
    assert stored.state == folded(*events)
    assert stored.log_start_time == at(2)


def test_a_late_event_still_finds_its_place_after_others_were_forgotten() -> None:
    first, second, late, last = (quiz(number, 4, number=number, time=at(number)) for number in range(4))
    stored = StoredStudent()
    stored.deliver(first, second, now=at(0), retention=RETENTION)
    stored.deliver(last, now=at(3) + RETENTION, retention=RETENTION)
    stored.deliver(late, now=at(4) + RETENTION, retention=RETENTION)

    assert [entry.event for entry in stored.log] == [last, late]
    assert stored.base == folded(first, second)
    assert stored.state == folded(first, second, late, last)
    assert stored.snapshots[day(2)].version == 3
    assert stored.snapshots[day(3)].version == 4


def test_an_event_whose_place_is_forgotten_is_too_old() -> None:
    too_old, first, last = (quiz(number, 4, number=number, time=at(number)) for number in range(3))
    stored = StoredStudent()
    stored.deliver(first, now=at(0), retention=RETENTION)
    stored.deliver(last, now=at(1) + RETENTION, retention=RETENTION)
    stored.records.clear()
    outcomes = stored.deliver(too_old, first, now=at(1) + RETENTION, retention=RETENTION)

    for outcome, event in zip(outcomes, (too_old, first), strict=True):
        assert isinstance(outcome.error, EventTooOld)
        assert outcome.error.event_id == event.event_id
        assert outcome == Outcome(error=outcome.error)
    assert stored.state == folded(first, last)
    assert len(stored.log) == 1


def test_a_log_that_has_expired_altogether_leaves_the_state_as_the_base() -> None:
    too_old, newest, next_one = (quiz(number, 4, number=number, time=at(number)) for number in range(3))
    stored = StoredStudent()
    stored.deliver(newest, now=at(0), retention=RETENTION)
    stored.log.clear()
    stored.records.clear()
    refused, applied = stored.deliver(too_old, next_one, now=at(1) + RETENTION, retention=RETENTION)

    assert isinstance(refused.error, EventTooOld)
    assert applied.mastery == mastery_of(STUDENT, folded(newest, next_one), DEFAULT_RULES)
    assert stored.state == folded(newest, next_one)
    assert stored.base == folded(newest)
    assert stored.log_start_time == at(1) + RETENTION
    assert too_old.event_id not in stored.records


def test_an_event_that_is_too_old_leaves_no_trace() -> None:
    too_old, newest = quiz(number=1, time=at(0)), quiz(number=2, time=at(1))
    loaded = LoadedStudent(student=STUDENT, state=folded(newest), log_start_time=at(0))
    update = StudentUpdate(loaded, [], rules=DEFAULT_RULES, now=at(100))

    assert isinstance(update.apply(Delivery(too_old)).error, EventTooOld)
    assert update.change(log_retention=RETENTION) is None


def test_a_new_event_written_late_keeps_the_newer_entries_that_have_expired() -> None:
    # Written last, but first in time: what follows it in time is needed to refold, however old it is.
    first, second = quiz(1, 4, number=1, time=at(0)), quiz(2, 4, number=2, time=at(1))
    stored = StoredStudent()
    stored.deliver(second, now=at(0), retention=RETENTION)
    stored.deliver(first, now=at(1) + RETENTION, retention=RETENTION)

    assert stored.base == EMPTY_STATE
    assert {entry.event for entry in stored.log} == {first, second}
    assert stored.log_start_time == at(0)
    assert stored.state == folded(first, second)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data(), histories(), st.integers(1, 3))
def test_forgetting_never_changes_what_was_applied(
    data: st.DataObject, events: list[LearningEvent], batches_kept: int
) -> None:
    """A batch a day, and a log that keeps a few days: what was taken in stands, the rest was refused."""
    stored = StoredStudent()
    applied: dict[str, LearningEvent] = {}
    for number, batch in enumerate(data.draw(batches(events))):
        for event, outcome in zip(
            batch,
            stored.deliver(*batch, now=at(number), retention=timedelta(days=batches_kept - 0.5)),
            strict=True,
        ):
            if outcome.error is None:
                applied[event.event_id] = event
            else:
                assert event.position <= stored.base.position

    assert stored.state == folded(*applied.values())
    remaining = [entry.event for entry in stored.log]
    assert stored.base.event_count + len(remaining) == len(applied)
    assert all(event.position > stored.base.position for event in remaining)
    assert stored.log_start_time == min(entry.written_time for entry in stored.log)


# --- results ----------------------------------------------------------------------------------------------


def test_every_applied_event_results_in_an_update() -> None:
    event = quiz(8, 10, number=1, time=at(0), of=student("s1", school_id="north"))
    stored = StoredStudent(key=event.student)
    (outcome,) = stored.deliver(event)
    update = shown(outcome)[0]

    assert update.event_type == "mastery.updated"
    assert (update.student_id, update.school_id) == ("s1", "north")
    assert update.cause_event_id == event.event_id
    assert update.timestamp == int(event.event_time.timestamp()) * 1000
    assert update.mastery == stored.mastery
    assert update.source == "mastery-engine"


def test_the_threshold_is_reached_only_when_the_level_changes() -> None:
    stored = StoredStudent()
    outcomes = [
        stored.deliver(calculation(value, number=number, time=at(number)))[0]
        for number, value in enumerate([0.2, 0.3, 0.4, 0.59, 0.9, 0.95, 0.1])
    ]

    assert [(kinds(outcome), shown(outcome)[0].previous_level) for outcome in outcomes] == [
        (["mastery.updated"], "beginner"),
        (["mastery.updated"], "beginner"),
        (["mastery.updated", "mastery.threshold.reached"], "beginner"),
        (["mastery.updated"], "developing"),
        (["mastery.updated", "mastery.threshold.reached"], "developing"),
        (["mastery.updated"], "expert"),
        (["mastery.updated", "mastery.threshold.reached"], "expert"),
    ]


def test_levels_change_from_one_event_to_the_next_within_a_batch() -> None:
    stored = StoredStudent()
    outcomes = stored.deliver(
        *[calculation(value, number=number, time=at(number)) for number, value in enumerate([0.2, 0.9, 0.9])]
    )

    assert [len(shown(outcome)) for outcome in outcomes] == [1, 2, 1]
    assert [shown(outcome)[-1].previous_level for outcome in outcomes] == ["beginner", "beginner", "expert"]
    assert [shown(outcome)[-1].previous_score for outcome in outcomes] == [None, 0.2, 0.9]


def test_a_first_event_that_leads_beyond_the_lowest_level_reaches_a_threshold() -> None:
    (outcome,) = StoredStudent().deliver(calculation(0.4))

    assert kinds(outcome) == ["mastery.updated", "mastery.threshold.reached"]
    assert [result.previous_level for result in shown(outcome)] == ["beginner", "beginner"]
    assert [result.previous_score for result in shown(outcome)] == [None, None]


def test_a_late_event_that_changes_nothing_at_the_end_reaches_no_threshold() -> None:
    stored = StoredStudent()
    stored.deliver(calculation(0.9, number=2, time=at(1)))
    (outcome,) = stored.deliver(calculation(0.1, number=1, time=at(0)))

    assert kinds(outcome) == ["mastery.updated"]
    assert shown(outcome)[0].mastery == stored.mastery
    assert stored.snapshots[day(0)].level == "beginner"


def test_result_ids_follow_from_the_cause_alone() -> None:
    event = calculation(0.9, number=7)
    others = [quiz(number=1, time=at(0)), quiz(number=2, time=at(-3))]
    (alone,) = StoredStudent().deliver(Delivery(event, ORIGIN), now=at(0))
    among_others = StoredStudent().deliver(*others, Delivery(event, "t/1/1"), now=at(5))[-1]

    assert alone.results[0].event_id == among_others.results[0].event_id
    assert [result.event_id for result in alone.results] == [
        str(uuid5(RESULTS_NAMESPACE, f"/{event.event_id}/{kind}"))
        for kind in ("mastery.updated", "mastery.threshold.reached")
    ]


def test_result_ids_are_fixed_for_ever() -> None:
    assert UUID("7d1c8f6e-3b0a-5c1e-9a55-1f0f5d0c2b11") == RESULTS_NAMESPACE

    (outcome,) = StoredStudent().deliver(quiz(number=1))

    assert outcome.results[0].event_id == "19e664bf-d5a2-5dc8-8605-887abbfbb124"


def test_different_causes_have_different_result_ids() -> None:
    def ids(number: int, key: StudentKey = STUDENT) -> set[str]:
        (outcome,) = StoredStudent(key=key).deliver(calculation(0.9, number=number, of=key))
        return {result.event_id for result in outcome.results}

    assert len(ids(1) | ids(2) | ids(1, student(school_id="north"))) == 6


def test_an_update_carries_what_to_do_next_and_the_stored_record_does_not() -> None:
    stored = StoredStudent()
    (outcome,) = stored.deliver(Delivery(calculation(0.3, number=1), ORIGIN))
    (again,) = stored.deliver(Delivery(calculation(0.3, number=1), ORIGIN))

    assert "review-quiz" in recommendations(outcome)
    assert again.results == outcome.results
    for record in stored.records.values():
        assert [result.recommendations for result in record.results if isinstance(result, MasteryUpdated)] == [()]


def test_nothing_is_recommended_to_whom_nothing_lacks() -> None:
    (outcome,) = StoredStudent().deliver(calculation(0.9))

    assert recommendations(outcome) == []
    assert path_told(outcome) is None


def test_dismissed_advice_is_not_published() -> None:
    dismissed = Feedback(
        recommendation_id="review-quiz", verdict=Verdict.DISMISSED, create_time=at(0), component_score=0.3
    )
    (outcome,) = StoredStudent().deliver(
        calculation(0.3, time=at(1)), now=at(1), advice=AdviceTerms(feedback=(dismissed,))
    )

    assert "review-quiz" not in recommendations(outcome)
    assert "practice-quiz" in recommendations(outcome)


def test_the_path_is_told_when_its_steps_change_and_only_then() -> None:
    stored = StoredStudent()
    first, same, shorter, done = (
        stored.deliver(event)[0]
        for event in (
            calculation(0.30, number=1, time=at(0)),
            calculation(0.31, number=2, time=at(1)),
            exercise(1, 1, number=3, time=at(2)),
            calculation(0.9, number=4, time=at(3)),
        )
    )

    whole = path_told(first)
    assert whole
    assert path_told(same) is None
    assert path_told(shorter) == tuple(step for step in whole if step != "Do the open exercises")
    assert path_told(done) == ()


def test_a_log_may_be_given_in_order_of_writing() -> None:
    events = [quiz(number, 4, number=number, time=at(number)) for number in range(3)]
    log = [logged(event) for event in (events[2], events[0])]
    loaded = LoadedStudent(student=STUDENT, state=folded(events[0], events[2]), log_start_time=at())
    update = StudentUpdate(loaded, log, rules=DEFAULT_RULES, now=at(3))

    assert update.apply(Delivery(events[1])).mastery == mastery_of(STUDENT, folded(*events), DEFAULT_RULES)
