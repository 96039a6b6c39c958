"""The image built from the Dockerfile: small, with nothing in it that is not needed, run as the chart runs it."""

import asyncio
import json
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.image import DOCKERFILE, Image, built_image
from tests.deploy.pods import PATIENCE, ask
from tests.integration.serving import SECRET, connected
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.processes import free_ports

MEGABYTE = 1_000_000
BUDGET = 200 * MEGABYTE
Process = subprocess.Popen[str]
SITE_PACKAGES = Path("opt/mastery/lib/python3.13/site-packages")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with built_image() as image:
        yield image


def size_of(path: Path) -> int:
    inodes = {(each.lstat().st_ino, each.lstat().st_size) for each in path.rglob("*")} | {
        (path.lstat().st_ino, path.lstat().st_size)
    }
    return sum(size for _, size in inodes)


def test_the_image_is_within_its_budget(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    packages = {each.name: size_of(each) for each in (image.root / SITE_PACKAGES).iterdir()}
    total, service = size_of(image.root), sum(packages.values())
    largest = sorted(packages.items(), key=lambda each: each[1], reverse=True)[:12]
    lines = [
        f"image: {total / MEGABYTE:.1f} MB of files, {image.size / MEGABYTE:.1f} MB by its manifest",
        f"  {(total - service) / MEGABYTE:.1f} MB Debian's Python, {service / MEGABYTE:.1f} MB the service:",
        *(f"  {size / MEGABYTE:6.1f} MB {name}" for name, size in largest),
    ]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert 100 * MEGABYTE < total < BUDGET  # less than that would be an image with something missing
    assert image.size < BUDGET


def test_nothing_is_in_it_that_an_intruder_would_look_for(image: Image) -> None:
    programs = {each.name for folder in ("usr/bin", "usr/sbin") for each in (image.root / folder).iterdir()}
    assert {"python3.13"} <= programs
    assert not programs & {"sh", "bash", "dash", "apt", "apt-get", "dpkg", "pip", "curl", "wget", "su", "mount"}
    assert not list((image.root / SITE_PACKAGES).glob("pip*"))
    for each in image.files():
        mode = each.lstat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID), each
        assert each.lstat().st_uid == 0, each
        assert not mode & stat.S_IWOTH, each


def test_scanners_find_out_which_packages_it_is_made_of(image: Image) -> None:
    noted = {each.name for each in (image.root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "libssl3t64", "python3.13-minimal"} <= noted
    assert "Package: libc6\n" in (image.root / "var/lib/dpkg/status.d/libc6").read_text()
    assert list((image.root / SITE_PACKAGES).glob("grpcio-*.dist-info"))


def test_a_start_has_nothing_to_compile(image: Image) -> None:
    for module in ("mastery_grpc/app", "mastery_grpc/rpc/server", "grpc/__init__", "redis/client"):
        source = image.root / SITE_PACKAGES / f"{module}.py"
        assert (source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc").is_file(), module


def test_it_is_run_by_a_number_that_is_nobody(image: Image) -> None:
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["/opt/mastery/bin/mastery-grpc"]
    assert image.config["Cmd"] == ["serve"]
    assert not [each for each in image.config["Env"] if "SECRET" in each or "KEY" in each]


def until_healthy(port: int, process: Process, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while ask(port, "") != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def user_of(process: Process) -> str:
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("Uid:")]
    return line.split()[1]


async def test_it_serves_on_a_read_only_root_and_stops_when_asked(
    image: Image, redis_url: str, tmp_path: Path
) -> None:
    port, metrics_port = free_ports(2)
    given = {
        "MASTERY_REDIS_URL": redis_url,
        "MASTERY_JWT_SECRET": SECRET,
        "MASTERY_GRPC_HOST": "127.0.0.1",
        "MASTERY_GRPC_PORT": str(port),
        "MASTERY_METRICS_PORT": str(metrics_port),
    }
    log = tmp_path / "serve.log"
    with image.running(image.config["Cmd"], log, **given) as process:
        await asyncio.to_thread(until_healthy, port, process, log)
        assert user_of(process) == "65532"
        async with connected(port) as engine:
            assert (await engine.client().calculate()).mastery.version == 1
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    assert not [line for line in log.read_text().splitlines() if json.loads(line)["level"] == "error"]


def test_it_ingests(
    image: Image, redis_url: str, kafka_broker: KafkaBroker, topics: MasteryTopics, tmp_path: Path
) -> None:
    port, metrics_port = free_ports(2)
    given = {
        "MASTERY_REDIS_URL": redis_url,
        "MASTERY_KAFKA_BOOTSTRAP_SERVERS": kafka_broker.bootstrap_servers,
        "MASTERY_KAFKA_REQUESTS_TOPIC": topics.requests.name,
        "MASTERY_KAFKA_TRANSACTIONS": str(kafka_broker.isolation),
        "MASTERY_GRPC_HOST": "127.0.0.1",
        "MASTERY_INGEST_HEALTH_PORT": str(port),
        "MASTERY_METRICS_PORT": str(metrics_port),
    }
    log = tmp_path / "ingest.log"
    with image.running(["ingest"], log, **given) as process:
        until_healthy(port, process, log)
        assert user_of(process) == "65532"
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_wrong_setting_ends_it_with_one_line(image: Image, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with image.running(["serve"], log, MASTERY_GRPC_HOST="127.0.0.1", MASTERY_GRPC_PORT="0") as process:
        assert process.wait(PATIENCE) != 0
    assert "MASTERY_JWT_SECRET: is not set" in log.read_text()


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    [everything, *kept] = [
        line for line in (DOCKERFILE.parent / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert everything == "*"
    sources = {line.removeprefix("!").partition("/")[0] for line in kept if line.startswith("!")}
    assert sources == {
        *(
            "pyproject.toml",
            "constraints.txt",
            "README.md",
            "hatch_build.py",
            "protos",
            "mastery_grpc",
            "clients",
            "deploy",
        )
    }
