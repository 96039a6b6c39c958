"""The processes of docs/operations/install.md, started by the commands of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.processes import free_ports

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "install.md"
START_SECONDS = 60
WAITING = f"for second in $(seq {START_SECONDS}); do COMMAND && break; sleep 1; done; COMMAND"
STOPPING = "\nkill -TERM $(jobs -p)\nwait\n"


def test_the_commands_for_plain_processes_work_as_they_stand(
    kafka_broker: KafkaBroker, topics: MasteryTopics, redis_url: str, tmp_path: Path
) -> None:
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} creates topics by itself")
    [section] = re.findall(r"^## Processes\n(.*?)^## ", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    install, create, start, ask = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert install == "pip install 'mastery-grpc[server]'\n"
    serve, ingest = free_ports(2)
    kafka_broker.delete_topics(*topics.all)
    ask_server, ask_worker = ask.replace("50052", str(ingest)).splitlines()
    probes = [f"{ask_server} --address 127.0.0.1:{serve}", ask_worker]
    script = create + start + "\n".join(WAITING.replace("COMMAND", probe) for probe in probes) + STOPPING
    for page, here in (
        ("redis://127.0.0.1:6379/0", redis_url),
        ("127.0.0.1:9092", kafka_broker.bootstrap_servers),
    ):
        script = script.replace(page, here)
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MASTERY_KAFKA_REQUESTS_TOPIC": topics.requests.name,
        "MASTERY_KAFKA_RESULTS_TOPIC": topics.results.name,
        "MASTERY_KAFKA_DLQ_TOPIC": topics.dead_letters.name,
        "MASTERY_GRPC_HOST": "127.0.0.1",
        "MASTERY_GRPC_PORT": str(serve),
        "MASTERY_INGEST_HEALTH_PORT": str(ingest),
        "MASTERY_METRICS_PORT": "0",
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
    output = tmp_path / "errors.txt"
    with output.open("w") as errors:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=others | own,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=180,
            check=False,
        )

    assert done.returncode == 0, (done.stdout, output.read_text())
    assert [line for line in done.stdout.splitlines() if line.endswith(": created")] == [
        f"{topic.name}: created" for topic in topics.all
    ]
    assert done.stdout.count(": as planned") == 3
    assert done.stdout.endswith("SERVING\n")
    assert output.read_text().count('"stopping"') == 2
