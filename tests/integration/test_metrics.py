"""What Prometheus reads of a running server."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from mastery_grpc.telemetry.process import FAREWELL_SECONDS
from tests.integration.serving import connected, eventually, failure_of
from tests.integration.test_server_process import DRAIN, Server, assert_one_clear_line, serving, stopped
from tests.real.processes import free_ports
from tests.real.redis_servers import RedisServer

MOST_CALLS = 200
"""Each goes to one of two processes; all of so many to the same one, never."""


def metrics_ports(server: Server) -> list[int]:
    return [entry["port"] for entry in server.entries() if entry["event"] == "serving metrics"]


async def samples(port: int, name: str) -> list[Sample]:
    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return str(response.read(), "utf-8")

    page = await asyncio.to_thread(read)
    return [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    ]


async def breaker_states(port: int) -> dict[tuple[str, str], float]:
    """Returns by dependency and state what is shown."""
    return {
        (sample.labels["dependency"], sample.labels["state"]): sample.value
        for sample in await samples(port, "mastery_circuit_breaker_state")
    }


async def test_an_open_breaker_is_seen(redis_url: str, redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path, MASTERY_BREAKER_OPEN_SECONDS="30") as (server, engine):
        [port] = metrics_ports(server)
        closed = {("redis", "closed"): 1, ("redis", "open"): 0, ("redis", "half_open"): 0}
        assert await breaker_states(port) == closed
        redis_server.kill()
        client = engine.client()

        async def opened() -> bool:
            await failure_of(client.get("nobody"))
            return await breaker_states(port) == closed | {("redis", "closed"): 0, ("redis", "open"): 1}

        await eventually(opened, within=20)


async def test_the_counts_of_several_processes_are_had_from_their_ports_and_add_up(
    redis_url: str, tmp_path: Path
) -> None:
    first = two_free_ports_in_a_row()
    ports = [first, first + 1]
    given = {"MASTERY_GRPC_WORKERS": "2", "MASTERY_METRICS_PORT": str(first)}
    async with serving(redis_url, tmp_path, **given) as (server, _):

        async def both_show() -> bool:
            return sorted(metrics_ports(server)) == ports

        await eventually(both_show)
        calls = 0
        counted: list[float] = []
        while len(counted) < 2 or not all(counted):
            assert calls < MOST_CALLS
            async with connected(server.port) as engine:  # a new connection: one of the processes takes it
                await engine.client().batch("nobody")
            calls += 1
            counted = [
                sum(sample.value for sample in await samples(port, "rpc_server_call_duration_seconds_count"))
                for port in ports
            ]
        assert sum(counted) == calls
        instances = {
            sample.labels["service_instance_id"] for port in ports for sample in await samples(port, "target_info")
        }
        assert len(instances) == 2


async def test_a_taken_port_of_one_of_several_processes_ends_the_start_with_one_clear_line() -> None:
    first = two_free_ports_in_a_row()
    with socket.create_server(("127.0.0.1", first + 1)):
        ended = await asyncio.to_thread(
            stopped, MASTERY_GRPC_WORKERS="2", MASTERY_METRICS_PORT=str(first), MASTERY_GRPC_PORT="0"
        )
    assert_one_clear_line(ended, rf"MASTERY_METRICS_PORT: .*{first + 1}: .*in use")


def test_a_protocol_of_otlp_that_is_not_spoken_ends_the_start_with_one_clear_line() -> None:
    ended = stopped(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf"
    )
    assert_one_clear_line(ended, "OTEL_EXPORTER_OTLP_PROTOCOL: only grpc is spoken")


async def test_a_collector_that_is_away_harms_no_call_and_no_end_and_is_said_in_json(
    redis_url: str, tmp_path: Path
) -> None:
    [nobody] = free_ports(1)
    given = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nobody}",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    async with serving(redis_url, tmp_path, **given) as (server, engine):

        async def is_said() -> bool:
            await engine.client().batch("nobody")
            return any("opentelemetry" in entry.get("logger", "") for entry in server.entries())

        await eventually(is_said, within=20)
        server.process.terminate()
        assert await server.ended(within=DRAIN + 2 * FAREWELL_SECONDS + 5) == 0


def two_free_ports_in_a_row() -> int:
    while True:
        [port] = free_ports(1)
        with suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port
