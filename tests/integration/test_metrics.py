"""What Prometheus reads of a running server."""

import asyncio
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving import eventually, failure_of
from tests.integration.test_server_process import Server, serving
from tests.real.redis_servers import RedisServer


def metrics_ports(server: Server) -> list[int]:
    return [entry["port"] for entry in server.entries() if entry["event"] == "serving metrics"]


async def breaker_states(port: int) -> dict[tuple[str, str], float]:
    """Returns by dependency and state what is shown."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return str(response.read(), "utf-8")

    return {
        (sample.labels["dependency"], sample.labels["state"]): sample.value
        for family in text_string_to_metric_families(await asyncio.to_thread(read))
        if family.name == "mastery_circuit_breaker_state"
        for sample in family.samples
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


async def test_each_of_several_processes_shows_its_own_metrics(redis_url: str, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path, MASTERY_GRPC_WORKERS="2") as (server, _):

        async def both_show() -> bool:
            return len(set(metrics_ports(server))) == 2

        await eventually(both_show)
        for port in metrics_ports(server):
            assert ("redis", "closed") in await breaker_states(port)
