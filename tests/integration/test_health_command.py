"""`mastery-grpc health` tells how a process is, by its word and by its exit status."""

import asyncio
import subprocess
import sys

from tests.integration.serving import running_engine
from tests.real.processes import free_ports
from tests.real.redis_servers import RedisServer


async def health(port: int, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "mastery_grpc", "health", *arguments, "--address", f"127.0.0.1:{port}"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


async def test_a_server_is_serving_until_redis_is_away(redis_url: str, redis_server: RedisServer) -> None:
    async with running_engine(redis_url) as engine:
        assert await health(engine.port) == (0, "SERVING")
        assert await health(engine.port, "mastery.v1.MasteryService") == (0, "SERVING")
        assert await health(engine.port, "mastery.v1.Nothing") == (1, "NOT_FOUND")
        redis_server.kill()
        await engine.until_ready(ready=False)
        assert await health(engine.port) == (1, "NOT_SERVING")
        assert await health(engine.port, "liveness") == (0, "SERVING")


async def test_where_nobody_listens_the_answer_is_a_status_too() -> None:
    assert await health(free_ports(1)[0]) == (1, "UNAVAILABLE")
