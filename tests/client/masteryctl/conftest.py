"""The command line as a user has it, on the fake server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mastery_client.testing import FakeServer
from masteryctl.cli import cli
from tests.client.conftest import TOKEN

Run = Callable[..., Result]


@pytest.fixture
def run(fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder of its own, with a profile of the fake server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    config = tmp_path / "config.toml"
    config.write_text(
        f'default = "fake"\n[profiles.fake]\naddress = "{fake.address}"\ntoken_file = "{tmp_path / "token"}"\n'
    )
    monkeypatch.setenv("MASTERYCTL_CONFIG", str(config))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("PROFILE", "ADDRESS", "TOKEN", "TOKEN_FILE", "CA", "PLAINTEXT", "SCHOOL"):
        monkeypatch.delenv(f"MASTERYCTL_{name}", raising=False)

    def run(*arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert TOKEN not in result.output
        return result

    return run
