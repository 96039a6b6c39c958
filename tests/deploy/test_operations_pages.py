"""The helm commands of the pages on installing and upgrading render the chart as they stand."""

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.chart import KUBERNETES, tool
from tests.deploy.image import REPOSITORY

PAGES = [
    REPOSITORY / "docs" / "operations" / "install.md",
    REPOSITORY / "docs" / "operations" / "upgrade.md",
    REPOSITORY / "helm" / "mastery-engine" / "README.md",
]
COMMANDS = [
    pytest.param(command, id=f"{page.parent.name}/{page.name}")
    for page in PAGES
    for command in re.findall(
        r"^helm (?:install|upgrade) .*$", page.read_text().replace("\\\n", " "), re.MULTILINE
    )
]
INSTALLED = ["--set", "secret.existing=mastery"]
"""What --reuse-values would find in the cluster."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_renders_the_chart(command: str) -> None:
    rendered = _rendered(command)
    full = "mastery-mastery-engine"
    deployments = {each["metadata"]["name"] for each in rendered if each["kind"] == "Deployment"}
    assert deployments == {full, f"{full}-worker"}
    for each in re.findall(r"deployment/(\S+)", PAGES[1].read_text()):
        assert each in deployments


def test_what_is_set_on_the_page_arrives_in_the_pods() -> None:
    [install] = [each.values[0] for each in COMMANDS if "REGISTRY" in str(each.values[0])]
    assert isinstance(install, str)
    [server] = [
        each
        for each in _rendered(install)
        if each["metadata"]["name"] == "mastery-mastery-engine" and each["kind"] == "Deployment"
    ]
    [container] = server["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "REGISTRY/mastery-grpc:0.1.0"
    assert {"secretRef": {"name": "mastery"}} in container["envFrom"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) == len(PAGES)


def _rendered(command: str) -> list[dict[str, Any]]:
    _, verb, *given = shlex.split(command)
    if verb == "upgrade":
        given = [each for each in given if each != "--reuse-values"] + INSTALLED
    done = subprocess.run(
        [tool("helm"), "template", *given, "--kube-version", KUBERNETES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]
