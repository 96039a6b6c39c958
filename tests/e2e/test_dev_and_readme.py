"""`mastery-grpc dev` as a newcomer meets it, and the README's commands as they stand there."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.processes import free_ports

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 60.0


class DevRun:
    """One run of `dev` in a folder of its own, with its output in a file."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        self._output = folder / "output.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [Path(sys.executable).with_name("mastery-grpc"), "dev", "--learners", "6", "--speed", "4"],
                cwd=folder,
                env=environment | {"MASTERY_GRPC_PORT": str(port)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while text not in self.output:
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=40)

    def end(self) -> None:
        if self._process.poll() is None:
            self.stop()


@contextmanager
def dev_run(folder: Path) -> Iterator[DevRun]:
    [port] = free_ports(1)
    run = DevRun(folder, port)
    try:
        run.wait_for("events applied")
        yield run
    finally:
        run.end()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository to a command, with data of its own."""
    (tmp_path / "clients").symlink_to(REPOSITORY / "clients")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    return tmp_path


def shell(script: str, folder: Path, *, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def need_grpcurl() -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed")


def test_the_commands_that_dev_prints_work_as_printed(checkout: Path) -> None:
    need_grpcurl()
    with dev_run(checkout) as run:
        commands = [line for line in run.output.splitlines() if re.match(r"grpcurl|\S*python", line)]
        answers = {
            command: shell(f"timeout --preserve-status 3 {command}" if "Watch" in command else command, checkout)
            for command in commands
        }

    assert len(commands) == 6
    for command, answer in answers.items():
        assert "student_01" in answer.stdout or "mastery.v1.MasteryService" in answer.stdout, (command, answer)
        assert answer.returncode in (0, 143), (command, answer)


def test_the_commands_of_the_readme_work_as_they_stand(checkout: Path) -> None:
    need_grpcurl()
    readme = (REPOSITORY / "README.md").read_text()
    [script] = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "grpcurl" in block]
    with dev_run(checkout) as run:
        here = script.replace("50051", str(run.port)).replace("--token", f"--address 127.0.0.1:{run.port} --token")
        answer = shell(here, checkout)

    assert answer.returncode == 0, answer
    assert '"mastery_score"' in answer.stdout or '"masteryScore"' in answer.stdout
    assert "SERVING" in answer.stdout
    assert "predicted_score" in answer.stdout
    assert "completion" in answer.stdout


def test_ctrl_c_leaves_nothing_behind_and_the_next_run_finds_the_data(checkout: Path) -> None:
    with dev_run(checkout) as run:
        time.sleep(3)  # let the class come some way
        assert run.stop() == 0
        assert "stopped; the data is kept" in run.output
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(checkout) not in processes

    with dev_run(checkout) as again:
        assert "welcome back" in again.output
        first_line = next(line for line in again.output.splitlines() if "events applied" in line)
        assert int(first_line.split()[1]) > 20


def test_the_make_targets_of_the_readme_exist() -> None:
    readme, makefile = (REPOSITORY / "README.md").read_text(), (REPOSITORY / "Makefile").read_text()

    named = set(re.findall(r"`?\$? ?make ([a-z0-9-]+)`?", readme))

    assert {"run", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
