"""`mastery-grpc audit` tells whether the logs are as they were written."""

import asyncio
import os
import subprocess
import sys

from mastery_grpc.storage import keys
from tests.integration.serving import quiz_event, running_engine
from tests.real.redis_servers import RedisServer

AUDIT_KEY = "a key for the audit log that only the tests know"


async def _audit(redis_url: str, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"MASTERY_REDIS_URL": redis_url, "MASTERY_AUDIT_KEY": AUDIT_KEY}
    command = [sys.executable, "-m", "mastery_grpc", "audit", *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


async def test_the_command_finds_logs_intact_and_then_where_one_was_tampered_with(
    redis_server: RedisServer,
    redis_url: str,
) -> None:
    async with running_engine(redis_url, audit_key=AUDIT_KEY) as engine:
        for school_id in ("", "north"):
            await engine.client(school_id=school_id).ingest(quiz_event())
            await engine.client(school_id=school_id).get()
    code, told = await _audit(redis_url)

    assert code == 0
    assert told.splitlines() == [
        "the default school: 2 entries checked, intact",
        "north: 2 entries checked, intact",
    ]

    with redis_server.client() as redis:
        redis.xdel(keys.audit_log("north"), "1-0")
    code, told = await _audit(redis_url)

    assert code == 1
    assert "the default school: 2 entries checked, intact" in told
    assert "north: 0 entries checked, out_of_sequence at 1" in told
    assert (await _audit(redis_url, "--school", ""))[0] == 0
