"""Everything held about a student, exported over gRPC and put into an empty engine."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToJson

from mastery.v1 import compliance_service_pb2 as pb
from mastery.v1.compliance_service_pb2_grpc import ComplianceServiceStub
from mastery_grpc.application.callers import Role
from tests.integration.every_method import answers, request_for, served_methods
from tests.integration.serving import Engine, failure_of, quiz_event, running_engine
from tests.real.redis_servers import RedisServer

OWN = ("snapshot", "event", "processing_record", "activity", "prediction", "learning_path", "feedback")


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    """Of a student about whom there is something of every kind, and of another one."""
    async with running_engine(redis_url) as engine:
        now = datetime.now(UTC)
        events = [quiz_event(n % 5, 5, number=n, time=now - timedelta(days=n)) for n in range(1, 9)]
        await engine.client().ingest(*events, quiz_event(number=100, student_id="another"))
        admin, methods = engine.client(Role.ADMIN, "an-admin"), await served_methods(engine)
        for name in ("RecordFeedback", "PredictNextWeek", "GetRecommendations", "GetLearningPath"):
            [method] = [method for method in methods.values() if method.name == name]
            await answers(engine.channel, method, request_for(method, "s1"), admin.metadata)
        await asyncio.sleep(0.4)  # the audit log is written behind the calls
        yield engine


async def export(engine: Engine, role: Role = Role.ADMIN, **fields: Any) -> list[pb.ExportStudentDataResponse]:
    stub: Any = ComplianceServiceStub(engine.channel)
    request = pb.ExportStudentDataRequest(student_id="s1", **fields)
    call = stub.ExportStudentData(request, metadata=engine.client(role, "s1").metadata, timeout=20)
    return [part async for part in call]


def kind_of(part: pb.ExportStudentDataResponse) -> str:
    return pb.DataKind.Name(part.record.kind).removeprefix("DATA_KIND_").lower()


async def test_everything_held_is_told_with_counts_and_digests(engine: Engine) -> None:
    *records, last = await export(engine)
    manifest = last.manifest
    kinds = [kind_of(part) for part in records]
    assert set(kinds) == {"current_mastery", *OWN, "audit_entry"}
    assert [entry.kind for entry in manifest.entries] == sorted({part.record.kind for part in records})
    for entry in manifest.entries:
        lines = [part.record.json for part in records if part.record.kind == entry.kind]
        assert entry.count == len(lines)
        assert entry.sha256 == hashlib.sha256("".join(line + "\n" for line in lines).encode()).digest()
    assert kinds.count("event") == kinds.count("snapshot") == 8
    assert all(isinstance(json.loads(part.record.json), dict) for part in records)
    assert not any("another" in part.record.json for part in records)


async def test_an_inventory_is_the_manifest_alone(engine: Engine) -> None:
    [only] = await export(engine, validate_only=True)
    *_, manifest = await export(engine)
    told = {entry.kind: entry for entry in only.manifest.entries}
    for entry in manifest.manifest.entries:
        if entry.kind != pb.DATA_KIND_AUDIT_ENTRY:  # the inventory itself is one more
            assert told[entry.kind] == entry


async def test_a_student_exports_himself_and_nobody_else(engine: Engine) -> None:
    assert len(await export(engine, Role.STUDENT)) > 30
    stub: Any = ComplianceServiceStub(engine.channel)
    call = stub.ExportStudentData(
        pb.ExportStudentDataRequest(student_id="another"), metadata=engine.client(Role.STUDENT, "s1").metadata
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_of_one_who_is_not_known_there_is_nothing_to_export(engine: Engine) -> None:
    stub: Any = ComplianceServiceStub(engine.channel)
    metadata = engine.client(Role.ADMIN, "an-admin").metadata
    call = stub.ExportStudentData(pb.ExportStudentDataRequest(student_id="nobody"), metadata=metadata)
    assert (await failure_of(call.read())).reason == "STUDENT_NOT_FOUND"


async def import_file(redis_url: str, file: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mastery_grpc", "import", str(file)]
    environment = os.environ | {"MASTERY_REDIS_URL": redis_url}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip()


async def test_what_was_exported_gives_the_same_state_in_an_empty_engine(
    engine: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    service = engine.client()
    exported, before = await export(engine), await service.get()
    file = tmp_path / "s1.json"
    file.write_text("\n".join(MessageToJson(part) for part in exported))  # as grpcurl prints them
    assert await import_file(redis_url, file) == (1, "mastery-grpc: student_id: is known here already")
    redis_server.flush()
    assert await import_file(redis_url, file) == (0, "s1 is back")
    async with running_engine(redis_url) as empty:
        assert await empty.client().get() == before
        again = await export(empty)
        kept = {"audit_entry"}  # a log takes no entries from elsewhere
        assert [part for part in again[:-1] if kind_of(part) not in kept] == [
            part for part in exported[:-1] if kind_of(part) not in kept
        ]
        late = quiz_event(5, 5, number=200, time=datetime.now(UTC) - timedelta(days=3, hours=1))
        assert (await empty.client().ingest(late, quiz_event(number=1)))[1].duplicate
        assert (await empty.client().get()).version == before.version + 1


async def test_an_export_that_is_cut_off_or_changed_is_refused(
    engine: Engine, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    texts = [MessageToJson(part, indent=None) for part in await export(engine)]
    redis_server.flush()
    bent = [text.replace('\\"version\\":8', '\\"version\\":9', 1) for text in texts]
    assert bent != texts
    file = tmp_path / "s1.jsonl"
    for damaged, reason in [
        (texts[:-1], "manifest: is missing: the export is incomplete"),
        (texts[1:], "current_mastery: is not what the manifest says"),
        (bent, "is not what the manifest says"),
        ([*texts, texts[0]], "manifest: is not the last part"),
        (["not JSON"], "file: is not an export: see character 0"),
        (['{"record": {"kind": "DATA_KIND_OF_THE_FUTURE"}}'], "file: is not an export"),
    ]:
        file.write_text("\n".join(damaged))
        code, told = await import_file(redis_url, file)
        assert (code, reason in told, "\n" in told) == (1, True, False), told
    with redis_server.client() as client:
        assert not any("{s1}" in key for key in client.scan_iter())


async def test_an_export_from_before_an_erasure_does_not_bring_the_student_back(
    engine: Engine, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "s1.jsonl"
    file.write_text("\n".join(MessageToJson(part, indent=None) for part in await export(engine)))
    stub: Any = ComplianceServiceStub(engine.channel)
    metadata = engine.client(Role.ADMIN, "an-admin").metadata
    await stub.EraseStudentData(pb.EraseStudentDataRequest(student_id="s1"), metadata=metadata)
    code, told = await import_file(redis_url, file)
    assert (code, told) == (1, "mastery-grpc: create_time: is from before the student was erased")
