"""What a rebuild finds and repairs, on the repository in memory."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import StudentRewrite
from mastery_grpc.application.rebuild_students import MAX_ATTEMPTS, RebuildStudents, Rebuilt, Verdict
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.scoring import Method, ScoringRules, Weights
from mastery_grpc.domain.student import EMPTY_STATE, Mastery
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    FOR_EVER,
    STUDENT,
    all_rules,
    at,
    batches,
    day,
    exercise,
    histories,
    quiz,
    student,
)

NOW = at(50)
RETENTION = timedelta(days=90)
OTHER_METHOD = ScoringRules(quiz=Method.AVERAGE)
OTHER_WEIGHTS = ScoringRules(weights=Weights(completion=0.25, quiz=0.25, quality=0.25, consistency=0.25))


@pytest.fixture
def repository() -> MemoryStudentRepository:
    return MemoryStudentRepository(clock=lambda: NOW)


async def apply(
    repository: MemoryStudentRepository,
    *events: LearningEvent,
    rules: ScoringRules = DEFAULT_RULES,
    now: timedelta = timedelta(),
    log_retention: timedelta = FOR_EVER,
) -> None:
    applier = ApplyEvents(repository, rules=rules, log_retention=log_retention, clock=lambda: NOW + now)
    outcomes = await applier([Delivery(event) for event in events])
    assert [outcome.error for outcome in outcomes] == [None] * len(events)


async def rebuild(
    repository: MemoryStudentRepository,
    *students: StudentKey,
    apply: bool = False,
    rules: ScoringRules = DEFAULT_RULES,
    now: timedelta = timedelta(),
) -> list[Rebuilt]:
    use_case = RebuildStudents(repository, rules=rules, snapshot_retention=RETENTION, clock=lambda: NOW + now)
    return await use_case(students or [STUDENT], apply=apply)


def whats(rebuilt: Rebuilt) -> list[str]:
    return [difference.what for difference in rebuilt.differences]


async def mastery_in(repository: MemoryStudentRepository, key: StudentKey = STUDENT) -> Mastery:
    [mastery] = await repository.read_masteries([key])
    assert mastery is not None
    return mastery


def three_days() -> list[LearningEvent]:
    return [quiz(number, 4, number=number, time=at(number)) for number in (1, 2, 3)]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), history=histories(), rules=all_rules)
async def test_whatever_was_applied_in_whatever_order_is_right(
    data: st.DataObject, history: list[LearningEvent], rules: ScoringRules
) -> None:
    repository = MemoryStudentRepository(clock=lambda: NOW)
    for batch in data.draw(batches(history)):
        await apply(repository, *batch, rules=rules)

    assert await rebuild(repository, rules=rules) == [Rebuilt(STUDENT, Verdict.RIGHT)]


@settings(deadline=None, max_examples=60)
@given(history=histories(), before=all_rules, after=all_rules)
async def test_a_rebuild_by_other_rules_leaves_what_these_rules_would_have_made(
    history: list[LearningEvent], before: ScoringRules, after: ScoringRules
) -> None:
    rebuilt, expected = (MemoryStudentRepository(clock=lambda: NOW) for _ in range(2))
    await apply(rebuilt, *history, rules=before)
    await apply(expected, *history, rules=after)
    await rebuild(rebuilt, rules=after, apply=True)

    assert await mastery_in(rebuilt) == await mastery_in(expected)
    [loaded], [wanted] = await rebuilt.load({STUDENT: []}), await expected.load({STUDENT: []})
    assert loaded.state == wanted.state
    for each in {event.event_time.date() for event in history}:
        assert await rebuilt.read_snapshot(STUDENT, each) == await expected.read_snapshot(STUDENT, each)
    assert await rebuild(rebuilt, rules=after) == [Rebuilt(STUDENT, Verdict.RIGHT)]


async def test_other_weights_differ_in_every_mastery_but_not_in_the_state(
    repository: MemoryStudentRepository,
) -> None:
    await apply(repository, *three_days())
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS)

    assert found.verdict is Verdict.WRONG
    assert whats(found) == ["mastery", f"snapshot {day(1)}", f"snapshot {day(2)}", f"snapshot {day(3)}"]


async def test_another_method_differs_in_the_state_too(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())
    [found] = await rebuild(repository, rules=ScoringRules(quiz=Method.LATEST))

    assert whats(found)[:2] == ["state", "mastery"]


async def test_nothing_is_written_unless_asked(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())
    before = await mastery_in(repository)
    await rebuild(repository, rules=OTHER_WEIGHTS)

    assert await mastery_in(repository) == before
    assert (await rebuild(repository))[0].verdict is Verdict.RIGHT


async def test_a_rebuild_keeps_the_version_and_announces_the_mastery() -> None:
    announced = list[Mastery]()
    repository = MemoryStudentRepository(clock=lambda: NOW, announce=announced.append)
    await apply(repository, *three_days())
    announced.clear()
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)

    assert found.verdict is Verdict.REPAIRED
    assert announced == [await mastery_in(repository)]
    assert announced[0].version == 3


async def test_a_writer_that_loaded_before_a_rebuild_is_refused_after_it(
    repository: MemoryStudentRepository,
) -> None:
    await apply(repository, *three_days())
    rebuilt = False

    class Between(MemoryStudentRepository):
        """A worker's view of the same storage, with a rebuild between its load and its commit."""

        async def commit(self, changes):  # type: ignore[no-untyped-def]
            nonlocal rebuilt
            if not rebuilt:
                rebuilt = True
                [found] = await rebuild(repository, rules=OTHER_METHOD, apply=True)
                assert found.verdict is Verdict.REPAIRED
            return await super().commit(changes)

    worker = Between(clock=lambda: NOW)
    worker.__dict__ = repository.__dict__
    await apply(worker, quiz(4, 4, number=9, time=at(9)), rules=OTHER_METHOD)

    assert rebuilt
    assert (await rebuild(repository, rules=OTHER_METHOD))[0].verdict is Verdict.RIGHT
    assert (await mastery_in(repository)).version == 4


async def test_a_rebuild_never_overwrites_what_was_committed_meanwhile(
    repository: MemoryStudentRepository,
) -> None:
    await apply(repository, *three_days())

    class Between(MemoryStudentRepository):
        """A rebuild's view of the same storage, with a worker's commits before its first writes."""

        late: Sequence[LearningEvent] = (
            quiz(4, 4, number=9, time=at(9)),
            exercise(1, 2, number=10, time=at(2, hours=1)),
        )

        async def rewrite(self, rewrites: Sequence[StudentRewrite]) -> list[bool]:
            if self.late:
                event, *self.late = self.late
                await apply(repository, event)
            return await super().rewrite(rewrites)

    view = Between(clock=lambda: NOW)
    view.__dict__ = repository.__dict__
    [found] = await rebuild(view, rules=OTHER_WEIGHTS, apply=True)

    assert found.verdict is Verdict.REPAIRED
    assert not view.late
    assert (await mastery_in(repository)).version == 5
    assert (await rebuild(repository, rules=OTHER_WEIGHTS))[0].verdict is Verdict.RIGHT


async def test_what_changes_during_the_comparison_is_not_called_wrong(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())

    class Between(MemoryStudentRepository):
        is_changed = False

        async def load_masteries(self, wanted):  # type: ignore[no-untyped-def]
            if not self.is_changed:
                self.is_changed = True
                await apply(repository, quiz(4, 4, number=9, time=at(2, hours=1)))
            return await super().load_masteries(wanted)

    view = Between(clock=lambda: NOW)
    view.__dict__ = repository.__dict__
    assert await rebuild(view) == [Rebuilt(STUDENT, Verdict.RIGHT)]


async def test_a_student_who_never_rests_is_busy_and_left_alone(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())

    class Restless(MemoryStudentRepository):
        number = 100

        async def load_masteries(self, wanted):  # type: ignore[no-untyped-def]
            self.number += 1
            await apply(repository, quiz(1, 4, number=self.number, time=at(9, seconds=self.number)))
            return await super().load_masteries(wanted)

    view = Restless(clock=lambda: NOW)
    view.__dict__ |= repository.__dict__
    assert await rebuild(view, rules=OTHER_WEIGHTS, apply=True) == [Rebuilt(STUDENT, Verdict.BUSY)]
    assert view.number == 100 + MAX_ATTEMPTS
    assert (await rebuild(repository))[0].verdict is Verdict.RIGHT


async def test_a_log_that_holds_less_than_the_mastery_counts_replaces_nothing(
    repository: MemoryStudentRepository,
) -> None:
    await apply(repository, *three_days())
    before = await mastery_in(repository)
    del repository.logs[STUDENT][1]
    [found] = await rebuild(repository, apply=True)

    assert found == Rebuilt(STUDENT, Verdict.LOG_INCOMPLETE)
    assert await mastery_in(repository) == before


async def test_events_that_the_state_had_lost_come_back_from_the_log(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days()[:1])
    early = repository.changes[STUDENT]
    await apply(repository, *three_days()[1:])
    right = await mastery_in(repository)
    repository.changes[STUDENT] = early
    [found] = await rebuild(repository, apply=True)

    assert found.verdict is Verdict.REPAIRED
    assert await mastery_in(repository) == right


async def test_what_has_left_the_log_still_counts(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())
    await apply(
        repository,
        quiz(4, 4, number=9, time=at(9)),
        now=timedelta(days=91),
        log_retention=RETENTION,
    )
    [loaded] = await repository.load({STUDENT: []})
    assert loaded.base.event_count == 3

    assert (await rebuild(repository))[0].verdict is Verdict.RIGHT
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)
    assert whats(found) == ["mastery", f"snapshot {day(9)}"]
    assert (await mastery_in(repository)).version == 4


async def test_a_student_whose_log_has_expired_is_rescored_from_his_state(
    repository: MemoryStudentRepository,
) -> None:
    await apply(repository, *three_days())
    repository.logs[STUDENT].clear()
    right = await mastery_in(repository)

    assert (await rebuild(repository))[0].verdict is Verdict.RIGHT
    [found] = await rebuild(repository, rules=OTHER_WEIGHTS, apply=True)
    assert (found.verdict, whats(found)) == (Verdict.REPAIRED, ["mastery"])
    assert (await mastery_in(repository)).components == right.components
    await apply(repository, quiz(4, 4, number=9, time=at(9)), rules=OTHER_WEIGHTS)
    assert (await rebuild(repository, rules=OTHER_WEIGHTS))[0].verdict is Verdict.RIGHT


@pytest.mark.parametrize(("age", "verdict"), [(89, Verdict.WRONG), (90, Verdict.RIGHT)])
async def test_a_missing_snapshot_is_missed_only_within_its_lifetime(
    repository: MemoryStudentRepository, age: int, verdict: Verdict
) -> None:
    await apply(repository, *three_days())
    del repository.snapshots[STUDENT, day(2)]
    [found] = await rebuild(repository, now=timedelta(days=age))

    assert found.verdict is verdict
    assert whats(found) == ([f"snapshot {day(2)}"] if verdict is Verdict.WRONG else [])


async def test_only_the_days_that_differ_are_written(repository: MemoryStudentRepository) -> None:
    await apply(repository, *three_days())
    good = repository.snapshots[STUDENT, day(2)]
    repository.snapshots[STUDENT, day(2)] = replace(good, mastery_score=0.99)
    rewrites = list[StudentRewrite]()

    class Noting(MemoryStudentRepository):
        async def rewrite(self, given: Sequence[StudentRewrite]) -> list[bool]:
            rewrites.extend(given)
            return await super().rewrite(given)

    view = Noting(clock=lambda: NOW)
    view.__dict__ = repository.__dict__
    await rebuild(view, apply=True)

    assert [list(rewrite.snapshots) for rewrite in rewrites] == [[day(2)]]
    assert await repository.read_snapshot(STUDENT, day(2)) == good


async def test_each_student_is_answered_once_in_the_order_asked(repository: MemoryStudentRepository) -> None:
    await apply(repository, quiz(of=student("s1")), quiz(of=student("s2")))
    broken = repository.changes[student("s2")]
    repository.changes[student("s2")] = replace(broken, state=EMPTY_STATE)
    asked = [student("s2"), student("nobody"), student("s1"), student("s2"), student("s1", school_id="north")]

    assert [(each.student, each.verdict) for each in await rebuild(repository, *asked)] == [
        (student("s2"), Verdict.WRONG),
        (student("nobody"), Verdict.UNKNOWN),
        (student("s1"), Verdict.RIGHT),
        (student("s1", school_id="north"), Verdict.UNKNOWN),
    ]
