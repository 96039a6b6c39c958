"""Attacks on the audit log by somebody who may do anything with Redis, but has no key."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from mastery_grpc.application.audit.log import AuditedCall, AuditLog
from mastery_grpc.application.audit.reader import AuditVerdict
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.domain.audit_chain import AuditFault, AuditKeys, FaultKind
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.redis_audit_log import RedisAuditStore
from tests.builders import at, student

SECRET = b"what the attacker does not have, long enough"
METHOD = "mastery.v1.MasteryService/GetMastery"
COUNT = 20
LOG, HEAD, ANCHOR = keys.audit_log("north"), keys.audit_head("north"), keys.audit_anchor("north")


class Target:
    """Two schools' logs, and raw access to the keys that hold them."""

    def __init__(self, client: Any) -> None:
        self.redis = client
        self.log = self._new()

    def _new(self) -> AuditLog:
        return AuditLog(
            RedisAuditStore(self.redis, retention=timedelta(days=365)),
            AuditKeys.derived_from(SECRET),
            retention=timedelta(days=365),
            writers=[METHOD],
            clock=at,
            timer=time.monotonic,
        )

    async def fill(self, school_id: str, count: int) -> None:
        for number in range(count):
            self.log.record(
                AuditedCall(
                    time=at(seconds=number),
                    caller=Caller(f"teacher-{number}", Role.TEACHER, school_id),
                    school_id=school_id,
                    method=METHOD,
                    students=(student(f"s{number}", school_id=school_id),),
                    code=0,
                    request_id=f"{number:032x}",
                )
            )
        await self.log.flush()

    async def verdict(self) -> AuditVerdict:
        """Returns what a process that was just started finds: it has seen nothing of the log before."""
        return await self._new().verify("north")

    async def records(self, log: str = LOG) -> list[bytes]:
        return [fields[b"e"] for _, fields in await self.redis.xrange(log)]

    async def write_anew(self, records: list[bytes], *, first: int = 1) -> None:
        """Replaces the whole stream."""
        await self.redis.delete(LOG)
        for place, record in enumerate(records, start=first):
            await self.redis.xadd(LOG, {"e": record}, id=f"{place}-0")


@pytest.fixture
async def target(redis_url: str) -> AsyncIterator[Target]:
    client = connect(redis_url, timeout=5)
    target = Target(client)
    await target.fill("north", COUNT)
    await target.fill("south", COUNT)
    verdict = await target.verdict()
    assert (verdict.intact, verdict.entry_count) == (True, COUNT)
    yield target
    await client.aclose()


def between(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(record: bytes) -> bytes:
        assert record.count(old) == 1
        return record.replace(old, new)

    return edit


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "mac": lambda record: bytes(32) + record[32:],
    "time": lambda record: record[:47] + b"\xff" + record[48:],
    "code": lambda record: record[:48] + b"\x07" + record[49:],
    "student": lambda record: record[:50] + bytes(16) + record[66:],
    "no student": lambda record: record[:49] + b"\x00" + record[66:],
    "role": between(b"\x00\x07teacher", b"\x00\x05admin"),
    "caller": between(b"teacher-9", b"teacher-8"),
    "method": between(b"GetMastery", b"GetHistory"),
    "request id": between((9).to_bytes(16, "big"), (8).to_bytes(16, "big")),
    "from caller to method": between(b"teacher-9\x00\x24m", b"teacher-9m\x00\x23"),
    "something behind it": lambda record: record + b"\x00",
    "its end cut off": lambda record: record[:-1],
    "nothing left": lambda record: b"",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_an_edited_entry(target: Target, edit: Callable[[bytes], bytes]) -> None:
    records = await target.records()
    records[9] = edit(records[9])
    await target.write_anew(records)
    kind = FaultKind.NOT_AUTHENTIC if records[9] else FaultKind.OUT_OF_SEQUENCE
    assert await target.verdict() == AuditVerdict(False, 9, AuditFault(10, kind))


async def test_an_entry_said_to_be_at_another_place(target: Target) -> None:
    records = await target.records()
    records[9] = records[9][:39] + b"\x0b" + records[9][40:]
    await target.write_anew(records)
    assert (await target.verdict()).fault == (10, FaultKind.OUT_OF_SEQUENCE)


@pytest.mark.parametrize("place", [1, 10, COUNT - 1])
async def test_a_deleted_entry(target: Target, place: int) -> None:
    await target.redis.xdel(LOG, f"{place}-0")
    assert (await target.verdict()).fault == (place, FaultKind.OUT_OF_SEQUENCE)


async def test_a_deleted_entry_with_the_others_moved_up(target: Target) -> None:
    records = await target.records()
    await target.write_anew(records[:9] + records[10:])
    assert (await target.verdict()).fault == (10, FaultKind.OUT_OF_SEQUENCE)


async def test_the_last_entry_deleted(target: Target) -> None:
    await target.redis.xdel(LOG, f"{COUNT}-0")
    assert (await target.verdict()).fault == (COUNT, FaultKind.TRUNCATED)


async def test_the_beginning_cut_off(target: Target) -> None:
    await target.redis.xtrim(LOG, minid="6-0", approximate=False)
    assert (await target.verdict()).fault == (1, FaultKind.OUT_OF_SEQUENCE)


async def test_the_beginning_cut_off_behind_a_forged_anchor(target: Target) -> None:
    record = (await target.records())[4]
    await target.redis.set(ANCHOR, (5).to_bytes(8, "big") + record[:32] + bytes(32))
    await target.redis.xtrim(LOG, minid="6-0", approximate=False)
    assert (await target.verdict()).fault == (1, FaultKind.HEAD_INVALID)


async def test_the_end_cut_off_and_the_head_put_there(target: Target) -> None:
    records = await target.records()
    await target.write_anew(records[:15])
    head = await target.redis.get(HEAD)
    await target.redis.set(HEAD, (15).to_bytes(8, "big") + records[14][:32] + head[40:])
    assert (await target.verdict()).fault == (16, FaultKind.HEAD_INVALID)


async def test_the_end_cut_off_and_the_head_deleted_is_not_forgotten_when_the_log_goes_on(target: Target) -> None:
    await target.write_anew((await target.records())[:15])
    await target.redis.delete(HEAD)
    assert (await target.verdict()).fault == (16, FaultKind.HEAD_INVALID)
    await target.fill("north", 3)
    assert (await target.verdict()).fault == (16, FaultKind.HEAD_INVALID)
    assert len(await target.records()) == 18


async def test_everything_put_back_to_a_former_state_is_told_by_whoever_saw_more(target: Target) -> None:
    old_records, old_head = await target.records(), await target.redis.get(HEAD)
    await target.fill("north", 5)
    await target.write_anew(old_records)
    await target.redis.set(HEAD, old_head)
    assert (await target.log.verify("north")).fault == (COUNT + 1, FaultKind.TRUNCATED)
    assert (await target.verdict()).intact  # nothing in Redis tells it: the head in the process's log does


async def test_two_entries_that_changed_places(target: Target) -> None:
    records = await target.records()
    records[4], records[5] = records[5], records[4]
    await target.write_anew(records)
    assert (await target.verdict()).fault == (5, FaultKind.OUT_OF_SEQUENCE)


async def test_a_forged_entry_inserted(target: Target) -> None:
    records = await target.records()
    forged = bytes(32) + records[9][32:]
    await target.write_anew([*records[:9], forged, *records[9:]])
    assert (await target.verdict()).fault == (10, FaultKind.NOT_AUTHENTIC)


async def test_a_forged_entry_between_two_places(target: Target) -> None:
    records = await target.records()
    await target.redis.delete(LOG)
    for place, record in enumerate(records, start=1):
        await target.redis.xadd(LOG, {"e": record}, id=f"{place}-0")
        if place == 10:
            await target.redis.xadd(LOG, {"e": record}, id="10-5")
    assert (await target.verdict()).fault == (11, FaultKind.OUT_OF_SEQUENCE)


async def test_a_forged_entry_behind_the_end(target: Target) -> None:
    record = (await target.records())[-1]
    place = (COUNT + 1).to_bytes(8, "big")
    await target.redis.xadd(LOG, {"e": bytes(32) + place + record[40:]}, id=f"{COUNT + 1}-0")
    assert (await target.verdict()).fault == (COUNT + 1, FaultKind.NOT_AUTHENTIC)


async def test_an_old_entry_replayed(target: Target) -> None:
    record = (await target.records())[3]
    await target.redis.xadd(LOG, {"e": record}, id=f"{COUNT + 1}-0")
    assert (await target.verdict()).fault == (COUNT + 1, FaultKind.OUT_OF_SEQUENCE)


async def test_an_entry_put_in_the_place_of_another(target: Target) -> None:
    records = await target.records()
    await target.write_anew([*records[:9], records[3], *records[10:]])
    assert (await target.verdict()).fault == (10, FaultKind.OUT_OF_SEQUENCE)


async def test_an_entry_of_another_school(target: Target) -> None:
    records, of_south = await target.records(), await target.records(keys.audit_log("south"))
    await target.write_anew([*records[:9], of_south[9], *records[10:]])
    assert (await target.verdict()).fault == (10, FaultKind.NOT_AUTHENTIC)


async def test_the_whole_log_of_another_school(target: Target) -> None:
    await target.write_anew(await target.records(keys.audit_log("south")))
    await target.redis.set(HEAD, await target.redis.get(keys.audit_head("south")))
    assert (await target.verdict()).fault == (1, FaultKind.NOT_AUTHENTIC)


@pytest.mark.parametrize("value", [None, b"", b"forged", b"\x00" * 72])
async def test_the_head_removed_or_forged(target: Target, value: bytes | None) -> None:
    if value is None:
        await target.redis.delete(HEAD)
    else:
        await target.redis.set(HEAD, value)
    assert (await target.verdict()).fault == (COUNT + 1, FaultKind.HEAD_INVALID)


async def test_a_former_head_put_behind_a_longer_log(target: Target) -> None:
    former = await target.redis.get(HEAD)
    await target.fill("north", 2)
    await target.redis.set(HEAD, former)
    assert (await target.verdict()).fault == (COUNT + 1, FaultKind.HEAD_INVALID)


async def test_everything_deleted(target: Target) -> None:
    await target.redis.delete(LOG, HEAD, ANCHOR)
    assert (await target.verdict()).fault == (1, FaultKind.HEAD_INVALID)
    await target.fill("north", 1)
    assert not (await target.verdict()).intact


async def test_the_stream_deleted(target: Target) -> None:
    await target.redis.delete(LOG)
    assert (await target.verdict()).fault == (1, FaultKind.TRUNCATED)


async def test_a_log_that_grows_and_is_cut_while_it_is_checked_is_intact(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mastery_grpc.application.audit.reader.PORTION", 7)
    other = target._new()

    async def work() -> None:
        for number in range(30):
            await target.fill("north", 5)
            assert await other.trim(at(seconds=1 + number % 5) + timedelta(days=365)) >= 0

    working = asyncio.create_task(work())
    checked = 0
    while not working.done():
        assert (await target.verdict()).intact
        checked += 1
    await working
    assert checked > 3


async def test_one_log_tells_nothing_about_another(target: Target) -> None:
    await target.redis.delete(keys.audit_log("south"))
    assert (await target.verdict()).intact


async def test_what_was_tampered_with_can_still_be_listed(target: Target) -> None:
    from mastery_grpc.application.audit.reader import AuditFilter

    records = await target.records()
    records[9] = b"garbage"
    await target.write_anew(records)
    page = await target.log.entries(AuditFilter(school_id="north"))
    assert [entry.sequence for entry in page.entries] == [*range(COUNT, 10, -1), *range(9, 0, -1)]
    assert len([entry async for entry in target.log.about(student("s3", school_id="north"))]) == 1
