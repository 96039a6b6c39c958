"""Short ways to make what the tests are about; every argument has a default that does not matter."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from mastery_grpc.application.event_json import encode_event
from mastery_grpc.application.ports import LoadedStudent, LoggedEvent, ProcessingRecord
from mastery_grpc.application.student_update import (
    NO_FEEDBACK,
    AdviceTerms,
    Delivery,
    Outcome,
    StudentUpdate,
    needs_log,
)
from mastery_grpc.domain.events import (
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    Payload,
    QualityAssessment,
    QuizPerformance,
    StudentKey,
)
from mastery_grpc.domain.scoring import Components, Method, ScoringRules, Weights
from mastery_grpc.domain.student import EMPTY_STATE, Mastery, StudentState

MIDNIGHT = datetime(2026, 1, 12, tzinfo=UTC)
STUDENT = StudentKey("student_12345")
DEFAULT_RULES = ScoringRules()
FOR_EVER = timedelta(days=36500)


def at(days: int = 0, *, hours: float = 9, seconds: float = 0) -> datetime:
    """Returns a time, by default at nine o'clock, so many days after the first day of the tests."""
    return MIDNIGHT + timedelta(days=days, hours=hours, seconds=seconds)


def day(days: int = 0) -> date:
    return at(days).date()


def event_id(number: int) -> str:
    """Returns a UUID; the ids of greater numbers sort later."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def student(student_id: str = STUDENT.student_id, *, school_id: str = "") -> StudentKey:
    return StudentKey(student_id, school_id)


def event_of(
    payload: Payload,
    *,
    number: int = 1,
    time: datetime | None = None,
    of: StudentKey = STUDENT,
    source: str = "",
    course_id: str = "",
) -> LearningEvent:
    return LearningEvent(
        event_id=event_id(number),
        student=of,
        event_time=at() if time is None else time,
        payload=payload,
        source=source,
        course_id=course_id,
    )


def exercise(
    completed: int = 1,
    total: int = 1,
    *,
    number: int = 1,
    time: datetime | None = None,
    of: StudentKey = STUDENT,
) -> LearningEvent:
    payload = ExerciseCompletion(total_exercises=total, completed_exercises=completed)
    return event_of(payload, number=number, time=time, of=of)


def quiz(
    correct: int = 1,
    total: int = 1,
    *,
    number: int = 1,
    time: datetime | None = None,
    of: StudentKey = STUDENT,
) -> LearningEvent:
    payload = QuizPerformance(total_questions=total, correct_answers=correct)
    return event_of(payload, number=number, time=time, of=of)


def quality(
    mark: float = 1.0, *, number: int = 1, time: datetime | None = None, of: StudentKey = STUDENT
) -> LearningEvent:
    return event_of(QualityAssessment(correctness_score=mark), number=number, time=time, of=of)


def activity(
    score: float | None = None, *, number: int = 1, time: datetime | None = None, of: StudentKey = STUDENT
) -> LearningEvent:
    return event_of(ConsistencyActivity(consistency_score=score), number=number, time=time, of=of)


def components(value: float = 0.0, **given: float) -> Components:
    """Returns components that are all `value`, except those given by name."""
    return Components(**{"completion": value, "quiz": value, "quality": value, "consistency": value} | given)


def calculation(
    value: float = 0.0,
    *,
    number: int = 1,
    time: datetime | None = None,
    of: StudentKey = STUDENT,
    **given: float,
) -> LearningEvent:
    return event_of(MasteryCalculation(components=components(value, **given)), number=number, time=time, of=of)


def flat(event: LearningEvent) -> dict[str, Any]:
    """Returns an event in the shape in which producers send it."""
    decoded: dict[str, Any] = json.loads(encode_event(event))
    return decoded


def logged(event: LearningEvent, *, written: datetime | None = None) -> LoggedEvent:
    return LoggedEvent(f"entry-{event.event_id}", at() if written is None else written, event)


class StoredStudent:
    """One student as a repository keeps him, in memory: what one update leaves, the next one loads."""

    def __init__(self, *, key: StudentKey = STUDENT, rules: ScoringRules = DEFAULT_RULES) -> None:
        self.key = key
        self.rules = rules
        self.state: StudentState = EMPTY_STATE
        self.base: StudentState = EMPTY_STATE
        self.log: list[LoggedEvent] = []
        self.log_start_time: datetime | None = None
        self.records: dict[str, ProcessingRecord] = {}
        self.snapshots: dict[date, Mastery] = {}
        self.mastery: Mastery | None = None

    def deliver(
        self,
        *deliveries: Delivery | LearningEvent,
        now: datetime | None = None,
        retention: timedelta = FOR_EVER,
        advice: AdviceTerms = NO_FEEDBACK,
    ) -> list[Outcome]:
        """Takes in one batch, the way the use case does, and returns what became of each delivery."""
        now = at() if now is None else now
        batch = [Delivery(given) if isinstance(given, LearningEvent) else given for given in deliveries]
        loaded = self.loaded(batch)
        log = list(self.log) if needs_log(loaded, batch, now=now, log_retention=retention) else None
        update = StudentUpdate(loaded, log, rules=self.rules, advice=advice, now=now)
        outcomes = [update.apply(delivery) for delivery in batch]
        change = update.change(log_retention=retention)
        if change is None:
            return outcomes
        assert change.student == self.key
        assert change.expected_version == self.state.event_count
        self.state, self.base, self.mastery = change.state, change.base, change.mastery
        self.log_start_time = change.log_start_time
        self.snapshots.update(change.snapshots)
        self.records.update({applied.event.event_id: applied.record for applied in change.applied})
        self.log = [entry for entry in self.log if entry.entry_id not in change.forgotten]
        self.log += [logged(applied.event, written=now) for applied in change.applied]
        return outcomes

    def loaded(self, batch: Sequence[Delivery]) -> LoadedStudent:
        wanted = {delivery.event.event_id for delivery in batch}
        return LoadedStudent(
            student=self.key,
            state=self.state,
            base=self.base,
            log_start_time=self.log_start_time,
            processed={known: record for known, record in self.records.items() if known in wanted},
        )


# --- strategies -------------------------------------------------------------------------------------------

fractions = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
identifiers = st.text(alphabet="azAZ09_-", min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=255)
_counts = st.integers(0, 20)
_no_name = st.just("")


@st.composite
def _parts_of_a_whole(draw: st.DrawFn) -> tuple[int, int]:
    whole = draw(st.integers(1, 20))
    return draw(st.integers(0, whole)), whole


@st.composite
def _quality_assessments(draw: st.DrawFn, names: st.SearchStrategy[str]) -> QualityAssessment:
    marks: list[float | None] = draw(st.lists(st.none() | fractions, min_size=4, max_size=4))
    if marks == [None] * 4:
        marks[draw(st.integers(0, 3))] = draw(fractions)
    return QualityAssessment(
        code_quality_score=marks[0],
        correctness_score=marks[1],
        efficiency_score=marks[2],
        peer_review_score=marks[3],
        exercise_id=draw(names),
    )


def payloads(names: st.SearchStrategy[str] = _no_name) -> st.SearchStrategy[Payload]:
    """Returns valid payloads of all five types, with `names` as the ids of exercises and quizzes."""
    return st.one_of(
        st.builds(
            lambda parts, name, seconds: ExerciseCompletion(
                completed_exercises=parts[0], total_exercises=parts[1], exercise_id=name, time_spent=seconds
            ),
            _parts_of_a_whole(),
            names,
            _counts,
        ),
        st.builds(
            lambda parts, name, seconds, confidence: QuizPerformance(
                correct_answers=parts[0],
                total_questions=parts[1],
                quiz_id=name,
                time_spent=seconds,
                confidence_score=confidence,
            ),
            _parts_of_a_whole(),
            names,
            _counts,
            st.none() | fractions,
        ),
        _quality_assessments(names),
        st.builds(ConsistencyActivity, consistency_score=st.none() | fractions),
        st.builds(
            MasteryCalculation,
            components=st.builds(
                Components, completion=fractions, quiz=fractions, quality=fractions, consistency=fractions
            ),
        ),
    )


@st.composite
def histories(draw: st.DrawFn, *, max_size: int = 12) -> list[LearningEvent]:
    """Returns distinct events of one student in no order: few moments, so that many are equal in time."""
    moments = draw(
        st.lists(st.builds(at, st.integers(0, 40), hours=st.sampled_from([0, 12, 23.999])), min_size=1, max_size=6)
    )
    numbers = draw(st.lists(st.integers(0, 999), unique=True, min_size=1, max_size=max_size))
    return [event_of(draw(payloads()), number=number, time=draw(st.sampled_from(moments))) for number in numbers]


@st.composite
def arrivals(draw: st.DrawFn, events: Sequence[LearningEvent]) -> list[LearningEvent]:
    """Returns the events in any order, some of them more than once."""
    repeated = draw(st.lists(st.sampled_from(events), max_size=5))
    return draw(st.permutations([*events, *repeated]))


@st.composite
def batches(draw: st.DrawFn, events: Sequence[LearningEvent]) -> list[list[LearningEvent]]:
    """Returns any arrival of the events, cut into batches anywhere."""
    arrival = draw(arrivals(events))
    ends = sorted(draw(st.sets(st.integers(1, len(arrival)), max_size=4)) | {len(arrival)})
    return [arrival[start:end] for start, end in zip([0, *ends], ends, strict=False)]


all_weights = st.sampled_from(
    [
        Weights(),
        Weights(completion=0.25, quiz=0.25, quality=0.25, consistency=0.25),
        Weights(completion=0.1, quiz=0.2, quality=0.3, consistency=0.4),
        Weights(completion=0.0, quiz=0.0, quality=1.0, consistency=0.0),
    ]
)

all_rules = st.builds(
    ScoringRules,
    weights=all_weights,
    completion=st.sampled_from(Method),
    quiz=st.sampled_from(Method),
    quality=st.sampled_from(Method),
    decay_weight=st.integers(1, 100).map(lambda hundredths: hundredths / 100),
    n_mastery_count=st.integers(1, 4),
    n_mastery_score=fractions,
    consistency_window_days=st.integers(1, 30),
)


def in_order(events: Iterable[LearningEvent]) -> list[LearningEvent]:
    return sorted(events, key=lambda event: (event.event_time, event.event_id))
