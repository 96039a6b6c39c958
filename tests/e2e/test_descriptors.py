"""The published descriptor set is all that a caller needs of a server without reflection."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from hatch_build import ROOT, descriptors
from tests.e2e.test_dev_and_readme import need_grpcurl
from tests.integration.serving import running_engine, token


@pytest.fixture(scope="module")
def protoset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("descriptors") / "mastery-v1.protoset"
    descriptors(ROOT / "protos", file)
    return file


async def grpcurl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(
        subprocess.run, ["grpcurl", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


async def test_grpcurl_calls_a_server_without_reflection(redis_url: str, protoset: Path) -> None:
    need_grpcurl()
    async with running_engine(redis_url, grpc_reflection=False) as engine:
        address = f"127.0.0.1:{engine.port}"
        components = {"completion": 1, "quiz": 0.5, "quality": 0.5, "consistency": 0.5}
        call = ["-plaintext", "-protoset", str(protoset), "-H", f"authorization: Bearer {token()}"]
        calculated = await grpcurl(
            *call,
            *("-d", json.dumps({"student_id": "s1", "components": components})),
            *(address, "mastery.v1.MasteryService/CalculateMastery"),
        )
        health = await grpcurl("-plaintext", "-protoset", str(protoset), address, "grpc.health.v1.Health/Check")
        without = await grpcurl("-plaintext", address, "grpc.health.v1.Health/Check")

    assert json.loads(calculated.stdout)["mastery"]["masteryScore"] == pytest.approx(0.7), calculated.stderr
    assert json.loads(health.stdout) == {"status": "SERVING"}
    assert "does not support the reflection API" in without.stderr


async def test_the_set_lists_every_service_and_tells_what_the_protos_say(protoset: Path) -> None:
    need_grpcurl()
    listed = await grpcurl("-protoset", str(protoset), "list")
    told = await grpcurl("-protoset", str(protoset), "describe", "mastery.v1.MasteryService.GetMastery")

    ours = {path.stem.removesuffix("_service") for path in (ROOT / "protos/mastery/v1").glob("*_service.proto")}
    expected = {f"mastery.v1.{name.title()}Service" for name in ours} | {"grpc.health.v1.Health"}
    assert set(listed.stdout.split()) == expected
    assert "//" in told.stdout, told
