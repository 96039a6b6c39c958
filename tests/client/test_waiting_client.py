"""The face whose methods wait: the same surface, usable from anywhere but an event loop of its own."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mastery.v1 import analytics_service_pb2, mastery_pb2
from mastery_client import Client, DeadlineExceeded, MasteryError, NotFound, Unavailable
from mastery_client.testing import FakeServer


def test_a_method_waits_for_its_answer(waiting_client: Client, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.5)

    assert waiting_client.mastery.get_mastery(student_id="s1").mastery.components.quiz == 0.5


def test_a_method_raises_what_the_other_face_raises(waiting_client: Client) -> None:
    with pytest.raises(NotFound) as raised:
        waiting_client.mastery.get_mastery(student_id="nobody")

    assert raised.value.reason == "STUDENT_NOT_FOUND"


def test_reads_are_repeated_and_deadlines_kept(waiting_client: Client, fake: FakeServer) -> None:
    fake.set_mastery("s1")
    fake.fail("GetMastery", "UNAVAILABLE", times=2)
    waiting_client.mastery.get_mastery(student_id="s1")
    fake.fail("DeleteCohort", "UNAVAILABLE")
    fake.hang("PredictNextWeek")

    assert len(fake.requests("GetMastery")) == 3
    with pytest.raises(Unavailable):
        waiting_client.analytics.delete_cohort(cohort_id="c")
    with pytest.raises(DeadlineExceeded):
        waiting_client.with_options(timeout=0.2).prediction.predict_next_week(student_id="s1")


def test_each_goes_through_all_pages(waiting_client: Client, fake: FakeServer) -> None:
    pages = iter(["more", ""])
    cohort = analytics_service_pb2.Cohort(cohort_id="c")
    fake.answer(
        "ListCohorts",
        lambda _: analytics_service_pb2.ListCohortsResponse(cohorts=[cohort], next_page_token=next(pages)),
    )

    assert [each.cohort_id for each in waiting_client.analytics.list_cohorts.each()] == ["c", "c"]


def test_many_threads_share_a_client(waiting_client: Client, fake: FakeServer) -> None:
    def calculate(number: int) -> float:
        components = mastery_pb2.Components(quiz=number / 100)
        answer = waiting_client.mastery.calculate_mastery(student_id=f"s{number}", components=components)
        return answer.mastery.components.quiz

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(calculate, range(100))) == [number / 100 for number in range(100)]


async def test_it_works_within_a_running_event_loop_which_it_holds_up(fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.5)

    with Client(fake.address) as client:
        assert client.mastery.get_mastery(student_id="s1").mastery.version == 1
        answer = await asyncio.to_thread(client.mastery.get_mastery, student_id="s1")

    assert answer.mastery.version == 1


def test_closing_ends_the_calls_of_other_threads(fake: FakeServer) -> None:
    fake.hang("GetMastery")
    client = Client(fake.address)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.mastery.get_mastery(student_id="s1")
        except MasteryError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not fake.calls:
        time.sleep(0.01)
    client.close()
    thread.join(timeout=10)

    assert [str(error) for error in raised] == ["CANCELLED: the client was closed meanwhile"]


def test_a_client_that_was_made_before_a_fork_says_so_in_the_child() -> None:
    script = """
import os
from mastery_client import Client
client = Client("127.0.0.1:1")
if (child := os.fork()) == 0:
    try:
        client.mastery.get_mastery(student_id="s1")
    except RuntimeError as error:
        os._exit(7 if "make it in the child" in str(error) else 1)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert run.stdout == "7\n", run.stderr


def test_clients_come_and_go(fake: FakeServer) -> None:
    fake.set_mastery("s1")
    for _ in range(5):
        with Client(fake.address) as client:
            client.mastery.get_mastery(student_id="s1")

    with pytest.raises(RuntimeError, match="closed"):
        client.mastery.get_mastery(student_id="s1")
    assert sum(thread.name == "mastery-client" for thread in threading.enumerate()) == 1
