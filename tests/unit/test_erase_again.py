"""Erasures repeated after a restored backup: just those that the storage does not know, with their first time."""

from datetime import UTC, datetime, timedelta

import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.audit.log import AuditLog
from mastery_grpc.application.compliance.erase_student import EraseStudent
from mastery_grpc.application.compliance.erasure_mark import ErasureAnnouncement, ErasureMark, erase_millis
from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.audit_chain import AuditKeys
from mastery_grpc.domain.errors import StudentErased
from mastery_grpc.storage.memory.audit_log import MemoryAuditStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.memory.student_records import MemoryStudentRecords
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, event_id, quiz

ERASED = datetime(2026, 1, 30, tzinfo=UTC)
BEFORE, AFTER, RESTORED = (ERASED + timedelta(hours=hours) for hours in (-1, 1, 2))
FIRST, SECOND = event_id(101), event_id(102)


class Engine:
    """As it is after a restore, all in memory."""

    def __init__(self) -> None:
        self.repository = MemoryStudentRepository(clock=lambda: RESTORED)
        self.records = MemoryStudentRecords(self.repository)
        audit = AuditLog(
            MemoryAuditStore(),
            AuditKeys.derived_from(b"a key of the tests that is long enough"),
            retention=FOR_EVER,
            writers=(),
            clock=lambda: RESTORED,
            timer=lambda: 0.0,
        )
        self.erase = EraseStudent(
            self.records, self.repository, (), audit, None, mark_lifetime=FOR_EVER, clock=lambda: RESTORED
        )
        self._apply = ApplyEvents(
            self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: RESTORED
        )

    async def apply(self, number: int, produced: datetime) -> Outcome:
        [outcome] = await self._apply([Delivery(quiz(number=number), produced_time=produced)])
        return outcome

    async def mark(self) -> ErasureMark:
        [mark] = await self.records.marks_of([STUDENT])
        assert mark is not None
        return mark


def announced(receipt_id: str = FIRST, time: datetime = ERASED) -> ErasureAnnouncement:
    return ErasureAnnouncement(
        student_id=STUDENT.student_id,
        school_id=STUDENT.school_id,
        receipt_id=receipt_id,
        erase_millis=erase_millis(time),
    )


@pytest.fixture
def engine() -> Engine:
    return Engine()


async def test_who_is_back_from_a_backup_is_erased_as_of_the_first_time(engine: Engine) -> None:
    await engine.apply(1, BEFORE)

    assert await engine.erase.again(announced())

    assert await engine.records.held(STUDENT) == {}
    mark = await engine.mark()
    assert (mark.receipt_id, mark.erase_time, mark.is_finished) == (FIRST, ERASED, True)
    assert isinstance((await engine.apply(1, BEFORE)).error, StudentErased)
    assert (await engine.apply(2, AFTER)).error is None


async def test_who_came_after_the_backup_and_is_not_known_is_kept_from_coming_back(engine: Engine) -> None:
    assert await engine.erase.again(announced())
    assert isinstance((await engine.apply(1, BEFORE)).error, StudentErased)


async def test_an_erasure_that_is_known_is_not_repeated(engine: Engine) -> None:
    await engine.erase.again(announced())
    await engine.apply(2, AFTER)

    assert not await engine.erase.again(announced())

    assert await engine.records.held(STUDENT)


async def test_an_erasure_is_not_repeated_over_a_later_one(engine: Engine) -> None:
    await engine.erase.again(announced(SECOND, AFTER))
    await engine.apply(3, RESTORED)

    assert not await engine.erase.again(announced(FIRST, ERASED))

    assert (await engine.mark()).receipt_id == SECOND
    assert await engine.records.held(STUDENT)


async def test_a_repeat_that_was_cut_off_is_gone_on_with(engine: Engine) -> None:
    await engine.records.erase(
        STUDENT,
        ErasureMark(rebuilds=0, erase_millis=erase_millis(ERASED), receipt_id=FIRST, pseudonym=""),
    )
    assert await engine.erase.again(announced())
    assert (await engine.mark()).is_finished
