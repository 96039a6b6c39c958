"""What the README states and the tests rely on is the same."""

import re
from pathlib import Path

import pytest
import typer

from mastery_client.testing import FakeServer
from mastery_grpc.commands import cli
from mastery_grpc.settings import PREFIX, Settings
from tests.real.redis_servers import PRODUCT_RIGHTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = set(re.findall(r"^mastery-grpc ([a-z-]+)", README, re.MULTILINE))


def test_the_rights_in_redis_are_those_that_the_tests_grant() -> None:
    assert f"`{PRODUCT_RIGHTS}`" in " ".join(README.split())


def test_every_command_that_is_shown_is_there() -> None:
    known = typer.main.get_command(cli)
    assert len(COMMANDS) > 8
    assert set(getattr(known, "commands", ())) >= COMMANDS


@pytest.mark.parametrize("name", sorted(set(re.findall(rf"`({PREFIX}(?!TEST_)[A-Z0-9_]+)`", README))))
def test_every_setting_that_is_named_is_one(name: str) -> None:
    assert name.removeprefix(PREFIX).lower() in Settings.model_fields


@pytest.mark.parametrize("page", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_every_page_that_is_linked_is_there(page: str) -> None:
    assert (ROOT / page).exists()


def test_the_client_is_used_as_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "token").write_text("a-token")
    with FakeServer() as server:
        mastery = server.set_mastery("student_12345", completion=1.0, quiz=0.5, quality=0.5, consistency=1.0)
        here = script.replace("mastery.example.org:443", server.address)
        exec(here.replace("/run/secrets/mastery/token", str(tmp_path / "token")), {})
    assert capsys.readouterr().out == f"{mastery.mastery_score}\n"
