"""The command line against the engine itself, as far as that serves it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mastery_grpc.application.callers import Role
from mastery_grpc.simulation.learners import simulate_class
from tests.integration.every_method import served_methods
from tests.integration.serving import components, running_engine, token
from tests.integration.test_server_process import environment
from tests.real.redis_servers import RedisServer

CLASS_DAYS = 30
Command = Callable[..., Awaitable[tuple[int, str, str]]]


@asynccontextmanager
async def commanding(
    redis_url: str, folder: Path, role: Role = Role.ADMIN, *, begins: bool = True
) -> AsyncIterator[tuple[Command, set[str]]]:
    """Yields how to run a command, and the names of the services served. A student s0 begins if wanted."""
    (folder / "token").write_text(token(role))
    async with running_engine(redis_url) as engine:
        environment = {
            "MASTERYCTL_ADDRESS": f"127.0.0.1:{engine.port}",
            "MASTERYCTL_TOKEN_FILE": str(folder / "token"),
            "MASTERYCTL_CONFIG": str(folder / "none.toml"),
            "COLUMNS": "100",
        }
        (folder / "none.toml").touch()

        async def command(*arguments: str) -> tuple[int, str, str]:
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("masteryctl")),
                *arguments,
                cwd=folder,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), 60)
            return process.returncode or 0, output.decode(), errors.decode()

        if begins:
            await engine.client().calculate("s0", components=components(0.1))
        yield command, {name.partition(".")[0] for name in await served_methods(engine)}


@pytest.fixture
def events() -> list[dict[str, Any]]:
    """The events of a class of three, up to yesterday."""
    first_day: date = datetime.now(UTC).date() - timedelta(days=CLASS_DAYS)
    return list(simulate_class(seed=7, learners=3, first_day=first_day, days=CLASS_DAYS))


def write(file: Path, *events: dict[str, Any]) -> None:
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events))


async def test_a_class_is_sent_shown_forecast_and_watched(
    redis_url: str, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    write(tmp_path / "class.jsonl", *events)
    students = sorted({event["student_id"] for event in events})
    async with commanding(redis_url, tmp_path) as (command, served):
        sent = await command("events", "send", "class.jsonl")
        again = await command("events", "send", "class.jsonl", "-o", "json")
        shown = await command("student", "show", students[0])
        drawn = await command("student", "trajectory", students[0], "--days", "5")
        risk = await command("at-risk", *students, "nobody", "--all", "-o", "json")
        watched = await command("watch", *students, "--count", str(len(students)))
        history = await command("student", "history", students[0])

    assert sent == (0, f"{len(events)} events accepted, 0 of them sent before\n", "")
    assert json.loads(again[1])["duplicates"] == len(events)
    assert f"{students[0]}: 0." in shown[1]
    assert "in 7 days: 0." in shown[1]
    assert "•" in drawn[1]
    assert "░" in drawn[1]
    assert {each["student_id"] for each in json.loads(risk[1])} == {*students, "nobody"}
    assert {line.split()[1] for line in watched[1].splitlines()} == set(students)
    if "AnalyticsService" in served:
        assert history[0] == 0, history
        assert "days: mean 0." in history[1]
    else:
        assert history[0] == 7, history


async def test_lines_that_the_engine_refuses_are_reported(
    redis_url: str, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    good, bad = events[:2]
    write(tmp_path / "class.jsonl", good, bad | {"student_id": "no id"})
    async with commanding(redis_url, tmp_path, Role.SERVICE) as (command, _):
        code, output, _ = await command("events", "send", "class.jsonl", "--refused", "report.jsonl")

    assert (code, output.splitlines()[0]) == (1, "1 events accepted, 0 of them sent before")
    [refused] = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert (refused["line"], refused["reason"], refused["event_id"]) == (2, "INVALID_FIELD", bad["event_id"])
    assert "student_id" in refused["message"]


async def test_who_may_not_is_told_so(redis_url: str, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    write(tmp_path / "class.jsonl", *events)
    async with commanding(redis_url, tmp_path, Role.TEACHER) as (command, _):
        code, _, errors = await command("events", "send", "class.jsonl")
        unknown = await command("student", "show", "nobody")

    assert code == 4
    assert "(ROLE_NOT_ALLOWED); a token of another role is needed" in errors
    assert unknown[0] == 3
    assert "(STUDENT_NOT_FOUND)" in unknown[2]


async def test_a_student_is_exported_and_erased_and_the_audit_log_read(redis_url: str, tmp_path: Path) -> None:
    async with commanding(redis_url, tmp_path) as (command, _):
        answers = [
            await command("student", "export", "s0", "--file", "s0.jsonl"),
            await command("audit", "list", "--limit", "5", "-o", "json"),
            await command("audit", "verify"),
            await command("student", "erase", "s0", "--dry-run"),
            await command("student", "erase", "s0", "--yes"),
        ]
        gone = await command("student", "show", "s0")

    assert [code for code, *_ in answers] == [0] * 5, answers
    assert "s0.jsonl is whole" in answers[0][1]
    assert json.loads(answers[1][1])
    assert answers[2][1].startswith("intact")
    assert "receipt" in answers[4][1]
    assert gone[0] == 3


async def test_what_was_exported_can_be_put_back_into_an_empty_engine(
    redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with commanding(redis_url, tmp_path) as (command, _):
        before = await command("student", "show", "s0")
        await command("student", "export", "s0")
    redis_server.flush()

    put_back = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("mastery-grpc")),
        *("import", "s0.jsonl"),
        cwd=tmp_path,
        env=environment(redis_url, 0),
    )
    assert await asyncio.wait_for(put_back.wait(), 60) == 0
    async with commanding(redis_url, tmp_path, begins=False) as (command, _):
        after = await command("student", "show", "s0")

    assert after[1].splitlines()[:6] == before[1].splitlines()[:6]
