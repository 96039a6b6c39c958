"""What calls leave in the audit log: which entries, whose, in which log, and what outages do to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from mastery_grpc.application.audit.log import MOST_WAITING, AuditedCall, AuditLog
from mastery_grpc.application.audit.reader import AuditFilter, AuditPage
from mastery_grpc.application.audit.store import Appended, SealedEntries
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.domain.audit_chain import AuditEntry, AuditKeys, FaultKind
from mastery_grpc.domain.errors import InvalidPageToken, StorageUnavailable
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage.memory.audit_log import MemoryAuditStore
from tests.builders import at, student

KEYS = AuditKeys.derived_from(b"a secret of the tests, long enough")
GET = "mastery.v1.MasteryService/GetMastery"
INGEST = "mastery.v1.MasteryService/IngestEvents"
OK, NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 0, 5, 7, 8
S1, S2 = student("s1"), student("s2")
TEACHER = Caller("jane", Role.TEACHER)
SERVICE = Caller("lms", Role.SERVICE)


class WeatheredStore(MemoryAuditStore):
    """A store that may be away, or take a write and be gone before it has said so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.loses_the_next_answer = False
        self.appends = 0

    async def append(self, school_id: str, sealed: SealedEntries) -> Appended:
        self.appends += 1
        if self.is_away:
            raise StorageUnavailable("away")
        await asyncio.sleep(0)
        appended = await super().append(school_id, sealed)
        if self.loses_the_next_answer:
            self.loses_the_next_answer = False
            raise StorageUnavailable("gone")
        return appended


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> WeatheredStore:
    store = WeatheredStore()
    store.known |= {S1, S2}
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(store: WeatheredStore, clock: Clock) -> AuditLog:
    return a_log(store, clock)


def a_log(store: MemoryAuditStore, timer: Clock, *, keys: AuditKeys = KEYS) -> AuditLog:
    return AuditLog(
        store, keys, retention=timedelta(days=365), writers=[INGEST], clock=lambda: at(days=0), timer=timer
    )


def a_call(*students: StudentKey, **given: Any) -> AuditedCall:
    defaults: dict[str, Any] = {
        "time": at(),
        "caller": TEACHER,
        "school_id": "",
        "method": GET,
        "students": students,
        "code": OK,
        "request_id": "a-request",
    }
    return AuditedCall(**defaults | given)


async def written(log: AuditLog, *calls: AuditedCall, school_id: str = "") -> list[AuditEntry]:
    """Records calls and returns all entries of the log, oldest first."""
    for call in calls:
        log.record(call)
    await log.flush()
    return list(reversed((await log.entries(AuditFilter(school_id=school_id, page_size=1000))).entries))


# --- which entries ----------------------------------------------------------------------------------------


async def test_an_entry_tells_who_did_what_when_to_whom_and_how_it_ended(log: AuditLog) -> None:
    call = a_call(S1, time=at(seconds=1.000001), code=NOT_FOUND)
    [entry] = await written(log, call)
    pseudonym = await log.pseudonym_of(S1)
    assert pseudonym is not None
    assert entry == AuditEntry(
        sequence=1,
        create_time=at(seconds=1.000001),
        caller="jane",
        role="teacher",
        school_id="",
        method=GET,
        student_hash=pseudonym.hex(),
        code=NOT_FOUND,
        request_id="a-request",
        mac=entry.mac,
    )


async def test_a_call_about_many_makes_an_entry_for_each(log: AuditLog, store: WeatheredStore) -> None:
    many = [student(f"s{number}") for number in range(1000)]
    store.known |= set(many)
    entries = await written(log, a_call(*many))
    assert [entry.sequence for entry in entries] == list(range(1, 1001))
    assert len({entry.student_hash for entry in entries}) == 1000


async def test_those_of_whom_nothing_is_held_are_one_entry_between_them(
    log: AuditLog, store: WeatheredStore
) -> None:
    entries = await written(log, a_call(S1, student("nobody"), student("nobody-2")))
    assert [bool(entry.student_hash) for entry in entries] == [True, False]
    assert set(store.own_salts) == {S1}


async def test_who_is_first_told_of_by_a_call_that_writes_has_his_entry(
    log: AuditLog, store: WeatheredStore
) -> None:
    new, refused = student("new"), student("refused")
    entries = await written(
        log, a_call(new, method=INGEST), a_call(refused, method=INGEST, code=PERMISSION_DENIED)
    )
    assert [bool(entry.student_hash) for entry in entries] == [True, False]
    assert set(store.own_salts) == {new}


@pytest.mark.parametrize(
    ("method", "code", "count"),
    [
        ("mastery.v1.RecommendationService/GetRecommendationConfig", OK, 0),
        ("mastery.v1.RecommendationService/GetRecommendationConfig", PERMISSION_DENIED, 1),
        ("mastery.v1.ComplianceService/VerifyAuditLog", OK, 1),
        ("mastery.v1.ComplianceService/ListAuditEntries", PERMISSION_DENIED, 1),
        (GET, 3, 1),
    ],
)
async def test_a_call_about_nobody_makes_an_entry_if_it_was_refused_or_is_about_the_log(
    log: AuditLog, method: str, code: int, count: int
) -> None:
    entries = await written(log, a_call(method=method, code=code))
    assert [entry.student_hash for entry in entries] == [""] * count


async def test_a_flood_of_calls_above_the_limit_makes_an_entry_a_minute(log: AuditLog, clock: Clock) -> None:
    flood = [a_call(code=RESOURCE_EXHAUSTED)] * 1000
    other = replace(flood[0], caller=SERVICE)
    assert [entry.caller for entry in await written(log, *flood, other)] == ["jane", "lms"]
    clock.now = 61.0
    assert len(await written(log, *flood)) == 3


async def test_what_can_be_no_id_is_nobody(log: AuditLog, store: WeatheredStore) -> None:
    bad = student("a}b{*"), student("x" * 65), StudentKey("s1", "no}school")
    [entry] = await written(log, a_call(*bad, school_id="no}school", code=3))
    assert (entry.student_hash, entry.school_id) == ("", "")
    assert not store.own_salts
    assert set(store.logs) == {""}


# --- whose log --------------------------------------------------------------------------------------------


async def test_each_school_has_a_log_of_its_own(log: AuditLog, store: WeatheredStore) -> None:
    of_north, of_south = student("s1", school_id="north"), student("s1", school_id="south")
    store.known |= {of_north, of_south}
    events = a_call(of_north, of_south, S1, caller=SERVICE, method=INGEST)
    for school_id in ("", "north", "south"):
        [entry] = await written(log, school_id=school_id, *[events] * (school_id == ""))  # noqa: B026
        assert entry.school_id == school_id
        assert entry.student_hash
    hashes = {(await written(log, school_id=school))[0].student_hash for school in ("", "north", "south")}
    assert len(hashes) == 3


async def test_nobody_writes_into_the_log_of_a_school_that_he_cannot_reach(
    log: AuditLog, store: WeatheredStore
) -> None:
    of_north, of_south = student("s1", school_id="north"), student("s1", school_id="south")
    store.known |= {of_north, of_south}
    confined = Caller("lms-of-north", Role.SERVICE, "north")
    call = a_call(of_north, of_south, caller=confined, school_id="north", method=INGEST)
    entries = await written(log, call, school_id="north")
    assert [bool(entry.student_hash) for entry in entries] == [True, False]
    assert set(store.logs) == {"north"}
    assert set(store.own_salts) == {of_north}


# --- students who call ------------------------------------------------------------------------------------


async def test_a_student_who_calls_is_not_named(log: AuditLog) -> None:
    himself = Caller("s1", Role.STUDENT)
    own, others = await written(
        log, a_call(S1, caller=himself), a_call(S2, caller=himself, code=PERMISSION_DENIED)
    )
    assert own.caller == others.caller == f"student:{own.student_hash}"
    assert own.role == "student"
    assert others.student_hash != own.student_hash
    found = await log.entries(AuditFilter(caller="s1"))
    assert [entry.sequence for entry in found.entries] == [2, 1]


async def test_a_caller_who_shares_the_name_of_a_student_is_himself(log: AuditLog) -> None:
    [entry] = await written(log, a_call(S2, caller=Caller("s1", Role.TEACHER)))
    assert entry.caller == "s1"


# --- erasure ----------------------------------------------------------------------------------------------


async def test_who_is_erased_is_cut_off_from_his_entries_and_the_log_stays(
    log: AuditLog, store: WeatheredStore
) -> None:
    log.record(a_call(S1))
    himself = Caller("s1", Role.STUDENT)
    log.record(a_call(S1, caller=himself))
    pseudonym = await log.forget(S1)
    store.known.discard(S1)
    store.erased.add(S1)
    entries = await written(log)
    assert [entry.student_hash for entry in entries] == [pseudonym.hex()] * 2
    assert await log.pseudonym_of(S1) is None
    assert S1 not in store.own_salts
    assert [entry async for entry in log.about(S1)] == []
    assert (await log.entries(AuditFilter(student=S1))).entries == ()
    assert (await log.entries(AuditFilter(caller="s1"))).entries == []
    assert (await log.verify("")).intact


async def test_the_call_that_erased_him_is_under_his_last_pseudonym_and_leaves_no_trace(
    log: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    await written(log, a_call(S1))
    pseudonym = await log.forget(S1)
    assert await log.forget(S1) == pseudonym
    store.known.discard(S1)
    store.erased.add(S1)
    erasure = a_call(S1, method=INGEST)
    _, entry = await written(log, erasure)
    assert entry.student_hash == pseudonym.hex()
    assert S1 not in store.own_salts
    clock.now = 61.0
    *_, later = await written(log, a_call(S1, code=NOT_FOUND))
    assert later.student_hash == ""


async def test_his_new_life_has_another_pseudonym(log: AuditLog, store: WeatheredStore) -> None:
    await written(log, a_call(S1))
    before = await log.forget(S1)
    store.erased.add(S1)
    *_, entry = await written(log, a_call(S1))  # known again
    assert entry.student_hash not in ("", before.hex())
    assert [found.sequence async for found in log.about(S1)] == [2]


async def test_another_process_drops_what_it_remembers(log: AuditLog, store: WeatheredStore, clock: Clock) -> None:
    other = a_log(store, clock)
    await written(other, a_call(S1))
    before = await log.forget(S1)
    other.drop(S1)
    *_, entry = await written(other, a_call(S1))
    assert entry.student_hash not in ("", before.hex())


async def test_one_who_never_had_entries_is_forgotten_under_a_name_of_nobody(log: AuditLog) -> None:
    assert len(await log.forget(S1)) == 16
    assert await log.forget(S1) != await log.forget(S2)


# --- outages ----------------------------------------------------------------------------------------------


async def test_entries_wait_while_the_storage_is_away_and_keep_their_order(
    log: AuditLog, store: WeatheredStore
) -> None:
    store.is_away = True
    for number in range(3):
        log.record(a_call(S1, request_id=str(number)))
        with pytest.raises(StorageUnavailable):
            await log.flush()
    store.is_away = False
    assert [entry.request_id for entry in await written(log)] == ["0", "1", "2"]


async def test_when_too_many_wait_calls_are_refused_and_taken_again_later(
    log: AuditLog, store: WeatheredStore
) -> None:
    store.is_away = True
    batch = a_call(*[student(f"s{number}") for number in range(1000)])
    for _ in range(MOST_WAITING // 1000):
        log.record(batch)
    with pytest.raises(StorageUnavailable):
        log.record(a_call(S1))
    log.record(a_call())  # nothing to take down
    with pytest.raises(StorageUnavailable):
        await log.flush()
    with pytest.raises(StorageUnavailable):
        log.record(a_call(S1))
    store.is_away = False
    await log.flush()
    log.record(a_call(S1))


async def test_a_write_whose_answer_was_lost_is_not_repeated(log: AuditLog, store: WeatheredStore) -> None:
    store.loses_the_next_answer = True
    log.record(a_call(S1, request_id="1"))
    with pytest.raises(StorageUnavailable):
        await log.flush()
    log.record(a_call(S1, request_id="2"))
    assert [entry.request_id for entry in await written(log)] == ["1", "2"]
    assert (await log.verify("")).intact


async def test_nor_if_another_process_has_gone_on_from_there(
    log: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    store.loses_the_next_answer = True
    log.record(a_call(S1, request_id="1"))
    with pytest.raises(StorageUnavailable):
        await log.flush()
    await written(a_log(store, clock), a_call(S1, request_id="of another"))
    log.record(a_call(S1, request_id="2"))
    assert [entry.request_id for entry in await written(log)] == ["1", "of another", "2"]
    assert (await log.verify("")).intact


async def test_many_processes_make_one_chain_without_gaps(store: WeatheredStore, clock: Clock) -> None:
    logs = [a_log(store, clock) for _ in range(8)]

    async def write(log: AuditLog, name: str) -> None:
        for number in range(20):
            log.record(a_call(S1, request_id=f"{name}-{number}"))
            await log.flush()

    await asyncio.gather(*(write(log, str(index)) for index, log in enumerate(logs)))
    entries = await written(logs[0])
    assert [entry.sequence for entry in entries] == list(range(1, 161))
    assert len({entry.request_id for entry in entries}) == 160
    assert (await logs[0].verify("")).intact


async def test_it_writes_by_itself_and_the_rest_when_it_is_closed(log: AuditLog, store: WeatheredStore) -> None:
    running = asyncio.create_task(log.run())
    log.record(a_call(S1))
    async with asyncio.timeout(5):
        while not store.appends:  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    log.record(a_call(S1))
    with structlog.testing.capture_logs() as told:
        await log.close()
    heads = [line for line in told if line["event"] == "audit log head"]
    [last] = (await log.entries(AuditFilter(page_size=1))).entries
    assert [(head["sequence"], head["mac"]) for head in heads] == [(2, last.mac.hex())]


async def test_it_says_what_is_lost_if_the_storage_stays_away(log: AuditLog, store: WeatheredStore) -> None:
    store.is_away = True
    log.record(a_call(S1, S2))
    with structlog.testing.capture_logs() as told:
        await log.close()
    assert [line["entries"] for line in told if line["event"] == "audit entries are lost"] == [2]


# --- reading ----------------------------------------------------------------------------------------------


@pytest.fixture
async def filled(log: AuditLog) -> AuditLog:
    """Thirty calls: a second apart, about two students in turn, by three callers in turn."""
    callers = [TEACHER, SERVICE, Caller("root", Role.ADMIN)]
    for number in range(30):
        log.record(
            a_call(
                (S1, S2)[number % 2],
                time=at(seconds=number),
                caller=callers[number % 3],
                method=GET if number < 20 else INGEST,
            )
        )
    await log.flush()
    return log


def sequences(page: AuditPage) -> list[int]:
    return [entry.sequence for entry in page.entries]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, range(30)),
        ({"student": S1}, range(0, 30, 2)),
        ({"student": student("nobody")}, []),
        ({"caller": "lms"}, range(1, 30, 3)),
        ({"method": INGEST}, range(20, 30)),
        ({"method": "mastery.v1.MasteryService/Get"}, []),
        ({"start_time": at(seconds=5)}, range(5, 30)),
        ({"end_time": at(seconds=5)}, range(5)),
        ({"start_time": at(seconds=3), "end_time": at(seconds=9), "student": S2, "caller": "jane"}, [3]),
        ({"school_id": "north"}, []),
    ],
)
async def test_entries_are_found_by_all_filters_newest_first(
    filled: AuditLog, given: dict[str, Any], expected: Sequence[int]
) -> None:
    page = await filled.entries(AuditFilter(**given))
    assert sequences(page) == [number + 1 for number in reversed(expected)]
    assert page.next_page_token == ""


@pytest.mark.parametrize("size", [1, 4, 5, 14, 15, 16])
async def test_pages_follow_each_other_without_gaps_while_the_log_grows(filled: AuditLog, size: int) -> None:
    wanted = AuditFilter(student=S1, page_size=size)
    found: list[int] = []
    pages = 0
    while True:
        page = await filled.entries(wanted)
        pages += 1
        found += sequences(page)
        if not page.next_page_token:
            break
        filled.record(a_call(S1))
        await filled.flush()
        wanted = replace(wanted, page_token=page.next_page_token)
    assert found == list(range(29, 0, -2))
    assert pages == -(-15 // size)


async def test_a_page_token_is_good_for_its_filters_only(filled: AuditLog) -> None:
    wanted = AuditFilter(student=S1, page_size=2, start_time=at())
    token = (await filled.entries(wanted)).next_page_token
    assert sequences(await filled.entries(replace(wanted, page_token=token, page_size=3))) == [25, 23, 21]
    moved = datetime.fromisoformat("2020-01-01T00:00:00+00:00")
    others = [
        replace(wanted, page_token=token, **{name: value})  # type: ignore[arg-type]
        for name, value in {
            "student": S2,
            "school_id": "north",
            "caller": "jane",
            "method": GET,
            "start_time": moved,
            "end_time": moved,
        }.items()
    ]
    forged = [replace(wanted, page_token=value) for value in ("x", "=", "é", token[:-4], token + "A", "A" * 32)]
    for other in others + forged:
        with pytest.raises(InvalidPageToken):
            await filled.entries(other)


async def test_one_page_looks_at_a_bounded_part_of_the_log(
    filled: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mastery_grpc.application.audit.reader.PORTION", 5)
    monkeypatch.setattr("mastery_grpc.application.audit.reader.MOST_SCANNED", 10)
    page = await filled.entries(AuditFilter(end_time=at(seconds=2)))
    empty = 0
    while not page.entries:
        empty += 1
        page = await filled.entries(AuditFilter(end_time=at(seconds=2), page_token=page.next_page_token))
    assert empty == 2
    assert sequences(page) == [2, 1]


async def test_everything_about_a_student_comes_oldest_first(filled: AuditLog) -> None:
    himself = Caller("s1", Role.STUDENT)
    filled.record(a_call(S2, caller=himself, code=PERMISSION_DENIED))
    assert [entry.sequence async for entry in filled.about(S1)] == [*range(1, 31, 2), 31]
    assert [entry async for entry in filled.about(student("nobody"))] == []


# --- retention and tampering ------------------------------------------------------------------------------


async def test_what_is_past_retention_is_forgotten_and_the_rest_still_verifies(
    filled: AuditLog, store: WeatheredStore
) -> None:
    assert await filled.trim(at(seconds=10) + timedelta(days=365)) == 10
    assert min(store.logs[""]) == 11
    verdict = await filled.verify("")
    assert (verdict.intact, verdict.entry_count) == (True, 20)
    assert await filled.trim(at(seconds=10) + timedelta(days=365)) == 0
    assert await filled.trim(at(days=800)) == 20
    assert (await filled.verify("")).intact
    assert [entry.sequence for entry in await written(filled, a_call(S1))] == [31]
    assert (await filled.verify("")).entry_count == 1


async def test_it_forgets_by_itself_and_one_process_does_it_for_all(
    filled: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    later = AuditLog(
        store,
        KEYS,
        retention=timedelta(days=365),
        writers=[],
        clock=lambda: at(seconds=10) + timedelta(days=365),
        timer=clock,
    )
    running = asyncio.create_task(later.run())
    async with asyncio.timeout(5):
        while 10 in store.logs[""]:  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.01)
    running.cancel()
    assert min(store.logs[""]) == 11
    assert not await store.claim_upkeep(60)


async def test_forgetting_stops_where_the_log_was_tampered_with(filled: AuditLog, store: WeatheredStore) -> None:
    del store.logs[""][6]
    with structlog.testing.capture_logs() as told:
        assert await filled.trim(at(days=800)) == 5
    assert [(line["sequence"], line["kind"]) for line in told if line["log_level"] == "error"] == [
        (6, "out_of_sequence")
    ]
    assert (await filled.verify("")).fault == (6, FaultKind.OUT_OF_SEQUENCE)


async def test_a_lost_head_is_not_signed_anew_and_the_log_goes_on(
    filled: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    del store.heads[""]
    del store.logs[""][30]
    for log in (filled, a_log(store, clock)):
        entries = await written(log, a_call(S1))
    assert [entry.sequence for entry in entries[-2:]] == [30, 31]
    verdict = await filled.verify("")
    assert (verdict.intact, verdict.entry_count, verdict.fault) == (False, 29, (30, FaultKind.HEAD_INVALID))


async def test_entries_put_behind_the_head_do_not_stop_the_log(filled: AuditLog, store: WeatheredStore) -> None:
    store.logs[""][31] = store.logs[""][30]
    entries = await written(filled, a_call(S1))
    assert entries[-1].sequence == 32
    assert (await filled.verify("")).fault == (31, FaultKind.OUT_OF_SEQUENCE)


async def test_a_log_put_back_is_told_by_the_process_that_wrote_it(log: AuditLog, store: WeatheredStore) -> None:
    await written(log, a_call(S1))
    old = dict(store.logs[""]), store.heads[""]
    await written(log, a_call(S1), a_call(S2))
    store.logs[""], store.heads[""] = old
    assert (await log.verify("")).fault == (2, FaultKind.TRUNCATED)
    with structlog.testing.capture_logs() as told:
        await written(log, a_call(S2))
    assert [line["sequence"] for line in told if "put back" in line["event"]] == [3]
    for _ in range(3):
        await written(log, a_call(S2))
    assert (await log.verify("")).fault == (3, FaultKind.TRUNCATED)


async def test_a_log_of_which_everything_was_deleted_does_not_begin_as_if_nothing_were(
    filled: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    store.logs.clear()
    store.heads.clear()
    restarted = a_log(store, clock)
    for log in (filled, restarted):
        assert not (await log.verify("")).intact
    await written(restarted, a_call(S1))
    assert (await restarted.verify("")).fault == (1, FaultKind.HEAD_INVALID)


async def test_with_another_key_nothing_is_authentic(
    filled: AuditLog, store: WeatheredStore, clock: Clock
) -> None:
    other = a_log(store, clock, keys=AuditKeys.derived_from(b"another secret of the tests"))
    assert (await other.verify("")).fault == (1, FaultKind.NOT_AUTHENTIC)
    await written(other, a_call(S1))
    assert (await filled.verify("")).fault == (31, FaultKind.NOT_AUTHENTIC)
