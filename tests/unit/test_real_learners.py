import json
from itertools import islice

import pytest

from mastery_grpc.application.event_json import decode_event
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.student import fold_all, mastery_of
from tests.builders import DEFAULT_RULES
from tests.real_learners import WHY_SKIPPED, events_file, read_lines
from tests.reference_fold import fold_events

EVENTS = events_file()
EVERY_TWENTIETH = 20

pytestmark = pytest.mark.skipif(EVENTS is None, reason=WHY_SKIPPED)


def decoded(texts: list[bytes]) -> list[LearningEvent]:
    return [decode_event(text) for text in texts]


@pytest.fixture(scope="module")
def histories_as_sent() -> dict[str, list[bytes]]:
    """The texts of every twentieth learner's events."""
    assert EVENTS is not None
    texts: dict[str, list[bytes]] = {}
    for text in read_lines(EVENTS):
        texts.setdefault(json.loads(text)["student_id"], []).append(text)
    return {learner: texts[learner] for learner in islice(texts, 0, None, EVERY_TWENTIETH)}


def test_the_masteries_of_real_learners_are_those_of_the_rules(
    histories_as_sent: dict[str, list[bytes]],
) -> None:
    assert histories_as_sent
    texts = [text for learner in histories_as_sent.values() for text in learner]
    expected = fold_events(map(json.loads, texts))

    assert {("", learner) for learner in histories_as_sent} == expected.keys()
    for learner, learners_texts in histories_as_sent.items():
        learners_events = decoded(learners_texts)
        reference = expected["", learner].mastery
        mastery = mastery_of(learners_events[0].student, fold_all(learners_events, DEFAULT_RULES), DEFAULT_RULES)

        assert mastery.mastery_score == pytest.approx(reference.score, abs=1e-9)
        assert mastery.level == reference.level
        assert mastery.version == reference.version == len(learners_events)
        assert mastery.update_time == reference.update_time
        for part in mastery.breakdown:
            assert part.score == pytest.approx(reference.components[part.component], abs=1e-9)
            assert part.observed is reference.observed[part.component]


def test_the_daily_masteries_of_real_learners_are_those_of_the_rules(
    histories_as_sent: dict[str, list[bytes]],
) -> None:
    for learner, texts in islice(histories_as_sent.items(), 20):
        events = decoded(texts)
        reference = fold_events(map(json.loads, texts))["", learner]
        for day, expected in reference.days.items():
            so_far = [event for event in events if event.event_time.date() <= day]
            mastery = mastery_of(events[0].student, fold_all(so_far, DEFAULT_RULES), DEFAULT_RULES)

            assert mastery.mastery_score == pytest.approx(expected.score, abs=1e-9)
            assert (mastery.level, mastery.version) == (expected.level, expected.version)
