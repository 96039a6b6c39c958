"""Learners with hidden traits, and the events that a learning platform would send about them."""

import heapq
import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, TypeAlias

LearningEventJson: TypeAlias = dict[str, Any]
"""One event in the flat shape of the topic `mastery.requests`; `timestamp` is epoch milliseconds UTC."""

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

COURSE_EXERCISES = 60  # a diligent learner is through them after six to seven weeks
QUIZ_QUESTIONS = 10
FORGETTING = 0.02  # share of what was learned that goes with a day of silence
SHORTEST_DELAY = 6 * HOUR
LONGEST_DELAY = 4 * DAY

_EPOCH = date(1970, 1, 1)
_EVENT_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "mastery-engine:simulation")
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What makes a learner, and what no platform gets to see. Shares and chances are 0..1."""

    ability: float
    """Share of questions answered right on the first day."""
    ceiling: float
    """Share of questions answered right after endless practice."""
    growth: float
    """Share of the way from skill to ceiling that one exercise covers."""
    diligence: float
    """Chance of studying on a weekday."""
    weekend: float
    """What is left of the diligence on Saturday and Sunday."""
    hour: float
    """UTC hour of the day at which a study session usually starts."""
    silence: float
    """Chance, each day, of falling silent for several days."""


def student_ids(learners: int) -> list[str]:
    """Return the ids of a class of this size, in order: `student_01`, `student_02` and so on."""
    return [f"student_{number:02d}" for number in range(1, learners + 1)]


def simulate_class(
    *,
    seed: int,
    learners: int,
    first_day: date,
    days: int,
    source: str = "simulator",
    course_id: str = "programming-1",
    school_id: str = "",
    late_share: float = 0.0,
) -> Iterator[LearningEventJson]:
    """Return the events of a class over so many days, in order of time, lazily.

    The same arguments give the same events, byte for byte. More learners or more days add events and
    leave the others as they are. `late_share` (0..1) of the events are handed out between six hours and
    four days after their time; the set of events does not change with it, only their order.
    """
    if learners < 0 or days < 0:
        raise ValueError("learners and days must not be negative")
    if not 0.0 <= late_share <= 1.0:
        raise ValueError(f"late_share must lie in 0..1, not {late_share}")
    origin = {"source": source, "course_id": course_id}
    if school_id:
        origin["school_id"] = school_id
    group = [
        _Learner(student_id, _draw_traits(seed, number), _seeded(f"{seed}/{student_id}/study"))
        for number, student_id in enumerate(student_ids(learners))
    ]
    # Another first day, course or school makes other events, so they must not share ids with these.
    event_ids = uuid.uuid5(_EVENT_IDS, f"{seed}/{first_day.isoformat()}/{course_id}/{school_id}")
    events = _in_order_of_time(group, event_ids=event_ids, origin=origin, first_day=first_day, days=days)
    if late_share == 0.0:
        return events
    return _hand_out_late(events, late_share=late_share, rng=_seeded(f"{seed}/late"))


def _seeded(name: str) -> random.Random:
    # A source of its own for each purpose: what one learner draws never shifts what another one gets.
    return random.Random(name)  # noqa: S311 - nothing here is a secret


def _draw_traits(seed: int, number: int) -> Traits:
    rng = _seeded(f"{seed}/{number}/traits")
    # Steps of the golden ratio spread any number of learners evenly over 0..1, so that a small class too
    # has its strong and its struggling ones; plain draws would often leave one end empty.
    standing = (_seeded(f"{seed}/class").random() + number * _GOLDEN_RATIO) % 1.0

    def around(mean: float, deviation: float, lowest: float, highest: float) -> float:
        return min(highest, max(lowest, rng.gauss(mean, deviation)))

    # The lowest sixth drifts away from the course; the sixth above works on and meets a wall.
    drifts = standing < 1 / 6
    return Traits(
        ability=around(0.25 + 0.30 * standing, 0.06, 0.10, 0.70),
        ceiling=around(0.64 + 0.40 * standing**0.7, 0.03, 0.50, 0.98),
        growth=around(0.045, 0.008, 0.025, 0.07),
        diligence=around(0.40 if drifts else 0.68 + 0.25 * standing, 0.05, 0.25, 0.95),
        weekend=around(0.40, 0.25, 0.0, 0.9),
        hour=around(rng.choice((9.5, 15.0, 19.5)), 1.5, 7.0, 21.0),
        silence=around(0.06 if drifts else 0.008, 0.004, 0.0, 0.08),
    )


class _Learner:
    """One learner's way through the course, a day at a time."""

    def __init__(self, student_id: str, traits: Traits, rng: random.Random) -> None:
        self.student_id = student_id
        self._traits = traits
        self._rng = rng
        self._skill = traits.ability
        self._completed = 0
        self._silent_days = 0
        self._sequence = 0

    def study(self, day: date) -> Iterator[LearningEventJson]:
        """Yield the day's events in order of time, without ids and origin; none on a day off."""
        if not self._sits_down(day):
            return
        rng = self._rng
        hour = min(21.0, max(6.0, rng.gauss(self._traits.hour, 1.0)))
        # The longest session takes less than two hours, so it ends on the day on which it starts.
        moment = (day - _EPOCH).days * DAY + int(hour * HOUR)
        form = rng.gauss(0.0, 0.04)
        # No score is given: the engine works consistency out from the active days.
        yield self._event("consistency.activity.recorded", moment)
        for _ in range(rng.choice((1, 1, 2))):
            spent = rng.randint(6 * 60, 25 * 60)
            moment += spent * SECOND + rng.randrange(MINUTE)
            yield self._do_exercises(moment, spent)
        if rng.random() < 0.45:
            spent = rng.randint(4 * 60, 15 * 60)
            moment += spent * SECOND + rng.randrange(MINUTE)
            yield self._take_quiz(moment, spent, form)
        if rng.random() < 0.25:
            moment += rng.randint(5, 20) * MINUTE + rng.randrange(MINUTE)
            yield self._have_code_reviewed(moment, form)

    def _sits_down(self, day: date) -> bool:
        rng, traits = self._rng, self._traits
        if self._silent_days == 0 and rng.random() < traits.silence:
            self._silent_days = rng.randint(4, 16)
        if self._silent_days > 0:
            self._silent_days -= 1
            self._skill -= FORGETTING * max(0.0, self._skill - traits.ability)
            return False
        weekend = day.weekday() >= 5
        return rng.random() < traits.diligence * (traits.weekend if weekend else 1.0)

    def _do_exercises(self, moment: int, spent: int) -> LearningEventJson:
        exercise = min(self._completed + 1, COURSE_EXERCISES)
        for _ in range(self._rng.choice((1, 2, 2))):
            # Exercises get harder along the course: who answers half of the questions gets stuck half-way.
            solves = 0.25 + 1.6 * self._skill - 1.15 * self._completed / COURSE_EXERCISES
            if self._completed < COURSE_EXERCISES and self._rng.random() < solves:
                self._completed += 1
            self._skill += self._traits.growth * max(0.0, self._traits.ceiling - self._skill)
        return self._event(
            "exercise.completion.submitted",
            moment,
            exercise_id=f"exercise-{exercise:02d}",
            total_exercises=COURSE_EXERCISES,
            completed_exercises=self._completed,
            time_spent=spent,
        )

    def _take_quiz(self, moment: int, spent: int, form: float) -> LearningEventJson:
        chance = self._skill + form
        correct = sum(self._rng.random() < chance for _ in range(QUIZ_QUESTIONS))
        return self._event(
            "quiz.performance.submitted",
            moment,
            quiz_id=f"quiz-{self._completed // 5 + 1:02d}",
            total_questions=QUIZ_QUESTIONS,
            correct_answers=correct,
            time_spent=spent,
            confidence_score=self._rate(chance, 0.12),
        )

    def _have_code_reviewed(self, moment: int, form: float) -> LearningEventJson:
        ratings = {
            "code_quality_score": self._rate(self._skill + form, 0.05),
            "correctness_score": self._rate(self._skill + form + 0.04, 0.05),
        }
        # Reviews differ in what they look at, as real ones do.
        if self._rng.random() < 0.6:
            ratings["efficiency_score"] = self._rate(self._skill + form - 0.03, 0.06)
        if self._rng.random() < 0.3:
            ratings["peer_review_score"] = self._rate(self._skill + form + 0.03, 0.08)
        return self._event(
            "quality.assessment.completed",
            moment,
            exercise_id=f"submission-{self._sequence:03d}",
            **ratings,
        )

    def _rate(self, mean: float, deviation: float) -> float:
        return round(min(1.0, max(0.0, self._rng.gauss(mean, deviation))), 2)

    def _event(self, event_type: str, moment: int, **fields: str | float) -> LearningEventJson:
        self._sequence += 1
        return {
            "sequence": self._sequence,
            "event_type": event_type,
            "timestamp": moment,
            "student_id": self.student_id,
            **fields,
        }


def _in_order_of_time(
    group: list[_Learner], *, event_ids: uuid.UUID, origin: dict[str, str], first_day: date, days: int
) -> Iterator[LearningEventJson]:
    for offset in range(days):
        day = first_day + timedelta(days=offset)
        events = [event for learner in group for event in learner.study(day)]
        events.sort(key=lambda event: (event["timestamp"], event["student_id"]))
        for event in events:
            sequence = event.pop("sequence")
            event_id = uuid.uuid5(event_ids, f"{event['student_id']}/{sequence}")
            yield {"event_id": str(event_id), **event, **origin}


def _hand_out_late(
    events: Iterator[LearningEventJson], *, late_share: float, rng: random.Random
) -> Iterator[LearningEventJson]:
    # The event id makes every entry different, so that the heap never compares two events.
    held_back: list[tuple[int, str, LearningEventJson]] = []
    for event in events:
        while held_back and held_back[0][0] <= event["timestamp"]:
            yield heapq.heappop(held_back)[2]
        if rng.random() < late_share:
            due = event["timestamp"] + rng.randint(SHORTEST_DELAY, LONGEST_DELAY)
            heapq.heappush(held_back, (due, event["event_id"], event))
        else:
            yield event
    while held_back:
        yield heapq.heappop(held_back)[2]
