"""What a comparison of cohorts costs at the server, against reading the same masteries and not looking at them."""

import time
from contextlib import ExitStack
from typing import Any

import grpc
import redis

from mastery.v1 import analytics_service_pb2 as pb
from mastery.v1.analytics_service_pb2_grpc import AnalyticsServiceStub
from mastery_grpc.application.callers import Role
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from tests.load.bench import PROGRAM, SECRET, Figures, credentials, fill, medians, say, started, until_serving
from tests.real.processes import free_ports, scratch_directory
from tests.real.redis_servers import standalone

SIZES = (1000, 5000, 10_000)
PORTION = 500


def bench_cohorts(rounds: int) -> Figures:
    """Two cohorts compared, and one student with a cohort, for cohorts of several sizes.

    One call at a time over a socket; the answers are small, so what the client waits for is the server.
    """
    most = max(SIZES)
    say(f"cohorts: {rounds} rounds for each size")
    with ExitStack() as stack:
        redis_server = stack.enter_context(standalone())
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        say(f"  {2 * most:,} students are made")
        fill(redis_server, 2 * most)
        [port] = free_ports(1)
        settings = {
            "MASTERY_REDIS_URL": redis_server.url,
            "MASTERY_GRPC_HOST": "127.0.0.1",
            "MASTERY_GRPC_PORT": str(port),
            "MASTERY_METRICS_PORT": "0",
            "MASTERY_JWT_SECRET": SECRET,
        }
        server = stack.enter_context(started([str(PROGRAM), "serve"], settings, directory))
        until_serving(port)
        client = stack.enter_context(redis.Redis(port=redis_server.port))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        stub: Any = AnalyticsServiceStub(channel)
        metadata = credentials(Role.ADMIN)
        for size in SIZES:
            for name, first in (("first", 0), ("second", most)):
                members = pb.StudentList(student_ids=[f"s{number}" for number in range(first, first + size)])
                cohort = pb.CreateCohortRequest(
                    cohort_id=f"{name}-{size}", display_name=f"{name} {size}", listed=members
                )
                stub.CreateCohort(cohort, metadata=metadata, timeout=30)
        found: dict[str, tuple[list[float], list[float]]] = {}
        for round_ in range(rounds + 1):
            for size in SIZES:
                two = pb.CompareCohortsRequest(first_cohort_id=f"first-{size}", second_cohort_id=f"second-{size}")
                one = pb.CompareToCohortRequest(student_id="s1", cohort_id=f"first-{size}")
                calls = {
                    f"CompareCohorts, {size:,} and {size:,} members": (stub.CompareCohorts, two, (0, most)),
                    f"CompareToCohort, {size:,} members": (stub.CompareToCohort, one, (0,)),
                }
                for title, (method, request, firsts) in calls.items():
                    cpu, start = server.cpu_seconds(), time.perf_counter()
                    method(request, metadata=metadata, timeout=30)
                    took, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
                    start = time.perf_counter()
                    for first in firsts:
                        read(client, first, size)
                    bare = time.perf_counter() - start
                    if round_:  # the first one only warms up
                        say(f"  round {round_}: {title}: {took * 1e3:.0f} ms, {cpu * 1e3:.0f} of its processor")
                        ours, theirs = found.setdefault(title, ([], []))
                        ours.append(took * 1e3)
                        theirs.append(bare * 1e3)
    return {title: medians("ms", ours, theirs) for title, (ours, theirs) in found.items()}


def read(client: redis.Redis, first: int, size: int) -> None:
    """The baseline: the same values, in portions of the same size, and not looked at."""
    wanted = [keys.current_mastery(StudentKey(f"s{number}")) for number in range(first, first + size)]
    for start in range(0, size, PORTION):
        client.mget(wanted[start : start + PORTION])
