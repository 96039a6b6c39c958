"""Who may see the token, where it comes from, and what a call carries besides."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mastery_client import AsyncClient, Client, Tls, Unauthenticated, Unavailable
from mastery_client.channel import is_loopback, is_plaintext
from mastery_client.testing import FakeServer
from mastery_client.tokens import Token
from tests.client.conftest import TOKEN

# --- plaintext --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "127.9.9.9",
        "localhost:50051",
        "[::1]:50051",
        "dns:///localhost:50051",
        "dns:127.0.0.1:50051",
        "ipv4:127.0.0.1:50051,127.0.0.2:50051",
        "ipv6:[::1]:50051",
        "unix:/run/mastery.sock",
    ],
)
def test_this_machine_is_spoken_to_in_plaintext(address: str) -> None:
    assert is_loopback(address)
    assert is_plaintext(address, tls=None, plaintext=False)
    assert not is_plaintext(address, tls=Tls(), plaintext=False)


@pytest.mark.parametrize(
    "address",
    [
        "mastery.example.org:443",
        "10.0.0.1:50051",
        "dns:///mastery:50051",
        "dns://10.0.0.1/localhost:50051",
        "ipv4:127.0.0.1:50051,10.0.0.1:50051",
        "localhost.example.org:50051",
        "127.0.0.1.example.org:50051",
        "127.0.0.1@example.org:50051",
        "xds:///localhost",
        "0.0.0.0:50051",
        "",
    ],
)
def test_no_other_machine_is_spoken_to_in_plaintext_unless_allowed(address: str) -> None:
    assert not is_plaintext(address, tls=None, plaintext=False)
    assert is_plaintext(address, tls=None, plaintext=True)


def test_plaintext_and_tls_are_a_contradiction_that_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="either"):
        AsyncClient("mastery.example.org:443", tls=Tls(), plaintext=True)


async def test_a_token_does_not_reach_a_plaintext_server_that_should_have_tls(fake: FakeServer) -> None:
    # As a wrong address would: TLS is wanted, and the other side has none.
    async with AsyncClient(fake.address, token=TOKEN, tls=Tls()) as client:
        with pytest.raises(Unavailable):
            await client.mastery.get_mastery(student_id="s1")
    assert fake.calls == []


async def test_a_proxy_of_the_environment_does_not_see_what_goes_to_this_machine(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.set_mastery("s1")
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async with AsyncClient(fake.address, token=TOKEN) as client:
        await client.mastery.get_mastery(student_id="s1")


# --- the token --------------------------------------------------------------------------------------------


async def tokens_seen(
    fake: FakeServer, token: Token | None, *, change: Callable[[], Any] = lambda: None
) -> list[str]:
    """Makes two calls with a change between them and returns what the server saw."""
    fake.set_mastery("s1")
    async with AsyncClient(fake.address, token=token) as client:
        await client.mastery.get_mastery(student_id="s1")
        change()
        await client.mastery.get_mastery(student_id="s1")
    return [call.metadata.get("authorization", "") for call in fake.calls]


async def test_a_token_is_a_bearer_token(fake: FakeServer) -> None:
    assert await tokens_seen(fake, TOKEN) == [f"Bearer {TOKEN}"] * 2


async def test_without_a_token_none_is_sent(fake: FakeServer) -> None:
    assert await tokens_seen(fake, None) == ["", ""]


async def test_a_token_file_is_read_again_when_it_was_rewritten(fake: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")

    assert await tokens_seen(fake, file, change=lambda: file.write_text("second-one\n")) == [
        "Bearer first",
        "Bearer second-one",
    ]


async def test_a_token_file_is_read_again_when_its_folder_was_relinked(fake: FakeServer, tmp_path: Path) -> None:
    """As Kubernetes rotates a projected token: the same length, and perhaps the same second."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
        os.utime(tmp_path / name / "token", (0, 0))
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "old")

    def relink() -> None:
        (tmp_path / "next").symlink_to(tmp_path / "new")
        (tmp_path / "next").rename(link)

    assert await tokens_seen(fake, link / "token", change=relink) == ["Bearer old", "Bearer new"]


async def test_a_token_file_that_is_gone_for_a_moment_is_no_failure(fake: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")

    assert await tokens_seen(fake, file, change=file.unlink) == ["Bearer first"] * 2


async def test_a_token_is_asked_of_a_function_for_each_call(fake: FakeServer) -> None:
    tokens = iter(["first", "second"])

    assert await tokens_seen(fake, lambda: next(tokens)) == ["Bearer first", "Bearer second"]


async def test_a_token_is_asked_of_an_async_function(fake: FakeServer) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return TOKEN

    assert await tokens_seen(fake, token) == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("token", ["", "two words", "line\nfeed", "schlüssel"])
async def test_what_cannot_be_sent_is_no_token_and_is_not_shown(fake: FakeServer, token: str) -> None:
    async with AsyncClient(fake.address, token=token) as client:
        with pytest.raises(Unauthenticated) as raised:
            await client.mastery.get_mastery(student_id="s1")

    assert raised.value.reason == "TOKEN_MISSING"
    assert not token or token not in str(raised.value)
    assert fake.calls == []


async def test_a_token_file_that_is_not_there_is_named(fake: FakeServer, tmp_path: Path) -> None:
    async with AsyncClient(fake.address, token=tmp_path / "token") as client:
        with pytest.raises(Unauthenticated, match="token: No such file"):
            await client.mastery.get_mastery(student_id="s1")


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_token_is_never_shown(
    fake: FakeServer, kind: type[AsyncClient | Client], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.fail("GetMastery", "UNAUTHENTICATED", reason="TOKEN_INVALID")
    client = kind(fake.address, token=TOKEN)
    try:
        answer: Any = client.mastery.get_mastery(student_id="s1")
        if asyncio.iscoroutine(answer):
            await answer
    except Unauthenticated as error:
        told = f"{error} {error!r} {error.__cause__} {error.__cause__!r}"
    told += repr(client) + str(vars(client)) + str(vars(client._connection)) + caplog.text
    closed: Any = client.close()
    if asyncio.iscoroutine(closed):
        await closed

    assert fake.calls[0].metadata["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in told


# --- the rest ---------------------------------------------------------------------------------------------


async def test_the_trace_of_the_caller_goes_with_the_call_in_both_faces(fake: FakeServer) -> None:
    fake.set_mastery("s1")
    tracer = TracerProvider().get_tracer("test")

    async with AsyncClient(fake.address) as client:
        await client.mastery.get_mastery(student_id="s1")
        with tracer.start_as_current_span("mine") as span:
            await client.mastery.get_mastery(student_id="s1")
            with Client(fake.address) as waiting:
                waiting.mastery.get_mastery(student_id="s1")

    without, awaited, waited = (call.metadata.get("traceparent") for call in fake.calls)
    expected = trace.format_trace_id(span.get_span_context().trace_id)
    assert without is None
    assert expected in (awaited or "")
    assert expected in (waited or "")


async def test_calls_are_spread_over_the_addresses() -> None:
    with FakeServer() as first, FakeServer() as second:
        for fake in (first, second):
            fake.set_mastery("s1")
        async with AsyncClient(f"ipv4:{first.address},{second.address}") as client:
            while not (first.calls and second.calls):
                await client.mastery.get_mastery(student_id="s1")


PLAIN = {"mastery", "mastery_client", "grpc", "grpc_status", "google", "buf", "typing_extensions"}
"""What the plain install brings, beside the standard library."""
DONE_WITHOUT = {"opentelemetry", "grpc_health", "grpc_reflection", "grpc_tools", "org"}
"""What the client, gRPC and protobuf ask for, and work without."""


def test_the_plain_install_is_enough() -> None:
    script = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {PLAIN!r}:
            print(top)
            raise ImportError(name)
sys.meta_path.insert(0, Forbid())
from mastery_client import Client, NotFound
from mastery_client.testing import FakeServer
with FakeServer() as fake, Client(fake.address, token="any") as client:
    fake.set_mastery("s1", quiz=0.5)
    assert client.mastery.get_mastery(student_id="s1").mastery.components.quiz == 0.5
    try:
        client.mastery.get_mastery(student_id="s2")
    except NotFound as error:
        assert error.reason == "STUDENT_NOT_FOUND"
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) <= DONE_WITHOUT
