"""compose.yaml is what the Compose Specification takes, and runs the engine the way it asks to be run."""

import subprocess
from typing import Any

import pytest
import yaml

from mastery_grpc.settings import PREFIX, Settings
from tests.deploy.chart import tool
from tests.deploy.image import REPOSITORY

FILE = REPOSITORY / "compose.yaml"
OURS = ("server", "worker", "topics")


def compose() -> dict[str, Any]:
    written = yaml.safe_load(FILE.read_text())
    assert isinstance(written, dict)
    return written


def service(name: str) -> dict[str, Any]:
    found = compose()["services"][name]
    assert isinstance(found, dict)
    return found


def loaded(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Loads the file with the library that `docker compose` itself loads it with."""
    command = [tool("compose-go"), *arguments, "-" if text else str(FILE)]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def test_the_specification_takes_it() -> None:
    done = loaded("-no-interpolation")
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == {*OURS, "redis", "kafka", "prometheus"}


def test_the_specification_would_not_take_a_mistake() -> None:
    done = loaded("-no-interpolation", text=FILE.read_text().replace("depends_on:", "depend_on:"))
    assert done.returncode != 0
    assert "depend_on" in done.stderr


def test_without_a_secret_it_says_what_is_missing() -> None:
    done = loaded()
    assert done.returncode != 0
    assert "MASTERY_JWT_SECRET is missing a value: is not set; 32 bytes or more are needed" in done.stderr


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_nothing_but_their_work(name: str) -> None:
    ours = service(name)
    assert ours["read_only"] is True
    assert ours["tmpfs"] == ["/tmp"]
    assert ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]
    assert ours["environment"].keys() <= {PREFIX + field.upper() for field in Settings.model_fields}


def test_topics_are_there_before_anybody_reads_or_writes_them() -> None:
    assert service("topics")["restart"] == "no"
    assert service("topics")["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    for name in ("server", "worker"):
        assert service(name)["depends_on"] == {
            "redis": {"condition": "service_healthy"},
            "topics": {"condition": "service_completed_successfully"},
        }


def test_redis_keeps_what_it_was_given() -> None:
    assert "--appendonly yes --maxmemory-policy noeviction" in " ".join(service("redis")["command"])
    assert service("redis")["volumes"] == ["redis:/data"]


def test_nothing_listens_beyond_this_machine() -> None:
    ports = [port for name in compose()["services"] for port in service(name).get("ports", ())]
    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_image_of_others_has_a_fixed_version() -> None:
    for name in compose()["services"].keys() - set(OURS):
        tag = service(name)["image"].partition(":")[2]
        assert tag.removeprefix("v")[0].isdigit(), name
        assert tag.count(".") == 2, name


def test_prometheus_asks_server_and_worker() -> None:
    assert "./deploy/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in service("prometheus")["volumes"]
    config = yaml.safe_load((REPOSITORY / "deploy/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [static] = job["static_configs"]
    port = Settings.model_fields["metrics_port"].default
    assert static["targets"] == [f"server:{port}", f"worker:{port}"]


def test_the_file_says_how_it_is_started() -> None:
    assert "docker compose up" in FILE.read_text().splitlines()[0]
