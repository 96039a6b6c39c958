"""What every store of cohorts does: one suite for the fake, for Redis, and for a Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from mastery_grpc.application.cohorts.store import CohortStore, CohortWrite, Request, StoredCohort
from mastery_grpc.domain.cohorts import MOST_MEMBERS, CohortKey, CohortProfile
from mastery_grpc.domain.errors import CohortExists, CohortNotFound, StorageUnavailable
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import Replicas, connect
from mastery_grpc.storage.redis_cohorts import MOST_REQUESTS, PORTION, RedisCohortStore
from tests.builders import at, event_id, student
from tests.contract.cohorts import ANOTHER, CLASS, IN_NORTH, REQUEST, Stores, managing, many, members_of


@pytest.fixture
def store(cohort_stores: Stores) -> CohortStore:
    return cohort_stores.one


@pytest.fixture
async def on_redis(redis_url: str) -> AsyncIterator[Stores]:
    """On Redis, whose keys the test looks at itself."""
    client = connect(redis_url, timeout=5)
    try:
        store = RedisCohortStore(client, retention=keys.Retention())
        yield Stores(store, store, client)
    finally:
        await client.aclose()


def profile_of(key: CohortKey = CLASS, *, etag: str = "e1", member_count: int = 0) -> CohortProfile:
    return CohortProfile(
        etag=etag,
        cohort_id=key.cohort_id,
        school_id=key.school_id,
        display_name='Class "7b" ü',
        whole_school=False,
        member_count=member_count,
        create_time=at(seconds=0.25),
        update_time=at(1),
    )


def write_of(etag: str = "e1", *, expected: str = "", key: CohortKey = CLASS, **given: Any) -> CohortWrite:
    defaults: dict[str, Any] = {"profile": profile_of(key, etag=etag)}
    return CohortWrite(key=key, expected_etag=expected, time=at(), **defaults | given)


# --- one write --------------------------------------------------------------------------------------------


async def test_of_a_cohort_that_is_not_there_nothing_is_stored(store: CohortStore) -> None:
    assert await store.load(CLASS, REQUEST) == StoredCohort(None, "")
    assert await store.page("", after="", count=10) == []
    assert await store.listing(student("s1")) == []


async def test_a_cohort_is_read_back_as_it_was_written(cohort_stores: Stores) -> None:
    assert await cohort_stores.one.write(write_of(added=["s1", "s2"]))
    stored = await cohort_stores.other.load(CLASS)
    assert stored.cohort is not None
    assert (stored.cohort.profile, members_of(stored)) == (profile_of(), {"s1", "s2"})


async def test_members_are_added_and_removed(store: CohortStore) -> None:
    await store.write(write_of(added=["s1", "s2"]))
    assert await store.write(write_of("e2", expected="e1", added=["s3"], removed=["s1", "s9"]))
    assert members_of(await store.load(CLASS)) == {"s2", "s3"}


async def test_only_who_knows_the_cohort_as_it_is_may_write(store: CohortStore) -> None:
    assert not await store.write(write_of("e2", expected="e1", added=["s1"]))
    assert await store.write(write_of("e1"))
    assert not await store.write(write_of("e2", added=["s1"]))
    assert not await store.write(write_of("e2", expected="e0", added=["s1"]))
    assert not await store.write(write_of(expected="e0", profile=None))
    assert members_of(await store.load(CLASS)) == set()


async def test_the_same_write_again_is_written_once(store: CohortStore) -> None:
    for _ in range(2):
        assert await store.write(write_of(added=["s1"], request=Request(REQUEST, "d")))
    for _ in range(2):
        assert await store.write(write_of("e2", expected="e1", removed=["s1"]))
    assert members_of(await store.load(CLASS)) == set()


async def test_a_deletion_leaves_nothing_but_its_requests(store: CohortStore) -> None:
    await store.write(write_of(added=["s1"], request=Request(REQUEST, "d")))
    assert await store.write(write_of(expected="e1", profile=None))
    assert await store.load(CLASS, REQUEST) == StoredCohort(None, "d")
    assert await store.listing(student("s1")) == []
    assert await store.page("", after="", count=10) == []
    assert await store.write(write_of("e2", added=["s2"]))
    assert members_of(await store.load(CLASS)) == {"s2"}


async def test_a_request_is_carried_out_once(store: CohortStore) -> None:
    assert await store.write(write_of(added=["s1"], request=Request(REQUEST, "digest")))
    assert not await store.write(write_of("e2", expected="e1", added=["s2"], request=Request(REQUEST, "x")))
    assert (await store.load(CLASS, REQUEST)).digest == "digest"
    assert (await store.load(CLASS, ANOTHER)).digest == ""
    assert await store.write(write_of("e2", expected="e1", added=["s2"], request=Request(ANOTHER, "x")))
    await store.confirm(CLASS)


async def test_a_cohort_takes_its_ten_thousand(store: CohortStore) -> None:
    everybody = many(MOST_MEMBERS)
    assert await store.write(write_of(added=everybody))
    assert members_of(await store.load(CLASS)) == set(everybody)
    assert await store.write(write_of("e2", expected="e1", removed=everybody[1:], added=["new"]))
    assert members_of(await store.load(CLASS)) == {everybody[0], "new"}


# --- many cohorts -----------------------------------------------------------------------------------------


async def test_cohorts_are_listed_by_id_a_page_at_a_time(store: CohortStore) -> None:
    ids = ["B", "a", "a-1", "a_1", "b", "c"]
    for id_ in reversed(ids):
        await store.write(write_of(key=CohortKey(id_)))
    await store.write(write_of(key=IN_NORTH))
    assert [one.cohort_id for one in await store.page("", after="", count=4)] == ids[:4]
    assert [one.cohort_id for one in await store.page("", after="a_1", count=4)] == ids[4:]
    assert [one.cohort_id for one in await store.page("", after="aa", count=1)] == ["b"]
    assert [one.key for one in await store.page("north", after="", count=9)] == [IN_NORTH]


async def test_schools_have_cohorts_of_their_own(store: CohortStore) -> None:
    await store.write(write_of(added=["s1"]))
    assert (await store.load(IN_NORTH)).cohort is None
    assert await store.write(write_of("e2", key=IN_NORTH, added=["s1"]))
    assert [one.key for one in await store.listing(student("s1"))] == [CLASS]
    assert [one.key for one in await store.listing(student("s1", school_id="north"))] == [IN_NORTH]
    assert await store.write(write_of(expected="e1", profile=None))
    assert members_of(await store.load(IN_NORTH)) == {"s1"}


async def test_whoever_is_listed_is_found_by_id_of_the_cohort(store: CohortStore) -> None:
    for number in range(PORTION + 20):
        listed = ["s1"] if number % 100 == 3 else ["s2"]
        await store.write(write_of(key=CohortKey(f"c{number:04}"), added=listed))
    found = [one.cohort_id for one in await store.listing(student("s1"))]
    assert found == ["c0003", "c0103", "c0203", "c0303", "c0403", "c0503"]
    assert len(await store.page("", after="", count=PORTION + 100)) == PORTION + 20


async def test_who_creates_while_another_deletes_is_listed(cohort_stores: Stores) -> None:
    async def churn(store: CohortStore) -> None:
        manage = managing(store)
        for _ in range(30):
            try:
                await manage.create(CLASS, "7b", ["s1"])
            except CohortExists:
                with suppress(CohortNotFound):  # the other one was first
                    await manage.delete(CLASS)

    await asyncio.gather(churn(cohort_stores.one), churn(cohort_stores.other))
    with suppress(CohortExists):
        await managing(cohort_stores.one).create(CLASS, "7b", ["s1"])
    assert [one.key for one in await cohort_stores.one.page("", after="", count=9)] == [CLASS]


# --- Redis ------------------------------------------------------------------------------------------------


async def test_the_keys_are_those_of_the_cohort_and_an_index_of_its_school(on_redis: Stores) -> None:
    client: Any = on_redis.client
    await on_redis.one.write(write_of(key=IN_NORTH, added=["s1"], request=Request(REQUEST, "d")))
    names = {key.decode() for key in await client.keys("*")}
    cohort = "school:north:cohort:{class-7b}"
    assert names == {f"{cohort}:{part}" for part in ("profile", "members", "requests")} | {
        "school:north:cohort:index"
    }
    assert [await client.ttl(name) for name in (f"{cohort}:profile", f"{cohort}:members")] == [-1, -1]
    assert 0 < await client.ttl(f"{cohort}:requests") <= 7 * 86_400
    await on_redis.one.write(write_of(key=IN_NORTH, expected="e1", profile=None))
    assert [key.decode() for key in await client.keys("*")] == [f"{cohort}:requests"]


async def test_no_caller_fills_the_memory_with_requests(on_redis: Stores) -> None:
    client: Any = on_redis.client
    for number in range(MOST_REQUESTS + 20):
        write = write_of(
            f"e{number}", expected=f"e{number - 1}" if number else "", request=Request(event_id(number), "d")
        )
        assert await on_redis.one.write(replace(write, time=at(seconds=number)))
    assert await client.hlen("cohort:{class-7b}:requests") == MOST_REQUESTS
    assert (await on_redis.one.load(CLASS, event_id(19))).digest == ""
    assert (await on_redis.one.load(CLASS, event_id(20))).digest == "d"


async def test_a_request_of_last_week_is_forgotten_for_a_new_one(on_redis: Stores) -> None:
    await on_redis.one.write(write_of(request=Request(REQUEST, "d")))
    later = replace(write_of("e2", expected="e1", request=Request(ANOTHER, "d")), time=at(8))
    assert await on_redis.one.write(later)
    assert (await on_redis.one.load(CLASS, REQUEST)).digest == ""


async def test_an_index_that_was_lost_comes_back_with_the_next_change(on_redis: Stores) -> None:
    client: Any = on_redis.client
    await on_redis.one.write(write_of(added=["s1"]))
    await client.delete("cohort:index")
    assert await on_redis.one.listing(student("s1")) == []
    await on_redis.one.write(write_of("e2", expected="e1"))
    assert [one.key for one in await on_redis.one.listing(student("s1"))] == [CLASS]


async def test_an_id_without_a_cohort_in_the_index_is_passed_over(on_redis: Stores) -> None:
    client: Any = on_redis.client
    await client.zadd("cohort:index", {f"a{number}": 0 for number in range(30)})
    await on_redis.one.write(write_of(added=["s1"]))
    assert [one.key for one in await on_redis.one.page("", after="", count=3)] == [CLASS]
    assert [one.key for one in await on_redis.one.listing(student("s1"))] == [CLASS]


async def test_a_change_that_too_few_replicas_have_may_be_sent_again(on_redis: Stores) -> None:
    assert on_redis.client is not None
    careful = managing(RedisCohortStore(on_redis.client, retention=keys.Retention(), replicas=Replicas(1, 0.1)))
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await careful.create(CLASS, "7b", ["s1"], request_id=REQUEST)
    created = await managing(on_redis.one).create(CLASS, "7b", ["s1"], request_id=REQUEST)
    assert members_of(created) == {"s1"}
