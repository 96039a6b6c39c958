"""What is done with cohorts, on every store of them: the fake, Redis, and a Redis Cluster."""

import asyncio

import pytest

from mastery_grpc.application.cohorts.manage import ManageCohorts
from mastery_grpc.application.cohorts.memberships import CohortMemberships
from mastery_grpc.application.cohorts.store import CohortStore
from mastery_grpc.domain.cohorts import MOST_MEMBERS, CohortChange, CohortKey, WholeSchool
from mastery_grpc.domain.errors import (
    CohortByRule,
    CohortExists,
    CohortNotFound,
    CohortTooLarge,
    EtagMismatch,
    InvalidInput,
    InvalidPageToken,
    RequestIdReused,
)
from tests.builders import at, student
from tests.contract.cohorts import ANOTHER, CLASS, REQUEST, Erasures, Stores, managing, many, members_of


@pytest.fixture
def store(cohort_stores: Stores) -> CohortStore:
    return cohort_stores.one


@pytest.fixture
def manage(store: CohortStore) -> ManageCohorts:
    return managing(store)


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


async def test_changes_at_the_same_time_all_have_their_effect(cohort_stores: Stores) -> None:
    await managing(cohort_stores.one).create(CLASS, "7b", [])
    await asyncio.gather(
        *(
            managing(store).update(CLASS, CohortChange(added=[f"s{number}"]))
            for number, store in enumerate([cohort_stores.one, cohort_stores.other] * 4)
        )
    )
    assert members_of(await cohort_stores.one.load(CLASS)) == {f"s{number}" for number in range(8)}


async def test_the_same_request_at_the_same_time_counts_once(cohort_stores: Stores) -> None:
    found = await asyncio.gather(
        *(
            managing(store).create(CLASS, "7b", ["s1"], request_id=REQUEST)
            for store in [cohort_stores.one, cohort_stores.other] * 3
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


async def test_a_student_who_is_erased_is_in_no_cohort_any_more(cohort_stores: Stores) -> None:
    manage, memberships = (
        managing(cohort_stores.one),
        CohortMemberships(cohort_stores.one, managing(cohort_stores.one)),
    )
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


async def test_memberships_are_put_back_instead_of_what_is_there(cohort_stores: Stores) -> None:
    manage, memberships = (
        managing(cohort_stores.one),
        CohortMemberships(cohort_stores.one, managing(cohort_stores.one)),
    )
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
