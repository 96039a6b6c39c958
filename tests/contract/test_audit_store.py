"""What every store of the audit log does: one suite for the fake, for Redis, and for a Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from mastery_grpc.application.audit.store import Appended, AuditStore, ChainEnd, Portion, SealedEntries
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, connect
from mastery_grpc.storage.memory.audit_log import MemoryAuditStore
from mastery_grpc.storage.redis_audit_log import RedisAuditStore
from tests.builders import student
from tests.contract.clients import Clients

SCHOOL = "school_1"
S1, S2, UNKNOWN = student("s1"), student("s2", school_id=SCHOOL), student("unknown")
YEAR = timedelta(days=365)
SALT = b"0123456789abcdef"


@dataclass
class Storage:
    """Two stores, as two processes have them; what is held of students is told by `hold` and `erase`."""

    store: AuditStore
    other: AuditStore
    hold: Callable[[StudentKey], Awaitable[object]]
    erase: Callable[[StudentKey], Awaitable[object]]


@pytest.fixture
async def storage(clients: Clients) -> AsyncIterator[Storage]:
    if clients is None:
        memory = MemoryAuditStore()

        async def hold(key: StudentKey) -> None:
            memory.known.add(key)

        async def erase(key: StudentKey) -> None:
            memory.known.discard(key)
            memory.erased.add(key)

        yield Storage(memory, memory, hold, erase)
        return
    first, second = (RedisAuditStore(client, retention=YEAR) for client in clients)

    async def hold_on_redis(key: StudentKey) -> None:
        await clients[0].set(keys.current_mastery(key), b"{}")

    async def erase_on_redis(key: StudentKey) -> None:
        await clients[0].delete(keys.current_mastery(key))
        await clients[0].set(keys.erased(key), b"1")

    yield Storage(first, second, hold_on_redis, erase_on_redis)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    client = connect(redis_url, timeout=5)
    yield client
    await client.aclose()


def entries(first: int, count: int = 3, *, expected: bytes = b"", head: bytes = b"") -> SealedEntries:
    """Returns entries whose records say where they stand; the head is named after the last."""
    records = [f"record {place}".encode() for place in range(first, first + count)]
    return SealedEntries(expected, head or f"head {first + count - 1}".encode(), first, records)


def stored(*places: int) -> list[tuple[int, bytes]]:
    return [(place, f"record {place}".encode()) for place in places]


# --- appending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("school_id", ["", SCHOOL])
async def test_what_is_appended_is_read_back_in_both_directions(storage: Storage, school_id: str) -> None:
    appended = await storage.store.append(school_id, entries(1))
    assert appended == Appended(True, True, ChainEnd(b"head 3", 3))
    assert (await storage.other.append(school_id, entries(4, 2, expected=b"head 3"))).is_done
    assert await storage.other.load(school_id, after=0, count=10) == Portion(b"head 5", b"", stored(1, 2, 3, 4, 5))
    assert await storage.other.load(school_id, after=2, count=2) == Portion(b"head 5", b"", stored(3, 4))
    assert await storage.store.load_before(school_id, before=0, count=2) == stored(5, 4)
    assert await storage.store.load_before(school_id, before=4, count=9) == stored(3, 2, 1)


async def test_a_log_that_was_never_begun_is_empty(storage: Storage) -> None:
    assert await storage.store.load(SCHOOL, after=0, count=10) == Portion(b"", b"", [])
    assert await storage.store.load_before(SCHOOL, before=0, count=10) == []
    assert not await storage.store.has_log(SCHOOL)
    assert await storage.store.schools() == []


async def test_schools_do_not_share_a_log(storage: Storage) -> None:
    await storage.store.append("", entries(1, 1))
    await storage.store.append(SCHOOL, entries(1, 2))
    assert (await storage.store.load("", after=0, count=10)).entries == stored(1)
    assert (await storage.store.load(SCHOOL, after=0, count=10)).entries == stored(1, 2)
    assert await storage.other.schools() == ["", SCHOOL]
    assert await storage.other.has_log(SCHOOL)
    assert not await storage.other.has_log("school_2")


async def test_of_two_who_append_to_the_same_end_one_does(storage: Storage) -> None:
    await storage.store.append(SCHOOL, entries(1))
    ours = entries(4, expected=b"head 3")
    theirs = SealedEntries(b"head 3", b"their head", 4, [b"theirs"])
    results = await asyncio.gather(storage.store.append(SCHOOL, ours), storage.other.append(SCHOOL, theirs))
    assert sorted(result.is_done for result in results) == [False, True]
    assert len({result.end for result in results}) == 1
    log = await storage.store.load(SCHOOL, after=3, count=10)
    assert log.entries == (stored(4, 5, 6) if results[0].is_done else [(4, b"theirs")])


async def test_one_who_repeats_an_append_is_told_that_it_was_done(storage: Storage) -> None:
    ours = entries(1)
    await storage.store.append(SCHOOL, ours)
    assert await storage.other.append(SCHOOL, ours) == Appended(True, True, ChainEnd(b"head 3", 3))
    await storage.store.append(SCHOOL, entries(4, 1, expected=b"head 3"))
    assert await storage.store.append(SCHOOL, ours) == Appended(True, True, ChainEnd(b"head 4", 4))
    assert (await storage.store.load(SCHOOL, after=0, count=10)).entries == stored(1, 2, 3, 4)


async def test_one_who_expects_another_end_is_told_how_the_log_ends(storage: Storage) -> None:
    await storage.store.append(SCHOOL, entries(1))
    late = SealedEntries(b"", b"late", 1, [b"another"])
    assert await storage.other.append(SCHOOL, late) == Appended(False, True, ChainEnd(b"head 3", 3))
    assert (await storage.store.load(SCHOOL, after=0, count=10)).entries == stored(1, 2, 3)


# --- retention --------------------------------------------------------------------------------------------


async def test_cutting_forgets_the_oldest_and_leaves_an_anchor(storage: Storage) -> None:
    await storage.store.append(SCHOOL, entries(1, 5))
    assert await storage.other.cut(SCHOOL, expected=b"", anchor=b"anchor 2", through=2)
    assert await storage.store.load(SCHOOL, after=0, count=10) == Portion(b"head 5", b"anchor 2", stored(3, 4, 5))
    assert not await storage.store.cut(SCHOOL, expected=b"", anchor=b"anchor 4", through=4)
    assert await storage.store.cut(SCHOOL, expected=b"anchor 2", anchor=b"anchor 5", through=5)
    assert await storage.store.load(SCHOOL, after=0, count=10) == Portion(b"head 5", b"anchor 5", [])
    assert (await storage.store.append(SCHOOL, entries(6, 1, expected=b"head 5"))).is_done
    assert await storage.store.has_log(SCHOOL)


async def test_the_upkeep_is_claimed_once(storage: Storage) -> None:
    assert await storage.store.claim_upkeep(60)
    assert not await storage.other.claim_upkeep(60)


# --- salts ------------------------------------------------------------------------------------------------


async def test_who_is_known_is_given_a_salt_and_keeps_it(storage: Storage) -> None:
    for key in (S1, S2):
        await storage.hold(key)
    assert await storage.store.salts([S1, S2]) == [None, None]
    assert await storage.store.give_salts({S1: SALT, S2: b"another"}, ()) == [SALT, b"another"]
    assert await storage.other.give_salts({S2: b"x", S1: b"y"}, ()) == [b"another", SALT]
    assert await storage.other.salts([S1, UNKNOWN, S2]) == [SALT, None, b"another"]


async def test_who_is_not_known_is_given_one_only_as_a_newcomer(storage: Storage) -> None:
    assert await storage.store.give_salts({UNKNOWN: SALT, S1: SALT}, {S1}) == [None, SALT]
    assert await storage.other.salts([UNKNOWN, S1]) == [None, SALT]


async def test_who_was_erased_is_given_none_until_something_is_held_of_him_again(storage: Storage) -> None:
    await storage.hold(S1)
    await storage.store.give_salts({S1: SALT}, ())
    assert await storage.store.take_salt(S1) == SALT
    await storage.erase(S1)
    assert await storage.store.take_salt(S1) is None
    assert await storage.other.give_salts({S1: b"new"}, {S1}) == [None]
    await storage.hold(S1)
    assert await storage.other.give_salts({S1: b"new"}, ()) == [b"new"]


async def test_nothing_may_be_asked_for(storage: Storage) -> None:
    assert await storage.store.salts([]) == []
    assert await storage.store.give_salts({}, ()) == []


# --- on Redis only ----------------------------------------------------------------------------------------


async def test_the_keys_are_those_of_the_design(client: RedisClient) -> None:
    store = RedisAuditStore(client, retention=YEAR)
    await client.set(keys.current_mastery(S2), b"{}")
    for school_id in ("", SCHOOL):
        await store.append(school_id, entries(1))
        await store.cut(school_id, expected=b"", anchor=b"anchor", through=1)
    await store.give_salts({S2: SALT}, ())
    await store.claim_upkeep(60)
    found: list[Any] = await client.keys("*")
    assert {key.decode() for key in found} == {
        "audit:{.default}:log",
        "audit:{.default}:head",
        "audit:{.default}:anchor",
        "audit:{school_1}:log",
        "audit:{school_1}:head",
        "audit:{school_1}:anchor",
        "audit:schools",
        "audit:upkeep",
        "school:school_1:student:{s2}:audit",
        "school:school_1:student:{s2}:profile:current_mastery",
    }


async def test_a_salt_lives_as_long_as_entries_do_from_when_it_was_last_needed(client: RedisClient) -> None:
    store = RedisAuditStore(client, retention=timedelta(days=2))
    await store.give_salts({S1: SALT}, {S1})
    assert 2 * 86_400 - 10 < await client.ttl(keys.audit_salt(S1)) <= 2 * 86_400
    await client.expire(keys.audit_salt(S1), 100)
    await store.salts([S1])
    assert await client.ttl(keys.audit_salt(S1)) > 86_400


async def test_an_entry_behind_the_head_is_told_and_nothing_is_written(client: RedisClient) -> None:
    store = RedisAuditStore(client, retention=YEAR)
    await store.append(SCHOOL, entries(1))
    await client.xadd(keys.audit_log(SCHOOL), {"e": "forged"}, id="7-0")
    appended = await store.append(SCHOOL, entries(4, expected=b"head 3"))
    assert appended == Appended(False, True, ChainEnd(b"head 3", 7))
    assert await client.xlen(keys.audit_log(SCHOOL)) == 4
    assert (await store.append(SCHOOL, entries(8, expected=b"head 3"))).is_done


async def test_what_the_engine_did_not_write_is_no_record(client: RedisClient) -> None:
    store = RedisAuditStore(client, retention=YEAR)
    written: list[tuple[str, dict[Any, Any]]] = [
        ("1-0", {"e": "x"}),
        ("1-1", {"e": "x"}),
        ("2-0", {"f": "x"}),
        ("3-0", {"e": "x", "f": "y"}),
    ]
    for id_, fields in written:
        await client.xadd(keys.audit_log(SCHOOL), fields, id=id_)
    expected = [(1, b"x"), (1, b""), (2, b""), (3, b"")]
    assert (await store.load(SCHOOL, after=0, count=10)).entries == expected
    assert (await store.load(SCHOOL, after=1, count=10)).entries == expected[1:]
    assert await store.load_before(SCHOOL, before=0, count=10) == expected[::-1]
