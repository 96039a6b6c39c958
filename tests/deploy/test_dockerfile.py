"""The Dockerfile keeps to the rules that keep an image safe and its build repeatable."""

import re
from pathlib import Path

import pytest

from tests.deploy.image import DOCKERFILE, REPOSITORY

DEPLOYMENT_FILES = (
    "Dockerfile",
    ".dockerignore",
    "compose.yaml",
    *("deploy/passwd", "deploy/prometheus.yml"),
    *(str(each.relative_to(REPOSITORY)) for each in (REPOSITORY / "helm").rglob("*") if each.is_file()),
)


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions with their arguments, each on one line."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text())
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    starts = [index for index, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert len(starts) == 2
    return instructions()[starts[-1] :]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_it_begins_with_one_image_of_a_fixed_day_and_ends_with_an_empty_one() -> None:
    [base, final] = arguments_of("FROM")
    assert re.fullmatch(r"debian:trixie-\d{8}-slim AS build", base)
    assert final == "scratch"


def test_the_user_is_a_number_other_than_root() -> None:
    [user] = [arguments for name, arguments in last_stage() if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    number = user.partition(":")[0]
    helpers = (REPOSITORY / "helm/mastery-engine/templates/_pod.tpl").read_text()
    assert f"runAsUser: {number}\n" in helpers
    assert f":x:{number}:" in (REPOSITORY / "deploy/passwd").read_text()


def test_the_last_stage_takes_files_and_runs_nothing() -> None:
    names = [name for name, _ in last_stage()]
    assert not {"RUN", "ADD", "SHELL"} & set(names)
    assert names.count("COPY") == 1
    for name, arguments in last_stage():
        if name in ("ENTRYPOINT", "CMD"):
            assert arguments.startswith("["), "there is no shell to be started"


def test_nothing_is_added_from_the_net_but_packages() -> None:
    assert arguments_of("ADD") == []
    for command in arguments_of("RUN"):
        assert not re.search(r"\b(curl|wget|git)\b", command), command


def test_versions_are_those_that_were_tested() -> None:
    [install] = [command for command in arguments_of("RUN") if "[server]" in command]
    assert "-c constraints.txt" in install


def test_no_secret_is_an_argument_or_a_variable() -> None:
    assert arguments_of("ARG") == []
    for variables in arguments_of("ENV"):
        assert not re.search(r"(?i)secret|password|token|_key", variables), variables


@pytest.mark.parametrize("file", DEPLOYMENT_FILES)
def test_no_file_names_a_registry_nor_a_moving_tag(file: str) -> None:
    text = Path(REPOSITORY, file).read_text()
    assert not re.search(r"https?://(?!json-schema\.org/)|index-url|\b(docker|ghcr|gcr|quay)\.io\b", text)
    assert not re.search(r":latest\b", text)
