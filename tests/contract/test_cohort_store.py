"""What every store of cohorts does: one suite for the fake, for Redis, and for a Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from mastery_grpc.application.cohort_members import CohortMembers
from mastery_grpc.application.cohort_memberships import CohortMemberships
from mastery_grpc.application.cohort_store import CohortStore, CohortWrite, Request, StoredCohort
from mastery_grpc.application.manage_cohorts import CountedCohort, ManageCohorts
from mastery_grpc.domain.cohorts import MOST_MEMBERS, CohortChange, CohortKey, CohortProfile, WholeSchool
from mastery_grpc.domain.errors import (
    CohortByRule,
    CohortExists,
    CohortNotFound,
    CohortTooLarge,
    EtagMismatch,
    InvalidInput,
    InvalidPageToken,
    RequestIdReused,
    StorageUnavailable,
)
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, Replicas, connect
from mastery_grpc.storage.memory_cohorts import MemoryCohortStore
from mastery_grpc.storage.memory_repository import MemoryStudentRepository
from mastery_grpc.storage.redis_cohorts import MOST_REQUESTS, PORTION, RedisCohortStore
from tests.builders import at, event_id, student

CLASS = CohortKey("class-7b")
REQUEST, ANOTHER = event_id(7), event_id(8)
IN_NORTH = CohortKey("class-7b", "north")


class Stores(NamedTuple):
    """Two stores on one empty storage, as two processes have them."""

    one: CohortStore
    other: CohortStore
    client: RedisClient | None = None


@pytest.fixture(params=["memory", "redis", "redis cluster"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        memory = MemoryCohortStore()
        yield Stores(memory, memory)
        return
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        url = request.getfixturevalue("redis_cluster").url.replace("redis://", "redis+cluster://")
    async with AsyncExitStack() as stack:
        clients = [connect(url, timeout=5), connect(url, timeout=5)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        one, other = (RedisCohortStore(client, retention=keys.Retention()) for client in clients)
        for store in (one, other):  # so that a cluster's client gets to know the nodes once, whatever comes first
            await store.load(CLASS)
        yield Stores(one, other, clients[0])


@pytest.fixture
def store(stores: Stores) -> CohortStore:
    return stores.one


@pytest.fixture
def manage(stores: Stores) -> ManageCohorts:
    return managing(stores.one)


@pytest.fixture
async def on_redis(redis_url: str) -> AsyncIterator[Stores]:
    """On Redis, whose keys the test looks at itself."""
    client = connect(redis_url, timeout=5)
    try:
        store = RedisCohortStore(client, retention=keys.Retention())
        yield Stores(store, store, client)
    finally:
        await client.aclose()


class Erasures:
    """Implements `SuppressionReader`."""

    def __init__(self, **times: datetime) -> None:
        self.times = times

    async def erase_times(self, students: Sequence[StudentKey]) -> list[datetime | None]:
        return [self.times.get(student.student_id) for student in students]


def managing(store: CohortStore, *, erasures: Erasures | None = None) -> ManageCohorts:
    members = CohortMembers(MemoryStudentRepository(clock=at))
    return ManageCohorts(store, members, erasures or Erasures(), clock=at)


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


def members_of(stored: StoredCohort | CountedCohort) -> set[str]:
    assert stored.cohort is not None
    return set(stored.cohort.members)


def many(count: int) -> list[str]:
    return [f"student_{number:05}" for number in range(count)]


# --- one write --------------------------------------------------------------------------------------------


async def test_of_a_cohort_that_is_not_there_nothing_is_stored(store: CohortStore) -> None:
    assert await store.load(CLASS, REQUEST) == StoredCohort(None, "")
    assert await store.page("", after="", count=10) == []
    assert await store.listing(student("s1")) == []


async def test_a_cohort_is_read_back_as_it_was_written(stores: Stores) -> None:
    assert await stores.one.write(write_of(added=["s1", "s2"]))
    stored = await stores.other.load(CLASS)
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


async def test_who_creates_while_another_deletes_is_listed(stores: Stores) -> None:
    async def churn(store: CohortStore) -> None:
        manage = managing(store)
        for _ in range(30):
            try:
                await manage.create(CLASS, "7b", ["s1"])
            except CohortExists:
                with suppress(CohortNotFound):  # the other one was first
                    await manage.delete(CLASS)

    await asyncio.gather(churn(stores.one), churn(stores.other))
    with suppress(CohortExists):
        await managing(stores.one).create(CLASS, "7b", ["s1"])
    assert [one.key for one in await stores.one.page("", after="", count=9)] == [CLASS]


# --- the use cases ----------------------------------------------------------------------------------------


async def test_a_cohort_is_created_once(manage: ManageCohorts) -> None:
    created = await manage.create(CLASS, "7b", ["s1", "s2"])
    assert (members_of(created), created.member_count) == ({"s1", "s2"}, 2)
    assert await manage.get(CLASS) == created
    with pytest.raises(CohortExists):
        await manage.create(CLASS, "7b", ["s1", "s2"])


async def test_a_repeated_request_has_no_effect_and_returns_the_cohort_of_now(manage: ManageCohorts) -> None:
    created = await manage.create(CLASS, "7b", ["s1"], request_id=REQUEST)
    assert await manage.create(CLASS, "7b", ["s1"], request_id=REQUEST) == created
    change = CohortChange(added=["s2"], removed=["s1"])
    changed = await manage.update(CLASS, change, request_id=ANOTHER, etag=created.cohort.profile.etag)
    assert await manage.update(CLASS, change, request_id=ANOTHER, etag=created.cohort.profile.etag) == changed
    assert await manage.create(CLASS, "7b", ["s1"], request_id=REQUEST) == changed
    await manage.delete(CLASS)
    with pytest.raises(CohortNotFound):
        await manage.create(CLASS, "7b", ["s1"], request_id=REQUEST)


async def test_a_request_id_that_comes_with_another_request_is_refused(manage: ManageCohorts) -> None:
    await manage.create(CLASS, "7b", ["s1", "s2"], request_id=REQUEST)
    await manage.create(CLASS, "7b", ["s2", "s1"], request_id=REQUEST)  # the same, in another order
    for name, members in (("7c", ["s1", "s2"]), ("7b", ["s1"])):
        with pytest.raises(RequestIdReused):
            await manage.create(CLASS, name, members, request_id=REQUEST)
    with pytest.raises(RequestIdReused):
        await manage.update(CLASS, CohortChange(removed=["s1"]), request_id=REQUEST)
    assert members_of(await manage.get(CLASS)) == {"s1", "s2"}


async def test_a_change_leaves_what_is_not_given(manage: ManageCohorts) -> None:
    created = await manage.create(CLASS, "7b", ["s1"])
    renamed = await manage.update(CLASS, CohortChange(display_name="8b"))
    assert (renamed.cohort.profile.display_name, members_of(renamed)) == ("8b", {"s1"})
    assert renamed.cohort.profile.etag != created.cohort.profile.etag
    replaced = await manage.update(CLASS, CohortChange(replacement=["s3", "s4"]))
    assert (replaced.cohort.profile.display_name, members_of(replaced), replaced.member_count) == (
        "8b",
        {"s3", "s4"},
        2,
    )


async def test_who_is_added_and_removed_is_removed(manage: ManageCohorts) -> None:
    await manage.create(CLASS, "7b", ["s1"])
    changed = await manage.update(CLASS, CohortChange(added=["s1", "s2", "s3"], removed=["s3", "s9"]))
    assert members_of(changed) == {"s1", "s2"}


async def test_an_etag_of_before_is_refused(manage: ManageCohorts) -> None:
    etag = (await manage.create(CLASS, "7b", [])).cohort.profile.etag
    await manage.update(CLASS, CohortChange(added=["s1"]), etag=etag)
    with pytest.raises(EtagMismatch):
        await manage.update(CLASS, CohortChange(added=["s2"]), etag=etag)
    with pytest.raises(EtagMismatch):
        await manage.delete(CLASS, etag=etag)
    await manage.delete(CLASS, etag=(await manage.get(CLASS)).cohort.profile.etag)
    await manage.create(CLASS, "7b", [])
    with pytest.raises(EtagMismatch):  # of a cohort that had the same id
        await manage.delete(CLASS, etag=etag)


async def test_a_second_deletion_finds_nothing(manage: ManageCohorts) -> None:
    await manage.create(CLASS, "7b", ["s1"])
    await manage.delete(CLASS)
    for call in (manage.delete(CLASS), manage.get(CLASS), manage.update(CLASS, CohortChange())):
        with pytest.raises(CohortNotFound):
            await call


async def test_more_than_ten_thousand_are_refused_and_nothing_is_changed(manage: ManageCohorts) -> None:
    everybody = many(MOST_MEMBERS + 1)
    with pytest.raises(CohortTooLarge):
        await manage.create(CLASS, "7b", everybody)
    created = await manage.create(CLASS, "7b", everybody[1:])
    with pytest.raises(CohortTooLarge) as refused:
        await manage.update(CLASS, CohortChange(added=everybody[:1]))
    assert (refused.value.size, refused.value.limit) == (MOST_MEMBERS + 1, MOST_MEMBERS)
    assert await manage.get(CLASS) == created
    changed = await manage.update(CLASS, CohortChange(added=everybody[:1], removed=everybody[1:2]))
    assert changed.member_count == MOST_MEMBERS


async def test_of_a_cohort_by_rule_nobody_is_added_or_removed(manage: ManageCohorts) -> None:
    created = await manage.create(CLASS, "all", WholeSchool())
    assert (created.cohort.profile.whole_school, members_of(created)) == (True, set())
    for change in (CohortChange(added=["s1"]), CohortChange(removed=["s1"])):
        with pytest.raises(CohortByRule):
            await manage.update(CLASS, change)
    listed = await manage.update(CLASS, CohortChange(replacement=["s1"]))
    assert (listed.cohort.profile.whole_school, members_of(listed)) == (False, {"s1"})
    again = await manage.update(CLASS, CohortChange(replacement=WholeSchool()))
    assert members_of(again) == set()


async def test_changes_at_the_same_time_all_have_their_effect(stores: Stores) -> None:
    await managing(stores.one).create(CLASS, "7b", [])
    await asyncio.gather(
        *(
            managing(store).update(CLASS, CohortChange(added=[f"s{number}"]))
            for number, store in enumerate([stores.one, stores.other] * 4)
        )
    )
    assert members_of(await stores.one.load(CLASS)) == {f"s{number}" for number in range(8)}


async def test_the_same_request_at_the_same_time_counts_once(stores: Stores) -> None:
    found = await asyncio.gather(
        *(
            managing(store).create(CLASS, "7b", ["s1"], request_id=REQUEST)
            for store in [stores.one, stores.other] * 3
        )
    )
    assert len({one.cohort.profile.etag for one in found}) == 1


async def test_pages_name_the_next_until_the_last(manage: ManageCohorts) -> None:
    for number in range(5):
        await manage.create(CohortKey(f"c{number}"), "7b", ["s1"])
    first = await manage.page("", page_size=2)
    second = await manage.page("", page_size=2, page_token=first.next_page_token)
    last = await manage.page("", page_size=5, page_token=second.next_page_token)
    found = [one.profile.cohort_id for page in (first, second, last) for one in page.cohorts]
    assert (found, last.next_page_token) == ([f"c{number}" for number in range(5)], "")
    assert {one.member_count for one in last.cohorts} == {1}
    for school_id, token in (("north", first.next_page_token), ("", "c1"), ("", first.next_page_token[4:])):
        with pytest.raises(InvalidPageToken):
            await manage.page(school_id, page_token=token)


# --- what is held about a student -------------------------------------------------------------------------


async def test_a_student_who_is_erased_is_in_no_cohort_any_more(stores: Stores) -> None:
    manage, memberships = managing(stores.one), CohortMemberships(stores.one, managing(stores.one))
    for id_, listed in {"a": ["s1", "s2"], "b": ["s2"], "c": ["s1"]}.items():
        await manage.create(CohortKey(id_), id_.upper(), listed)
    await manage.create(CohortKey("all"), "all", WholeSchool())
    await manage.create(CohortKey("a", "north"), "A", ["s1"])
    etag = (await manage.get(CohortKey("a"))).cohort.profile.etag
    held = await memberships.held(student("s1"))
    assert held == [b'{"cohort_id":"a","display_name":"A"}', b'{"cohort_id":"c","display_name":"C"}']
    assert await memberships.erase(student("s1")) == 2
    assert await memberships.held(student("s1")) == []
    assert await memberships.erase(student("s1")) == 0
    left = await manage.get(CohortKey("a"))
    assert (members_of(left), left.member_count) == ({"s2"}, 1)
    assert left.cohort.profile.etag != etag  # whoever had read him in it must not write him back
    assert members_of(await manage.get(CohortKey("a", "north"))) == {"s1"}


async def test_who_is_erased_while_a_call_names_him_is_not_brought_back(store: CohortStore) -> None:
    before, since = at(seconds=-1), at(seconds=0.5)
    manage = managing(store, erasures=Erasures(s1=since, s2=before, s3=since))
    created = await manage.create(CLASS, "7b", ["s1", "s2"])
    assert (members_of(created), created.member_count) == ({"s2"}, 1)
    changed = await manage.update(CLASS, CohortChange(added=["s3", "s4"]))
    assert members_of(changed) == {"s2", "s4"}
    assert await manage.get(CLASS) == changed


async def test_memberships_are_put_back_instead_of_what_is_there(stores: Stores) -> None:
    manage, memberships = managing(stores.one), CohortMemberships(stores.one, managing(stores.one))
    await manage.create(CohortKey("a"), "A", ["s1", "s2"])
    await manage.create(CohortKey("b"), "B", ["s2"])
    held = await memberships.held(student("s1"))
    await manage.update(CohortKey("a"), CohortChange(removed=["s1"]))
    await manage.update(CohortKey("b"), CohortChange(added=["s1"]))
    for _ in range(2):
        await memberships.restore(student("s1"), held)
        assert await memberships.held(student("s1")) == held
        assert members_of(await manage.get(CohortKey("b"))) == {"s2"}
    await manage.delete(CohortKey("a"))
    for each in ("s1", "s2"):
        await memberships.restore(student(each), held)  # in a place where the cohort never was
    assert members_of(await manage.get(CohortKey("a"))) == {"s1", "s2"}
    assert await memberships.held(student("s1")) == held


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"cohort_id":"a"}',
        b'{"cohort_id":"a}:x","display_name":"A"}',
        b'{"cohort_id":"a\\n","display_name":"A"}',
        b'{"cohort_id":"a","display_name":""}',
    ],
)
async def test_records_that_are_no_memberships_are_refused_before_anything_is_done(
    manage: ManageCohorts, store: CohortStore, record: bytes
) -> None:
    await manage.create(CLASS, "7b", ["s1"])
    with pytest.raises(InvalidInput):
        await CohortMemberships(store, manage).restore(student("s1"), [record])
    assert members_of(await manage.get(CLASS)) == {"s1"}


async def test_a_full_cohort_takes_nobody_back(store: CohortStore, manage: ManageCohorts) -> None:
    await manage.create(CLASS, "7b", many(MOST_MEMBERS))
    record = b'{"cohort_id":"class-7b","display_name":"7b"}'
    with pytest.raises(InvalidInput, match="is full"):
        await CohortMemberships(store, manage).restore(student("s1"), [record])


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
