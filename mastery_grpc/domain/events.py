"""Learning events: what a student did, when, and which observation follows from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from mastery_grpc.domain.errors import InvalidInput, Violation
from mastery_grpc.domain.scoring import Component, Components, fraction_violations

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TEXT = 255
MAX_COUNT = 2**31 - 1
MAX_TIME_SPENT = 366 * 24 * 3600
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
OUT_OF_TIME = "must be from 1970-01-01T00:00:00Z to 9999-12-31T23:59:59Z"
_is_identifier = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


@dataclass(frozen=True, slots=True)
class StudentKey:
    """One student of one school; an empty `school_id` is the default school."""

    student_id: str
    school_id: str = ""


def student_violations(student: StudentKey) -> Iterator[Violation]:
    """Yields what is wrong with the ids of a student."""
    if not _is_identifier(student.student_id):
        yield Violation("student_id", "must be 1 to 64 characters of A-Z a-z 0-9 _ -")
    if student.school_id and not _is_identifier(student.school_id):
        yield Violation("school_id", "must be 1 to 64 characters of A-Z a-z 0-9 _ -")


def _count(name: str, value: int, *, least: int = 0, most: int = MAX_COUNT) -> Iterator[Violation]:
    if not least <= value <= most:
        yield Violation(name, f"must be from {least} to {most}")


def _text(name: str, value: str) -> Iterator[Violation]:
    if len(value) > MAX_TEXT:
        yield Violation(name, f"must be at most {MAX_TEXT} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExerciseCompletion:
    """Exercises done, of those there are."""

    event_type: ClassVar[str] = "exercise.completion.submitted"

    total_exercises: int
    completed_exercises: int
    exercise_id: str = ""
    time_spent: int = 0
    """Seconds."""

    def violations(self) -> Iterator[Violation]:
        yield from _count("total_exercises", self.total_exercises, least=1)
        yield from _count("completed_exercises", self.completed_exercises)
        yield from _count("time_spent", self.time_spent, most=MAX_TIME_SPENT)
        yield from _text("exercise_id", self.exercise_id)
        if self.completed_exercises > self.total_exercises:
            yield Violation("completed_exercises", "must not exceed total_exercises")

    def observation(self) -> tuple[Component, float]:
        return Component.COMPLETION, self.completed_exercises / self.total_exercises


@dataclass(frozen=True, slots=True, kw_only=True)
class QuizPerformance:
    """Questions answered rightly, of those asked."""

    event_type: ClassVar[str] = "quiz.performance.submitted"

    total_questions: int
    correct_answers: int
    quiz_id: str = ""
    time_spent: int = 0
    """Seconds."""
    confidence_score: float | None = None
    """How sure the student felt, 0..1. Kept, not scored."""

    def violations(self) -> Iterator[Violation]:
        yield from _count("total_questions", self.total_questions, least=1)
        yield from _count("correct_answers", self.correct_answers)
        yield from _count("time_spent", self.time_spent, most=MAX_TIME_SPENT)
        yield from _text("quiz_id", self.quiz_id)
        yield from fraction_violations("confidence_score", self.confidence_score)
        if self.correct_answers > self.total_questions:
            yield Violation("correct_answers", "must not exceed total_questions")

    def observation(self) -> tuple[Component, float]:
        return Component.QUIZ, self.correct_answers / self.total_questions


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityAssessment:
    """Marks for a piece of work, each 0..1, at least one of them."""

    event_type: ClassVar[str] = "quality.assessment.completed"

    code_quality_score: float | None = None
    correctness_score: float | None = None
    efficiency_score: float | None = None
    peer_review_score: float | None = None
    exercise_id: str = ""

    def violations(self) -> Iterator[Violation]:
        if not self._given():
            yield Violation("code_quality_score", "at least one of the four scores is required")
        yield from fraction_violations("code_quality_score", self.code_quality_score)
        yield from fraction_violations("correctness_score", self.correctness_score)
        yield from fraction_violations("efficiency_score", self.efficiency_score)
        yield from fraction_violations("peer_review_score", self.peer_review_score)
        yield from _text("exercise_id", self.exercise_id)

    def observation(self) -> tuple[Component, float]:
        given = self._given()
        return Component.QUALITY, sum(given) / len(given)

    def _given(self) -> list[float]:
        marks = (
            self.code_quality_score,
            self.correctness_score,
            self.efficiency_score,
            self.peer_review_score,
        )
        return [mark for mark in marks if mark is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyActivity:
    """A day of study, with the producer's own measure of regularity if it has one."""

    event_type: ClassVar[str] = "consistency.activity.recorded"

    consistency_score: float | None = None

    def violations(self) -> Iterator[Violation]:
        yield from fraction_violations("consistency_score", self.consistency_score)

    def observation(self) -> tuple[Component, float] | None:
        return None if self.consistency_score is None else (Component.CONSISTENCY, self.consistency_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class MasteryCalculation:
    """All four components set at once, whatever the method that follows them."""

    event_type: ClassVar[str] = "mastery.calculation.requested"

    components: Components

    def violations(self) -> Iterator[Violation]:
        yield from self.components.violations("components")


Payload = ExerciseCompletion | QuizPerformance | QualityAssessment | ConsistencyActivity | MasteryCalculation

Position = tuple[datetime, str]
"""Where an event stands in its student's history: (event time, event_id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningEvent:
    """One thing that a student did.

    `event_id` is a UUID in lower case. `event_time` is an aware UTC time from 1970 on, in microseconds; its
    day is the student's active day. Raises InvalidInput when made from data that breaks a rule, so every
    event that exists is valid.
    """

    event_id: str
    student: StudentKey
    event_time: datetime
    payload: Payload
    source: str = ""
    course_id: str = ""

    def __post_init__(self) -> None:
        violations = [*self._envelope_violations(), *self.payload.violations()]
        if violations:
            raise InvalidInput(violations)

    def _envelope_violations(self) -> Iterator[Violation]:
        if not _is_uuid(self.event_id):
            yield Violation("event_id", "must be a UUID")
        yield from student_violations(self.student)
        if self.event_time.tzinfo is not UTC:
            yield Violation("event_time", "must be in UTC")
        elif not EARLIEST <= self.event_time <= LATEST:
            yield Violation("event_time", OUT_OF_TIME)
        yield from _text("source", self.source)
        yield from _text("course_id", self.course_id)

    @property
    def position(self) -> Position:
        return self.event_time, self.event_id
