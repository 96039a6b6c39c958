"""What batches cost against single calls, and how soon one is taken while a hundred are in flight."""

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
import uvloop

from mastery.v1 import batch_service_pb2 as pb
from mastery.v1 import mastery_pb2, mastery_service_pb2
from mastery.v1.batch_service_pb2_grpc import BatchServiceStub
from mastery.v1.mastery_service_pb2_grpc import MasteryServiceStub
from tests.load.bench import (
    PROGRAM,
    SECRET,
    Figures,
    Program,
    Run,
    comparison,
    credentials,
    fill,
    medians,
    say,
    started,
    until_serving,
)
from tests.real.processes import free_ports, scratch_directory
from tests.real.redis_servers import standalone

if TYPE_CHECKING:
    from mastery.v1.batch_service_pb2_grpc import BatchServiceAsyncStub

STUDENTS = 4000
ITEMS = 1000
IN_FLIGHT = 100
CALLS_AT_ONCE = 16
SUBMISSIONS = 40
"""That are measured, one after the other."""
BREATH_SECONDS = 0.1
"""Between two of them."""
OPERATIONS = {
    "calculate": pb.BATCH_OPERATION_CALCULATE,
    "recalculate": pb.BATCH_OPERATION_RECALCULATE,
    "predict": pb.BATCH_OPERATION_PREDICT,
    "recommend": pb.BATCH_OPERATION_RECOMMEND,
}
LAYOUTS = {"one process": (1,), "one process for calls, one for batches": (0, 1)}
"""How many chunks each process of a deployment works on at a time; the first one is called."""

_numbers = count()


def bench_batches(rounds: int, seconds: float) -> Figures:
    """Calculations by batch against the same by single calls; and submissions among 100 batches in flight."""
    say(f"batches: {rounds} rounds; batches of {ITEMS}")
    figures: Figures = {}
    with ExitStack() as stack:
        redis_server = stack.enter_context(standalone(append_only=True))
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        fill(redis_server, STUDENTS)
        for layout, chunks in LAYOUTS.items():
            with ExitStack() as processes:
                ports = free_ports(len(chunks))
                programs = [
                    processes.enter_context(
                        started(
                            [str(PROGRAM), "serve"],
                            {
                                "MASTERY_REDIS_URL": redis_server.url,
                                "MASTERY_GRPC_HOST": "127.0.0.1",
                                "MASTERY_GRPC_PORT": str(port),
                                "MASTERY_METRICS_PORT": "0",
                                "MASTERY_JWT_SECRET": SECRET,
                                "MASTERY_BATCH_CHUNKS_AT_ONCE": str(at_once),
                                "MASTERY_MAX_BATCHES_SERVICES": "0",
                                "MASTERY_GRPC_MAX_CONNECTION_AGE": "3600",
                            },
                            directory,
                        )
                    )
                    for port, at_once in zip(ports, chunks, strict=True)
                ]
                for port in ports:
                    until_serving(port)
                figures |= uvloop.run(measure(layout, ports[0], programs, rounds, seconds))
    return figures


async def measure(layout: str, port: int, programs: list[Program], rounds: int, seconds: float) -> Figures:
    say(f"  {layout}")
    figures: Figures = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        batches = Batches(channel)
        if len(programs) == 1:
            runs: dict[str, list[Run]] = {"batch": [], "single": []}
            for round_ in range(rounds):
                sides: dict[str, Callable[[], Awaitable[float]]] = {
                    "batch": lambda: batches.worked_off("calculate", 5),
                    "single": lambda: single_calls(channel, seconds),
                }
                for name in list(sides) if round_ % 2 == 0 else list(sides)[::-1]:
                    runs[name].append(await timed(programs[0], sides[name]))
                    say(f"    round {round_ + 1}: {name:<6} {runs[name][-1].text('item')}")
            figures |= comparison(
                "calculations by batch against single calls", "item", runs["batch"], runs["single"]
            )
            for operation in OPERATIONS:
                run = await timed(programs[0], partial(batches.worked_off, operation, 5))
                say(f"    {operation:<12} {run.text('item')}")
        idle, busy = [], []
        for round_ in range(rounds):
            idle.append(await batches.latencies_while_idle(SUBMISSIONS // 2))
            busy.append(await batches.latencies_in_flight(SUBMISSIONS))
            for name, latencies in (("nothing in flight", idle[-1]), (f"{IN_FLIGHT} in flight", busy[-1])):
                told = "  ".join(f"p{p} {percentile(latencies, p):,.0f} ms" for p in (50, 95, 100))
                say(f"    round {round_ + 1}: submissions with {name}: {told}  ({len(latencies)} of them)")
        both = [[percentile(latencies, 95) for latencies in side] for side in (busy, idle)]
        figures |= {f"SubmitBatch at p95, {IN_FLIGHT} in flight or none, {layout}": medians("ms", *both)}
    return figures


class Batches:
    """Hands in batches and knows how long that took."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: BatchServiceAsyncStub = BatchServiceStub(channel)
        self._terms: dict[str, Any] = {"metadata": credentials(), "timeout": 30}

    async def worked_off(self, operation: str, number: int) -> float:
        """Hands in so many batches and returns how many items they had, once all have ended."""
        made = [await self.submit(operation) for _ in range(number)]
        await asyncio.gather(*(self.ended(batch_id) for batch_id, _ in made))
        return number * ITEMS

    async def latencies_while_idle(self, number: int) -> list[float]:
        latencies = []
        for _ in range(number):
            batch_id, latency = await self.submit("calculate")
            latencies.append(latency)
            await self.ended(batch_id)
        return latencies

    async def latencies_in_flight(self, number: int) -> list[float]:
        """Returns how long submissions took while many other batches were in flight, in milliseconds."""
        in_flight: dict[str, asyncio.Task[None]] = {}
        latencies: list[float] = []

        def land(batch_id: str, task: asyncio.Task[None]) -> None:
            in_flight.pop(batch_id, None)

        while len(latencies) < number:
            is_full = len(in_flight) >= IN_FLIGHT
            batch_id, latency = await self.submit("calculate")
            in_flight[batch_id] = task = asyncio.create_task(self.ended(batch_id))
            task.add_done_callback(partial(land, batch_id))
            if is_full:
                latencies.append(latency)
                await asyncio.sleep(BREATH_SECONDS)
        left = dict(in_flight)
        for batch_id in left:
            await self.cancel(batch_id)
        await asyncio.gather(*left.values())
        return latencies

    async def cancel(self, batch_id: str) -> None:
        with suppress(grpc.aio.AioRpcError):  # it may have ended meanwhile
            await self._stub.CancelBatch(pb.CancelBatchRequest(batch_id=batch_id), **self._terms)

    async def submit(self, operation: str) -> tuple[str, float]:
        request = pb.SubmitBatchRequest(
            operation=OPERATIONS[operation],
            items=[
                pb.BatchItem(student_id=f"s{number % STUDENTS}", components=some_components(number))
                for number in (next(_numbers) for _ in range(ITEMS))
            ],
            request_id=str(uuid.uuid4()),
        )
        began = time.perf_counter()
        batch = (await self._stub.SubmitBatch(request, **self._terms)).batch
        return batch.batch_id, 1000 * (time.perf_counter() - began)

    async def ended(self, batch_id: str) -> None:
        terms = self._terms | {"timeout": 600}
        async for response in self._stub.WatchBatch(pb.WatchBatchRequest(batch_id=batch_id), **terms):
            last = response.batch
        assert last.state in (pb.BATCH_STATE_SUCCEEDED, pb.BATCH_STATE_CANCELLED)
        assert last.failed_count == 0


async def single_calls(channel: grpc.aio.Channel, seconds: float) -> float:
    """Calculates by single calls for some time; returns how many there were."""
    stub: Any = MasteryServiceStub(channel)
    terms: dict[str, Any] = {"metadata": credentials(), "timeout": 30}
    end, calls = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal calls
        while time.perf_counter() < end:
            number = next(_numbers)
            request = mastery_service_pb2.CalculateMasteryRequest(
                student_id=f"s{number % STUDENTS}", components=some_components(number)
            )
            await stub.CalculateMastery(request, **terms)
            calls += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLS_AT_ONCE):
            group.create_task(client())
    return calls


async def timed(program: Program, work: Callable[[], Awaitable[float]]) -> Run:
    began, cpu = time.perf_counter(), program.cpu_seconds()
    items = await work()
    elapsed, cpu = time.perf_counter() - began, program.cpu_seconds() - cpu
    return Run(items / elapsed, cpu / items * 1e6)


def some_components(number: int) -> mastery_pb2.Components:
    value = number % 101 / 100
    return mastery_pb2.Components(completion=value, quiz=value, quality=value, consistency=value)


def percentile(values: list[float], percent: int) -> float:
    if percent == 100 or len(values) < 2:
        return max(values)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
