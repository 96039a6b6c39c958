"""What is done with the students of a batch: the same use cases as single calls, for many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.batches.store import BatchItem, ItemForecast, ItemOutcome
from mastery_grpc.application.calculate_mastery import Calculation
from mastery_grpc.application.predict_mastery import WEEK
from mastery_grpc.application.rebuild_students import Verdict
from mastery_grpc.domain.batch import Batch, BatchOperation, item_event_id, item_event_time
from mastery_grpc.domain.errors import Contention, LogIncomplete, MasteryError, StudentNotFound
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mastery_grpc.application.calculate_mastery import CalculateMastery
    from mastery_grpc.application.ports import StudentRepository
    from mastery_grpc.application.predict_mastery import PredictMastery
    from mastery_grpc.application.rebuild_students import RebuildStudents
    from mastery_grpc.application.recommend import Recommend

PORTION = 25
"""Students taken in one go: so long a turn of the event loop may be, between those of other calls."""


class BatchOperations:
    """Does what a batch asks for with some of its items."""

    def __init__(
        self,
        *,
        calculate: CalculateMastery,
        rebuild: RebuildStudents,
        repository: StudentRepository,
        predict: PredictMastery,
        recommend: Recommend,
    ) -> None:
        self._calculate = calculate
        self._rebuild = rebuild
        self._repository = repository
        self._predict = predict
        self._recommend = recommend

    async def __call__(self, batch: Batch, items: Mapping[int, BatchItem]) -> dict[int, ItemOutcome]:
        """Returns what came of each item. Raises Unavailable; repeating is safe, and has no effect twice."""
        outcomes: dict[int, ItemOutcome] = {
            index: item.error for index, item in items.items() if item.error is not None
        }
        pending = [index for index in items if index not in outcomes]
        for portion in _portions(pending):
            students = [StudentKey(items[index].student_id, batch.key.school_id) for index in portion]
            match batch.operation:
                case BatchOperation.CALCULATE:
                    done = await self._calculated(batch, items, dict(zip(portion, students, strict=True)))
                case BatchOperation.RECALCULATE:
                    done = await self._recalculated(students)
                case BatchOperation.PREDICT:
                    done = await self._predicted(students)
                case BatchOperation.RECOMMEND:
                    done = await self._recommend.many(students)
            outcomes |= zip(portion, done, strict=True)
        return outcomes

    async def _calculated(
        self, batch: Batch, items: Mapping[int, BatchItem], students: Mapping[int, StudentKey]
    ) -> Sequence[ItemOutcome]:
        calculations = []
        for index, student in students.items():
            if (components := items[index].components) is None:
                raise ValueError("an item without components, and without an error for it")
            calculations.append(
                Calculation(
                    student=student,
                    components=components,
                    request_id=item_event_id(batch.key.batch_id, index),
                    produced_time=batch.create_time,
                    event_time=item_event_time(batch.create_time, index),
                )
            )
        return await self._calculate.many(calculations)

    async def _recalculated(self, students: Sequence[StudentKey]) -> Sequence[ItemOutcome]:
        verdicts = {each.student: each.verdict for each in await self._rebuild(students, apply=True)}
        masteries = await self._repository.read_masteries(students)
        return [
            _failure(student, verdicts[student]) or mastery or StudentNotFound(student.student_id)
            for student, mastery in zip(students, masteries, strict=True)
        ]

    async def _predicted(self, students: Sequence[StudentKey]) -> Sequence[ItemOutcome]:
        return [
            found
            if isinstance(found, MasteryError)
            else ItemForecast(
                student_id=student.student_id,
                school_id=student.school_id,
                forecast=found.outlook.ahead(WEEK),
                forecaster=found.outlook.forecaster,
                model_version=found.outlook.model_version,
                create_time=found.outlook.create_time,
                from_cache=found.from_cache,
            )
            for student, found in zip(students, await self._predict.outlooks(students), strict=True)
        ]


def _failure(student: StudentKey, verdict: Verdict) -> MasteryError | None:
    match verdict:
        case Verdict.UNKNOWN:
            return StudentNotFound(student.student_id)
        case Verdict.LOG_INCOMPLETE:
            return LogIncomplete(student.student_id)
        case Verdict.BUSY:
            return Contention("another writer kept changing the student")
        case _:
            return None


def _portions(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), PORTION):
        yield indices[start : start + PORTION]
