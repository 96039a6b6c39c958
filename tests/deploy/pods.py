"""Containers of rendered pods as processes of this machine: their arguments, their variables, and their probes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.deploy.chart import rendered, tool
from tests.real.processes import ending_with_us, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0
"""Seconds; a start takes two on an idle machine."""
UNHEALTHY = 4
"""The probe's exit status for an answer other than SERVING."""
PORT_VARIABLES = {
    "MASTERY_GRPC_PORT",
    "MASTERY_GRPC_HEALTH_PORT",
    "MASTERY_INGEST_HEALTH_PORT",
    "MASTERY_METRICS_PORT",
}


@dataclass(frozen=True)
class Pod:
    """A running container. Its ports are others here than in the cluster, where each pod has all to itself."""

    process: subprocess.Popen[str]
    container: dict[str, Any]
    ports: dict[int, int]
    log: Path

    def probe(self, name: str) -> bool:
        """Probes as kubelet would; returns whether the probe is passed."""
        probe = self.container[name]
        status = self.asked(probe["grpc"]["port"], probe["grpc"]["service"])
        assert status in (0, UNHEALTHY), f"{name} was not answered: {status}"
        return status == 0

    def asked(self, port: int, service: str) -> int:
        """Returns the exit status of the real probe."""
        assert self.process.poll() is None, self.log.read_text()
        return ask(self.ports[port], service)

    def until(self, name: str, *, passed: bool) -> None:
        """Returns once the probe is passed, or is not any more."""
        deadline = time.monotonic() + PATIENCE
        while self.probe(name) is not passed:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def until_started(self) -> None:
        """Returns once the startup probe is passed; before it is, there may be nobody to ask."""
        grpc = self.container["startupProbe"]["grpc"]
        deadline = time.monotonic() + PATIENCE
        while self.asked(grpc["port"], grpc["service"]) != 0:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


def ask(port: int, service: str) -> int:
    """Returns the exit status of the real probe, which waits longer here than kubelet does."""
    options = [f"-addr=127.0.0.1:{port}", f"-service={service}", "-connect-timeout=10s", "-rpc-timeout=10s"]
    return subprocess.run([tool("grpc-health-probe"), *options], capture_output=True, check=False).returncode


@contextmanager
def running(values: str, component: str, directory: Path, **given: str) -> Iterator[Pod]:
    """Runs a container of the chart with one of the value sets; what is given stands in for what is not here."""
    container, told = rendered(values).container(component), rendered(values).environment(component)
    numbers = [each["containerPort"] for each in container["ports"]]
    ports = dict(zip(numbers, free_ports(len(numbers)), strict=True))
    moved = {name: str(ports[int(told[name])]) for name in PORT_VARIABLES & told.keys()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
    log = directory / f"{component}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mastery_grpc", *container["args"]],
            env=clean | told | moved | {"MASTERY_GRPC_HOST": "127.0.0.1"} | given,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    with ending_with_us(process):
        yield Pod(process, container, ports, log)
