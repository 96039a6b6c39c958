import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.domain.errors import EventTooOld
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.student import EMPTY_STATE, StudentState, fold_all
from mastery_grpc.domain.timeline import Timeline
from tests.builders import DEFAULT_RULES, at, day, event_id, exercise, histories, in_order, quiz


def timeline(*events: LearningEvent, base: StudentState = EMPTY_STATE) -> Timeline:
    return Timeline(base=base, events=events, rules=DEFAULT_RULES)


def folded(*events: LearningEvent) -> StudentState:
    return fold_all(events, DEFAULT_RULES)


def daily_quizzes(count: int) -> list[LearningEvent]:
    return [quiz(number % 3, 4, number=number, time=at(number)) for number in range(count)]


def test_without_events_the_state_is_the_base() -> None:
    base = folded(quiz())

    assert timeline().state == EMPTY_STATE
    assert timeline(base=base).state == base


def test_events_are_folded_upon_the_base() -> None:
    first, second = daily_quizzes(2)

    assert timeline(second, base=folded(first)).state == folded(first, second)


def test_events_may_be_given_in_any_order_and_more_than_once() -> None:
    events = daily_quizzes(4)

    assert timeline(*reversed(events), *events).state == folded(*events)


def test_a_late_event_refolds_what_follows_it() -> None:
    first, late, last = daily_quizzes(3)
    history = timeline(first, last)

    history.add(late)

    assert history.state == folded(first, late, last)
    assert history.state.quiz.value == pytest.approx(0.65 * 0.5 + 0.35 * (0.65 * 0.25 + 0.35 * 0.0))


def test_a_new_event_can_come_before_all_others() -> None:
    first, *others = daily_quizzes(4)
    history = timeline(*others)

    history.add(first)

    assert history.state == folded(first, *others)


def test_events_equal_in_time_stand_in_order_of_their_ids() -> None:
    first, second, third = (exercise(number, 10, number=number) for number in (1, 2, 3))
    history = timeline(first, third)

    history.add(second)

    assert history.state == folded(first, second, third)
    assert history.state.last_event_id == event_id(3)
    assert history.state.completion.value == 0.3


def test_a_timeline_knows_its_events() -> None:
    first, second = daily_quizzes(2)
    history = timeline(first)

    assert first.event_id in history
    assert second.event_id not in history

    history.add(second)

    assert second.event_id in history


def test_an_event_before_the_base_is_too_old() -> None:
    too_old, forgotten, kept = daily_quizzes(3)
    history = timeline(kept, base=folded(forgotten))

    with pytest.raises(EventTooOld) as refused:
        history.add(too_old)

    assert refused.value.event_id == too_old.event_id
    assert too_old.event_id not in history
    assert history.state == folded(forgotten, kept)


@pytest.mark.parametrize(("number", "is_too_old"), [(4, True), (5, True), (6, False)])
def test_the_base_ends_with_its_last_event_to_the_id(number: int, is_too_old: bool) -> None:
    history = timeline(base=folded(quiz(number=5, time=at(0))))
    event = quiz(number=number, time=at(0))

    if is_too_old:
        with pytest.raises(EventTooOld):
            history.add(event)
    else:
        history.add(event)
        assert history.state.last_event_id == event.event_id


def test_the_last_state_of_every_day_from_a_day_on() -> None:
    events = [
        quiz(1, 4, number=1, time=at(0)),
        quiz(2, 4, number=2, time=at(1, hours=0)),
        quiz(3, 4, number=3, time=at(1, hours=23.9)),
        quiz(4, 4, number=4, time=at(5)),
    ]
    history = timeline(*events)

    assert history.last_states_since(day(1)) == {day(1): folded(*events[:3]), day(5): folded(*events)}
    assert history.last_states_since(day(2)) == {day(5): folded(*events)}
    assert history.last_states_since(day(0)).keys() == {day(0), day(1), day(5)}
    assert history.last_states_since(day(6)) == {}


def test_a_beginning_of_the_history_can_be_forgotten() -> None:
    first, second, third = daily_quizzes(3)
    history = timeline(first, second, third)

    assert history.forgettable(set()) == (EMPTY_STATE, set())
    assert history.forgettable({first.event_id}) == (folded(first), {first.event_id})
    assert history.forgettable({first.event_id, second.event_id}) == (
        folded(first, second),
        {first.event_id, second.event_id},
    )
    assert history.forgettable({event.event_id for event in (first, second, third)})[0] == history.state


def test_an_expired_event_stays_as_long_as_an_older_one_is_kept() -> None:
    first, second, third = daily_quizzes(3)
    history = timeline(first, second, third)

    assert history.forgettable({second.event_id, third.event_id}) == (EMPTY_STATE, set())
    assert history.forgettable({first.event_id, third.event_id}) == (folded(first), {first.event_id})


def test_an_overdue_event_takes_what_is_older_with_it() -> None:
    first, second, third = daily_quizzes(3)
    history = timeline(first, second, third)

    assert history.forgettable({second.event_id}, {second.event_id}) == (
        folded(first, second),
        {first.event_id, second.event_id},
    )


def test_nothing_to_forget_leaves_the_base() -> None:
    first, second = daily_quizzes(2)

    assert timeline(second, base=folded(first)).forgettable(set()) == (folded(first), set())
    assert timeline(base=folded(first)).forgettable({first.event_id}) == (folded(first), set())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data(), histories())
def test_one_event_at_a_time_in_any_order_makes_the_same_history(
    data: st.DataObject, events: list[LearningEvent]
) -> None:
    history = timeline()
    for event in data.draw(st.permutations(events)):
        history.add(event)
    at_once = timeline(*events)
    first_day = min(event.event_time for event in events).date()

    assert history.state == at_once.state == folded(*events)
    assert history.last_states_since(first_day) == at_once.last_states_since(first_day)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data(), histories())
def test_what_remains_after_forgetting_amounts_to_the_same(
    data: st.DataObject, events: list[LearningEvent]
) -> None:
    history = timeline(*events)
    expired = {event.event_id for event in data.draw(st.lists(st.sampled_from(events), unique=True))}
    base, forgotten = history.forgettable(expired)
    kept = [event for event in events if event.event_id not in forgotten]

    assert forgotten <= expired
    assert not kept or in_order(kept)[0].event_id not in expired
    assert timeline(*kept, base=base).state == history.state
