"""What load balancers, orchestrators and tools ask a server: its health and its contract, without a token."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mastery_grpc.app import running_server
from tests.integration.serving import (
    SERVICE_NAME,
    Engine,
    connected,
    eventually,
    failure_of,
    running_engine,
    settings_for,
)
from tests.real.redis_servers import RedisServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
READINESS = ["", SERVICE_NAME]
LIVENESS = "liveness"

REFLECTION = {
    "v1": "grpc.reflection.v1.ServerReflection",
    "v1alpha": "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


def watch(engine: Engine, service: str) -> Any:
    return engine.health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=30)


async def next_status(call: Any) -> int:
    async with asyncio.timeout(8):
        return int((await call.read()).status)


# --- health -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [*READINESS, LIVENESS])
async def test_a_server_whose_redis_answers_is_healthy_under_each_name(engine: Engine, service: str) -> None:
    assert await engine.is_serving(service)
    call = watch(engine, service)
    assert await next_status(call) == SERVING
    call.cancel()


async def test_the_health_of_an_unknown_service_is_not_found(engine: Engine) -> None:
    assert (await failure_of(engine.is_serving("mastery.v1.Nothing"))).code is grpc.StatusCode.NOT_FOUND
    call = watch(engine, "mastery.v1.Nothing")
    assert await next_status(call) == SERVICE_UNKNOWN
    call.cancel()


@pytest.mark.parametrize("away", ["kill", "pause"])
async def test_readiness_follows_redis_and_liveness_does_not(
    engine: Engine, redis_server: RedisServer, away: str
) -> None:
    calls = [watch(engine, service) for service in READINESS]
    assert [await next_status(call) for call in calls] == [SERVING, SERVING]
    getattr(redis_server, away)()
    assert [await next_status(call) for call in calls] == [NOT_SERVING, NOT_SERVING]
    assert [await engine.is_serving(service) for service in READINESS] == [False, False]
    assert await engine.is_serving(LIVENESS)
    redis_server.revive()
    assert [await next_status(call) for call in calls] == [SERVING, SERVING]
    assert [await engine.is_serving(service) for service in [*READINESS, LIVENESS]] == [True] * 3
    for call in calls:
        call.cancel()


async def test_liveness_is_not_touched_by_an_outage(engine: Engine, redis_server: RedisServer) -> None:
    call = watch(engine, LIVENESS)
    assert await next_status(call) == SERVING
    redis_server.kill()
    await engine.until_ready(ready=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await call.read()
    call.cancel()


@pytest.mark.parametrize("away", ["kill", "pause"])
async def test_a_server_is_not_ready_before_redis_has_answered(
    redis_url: str, redis_server: RedisServer, away: str
) -> None:
    getattr(redis_server, away)()
    async with running_server(settings_for(redis_url)) as port, connected(port) as engine:
        assert [await engine.is_serving(service) for service in READINESS] == [False, False]
        assert await engine.is_serving(LIVENESS)
        redis_server.revive()
        await engine.until_ready()


async def test_a_server_that_stops_is_not_serving_under_any_name(redis_url: str) -> None:
    server = running_server(settings_for(redis_url, grpc_drain_timeout=5.0))
    port = await server.__aenter__()
    async with connected(port) as engine:
        await engine.until_ready()
        calls = [watch(engine, service) for service in [*READINESS, LIVENESS]]
        assert [await next_status(call) for call in calls] == [SERVING] * 3
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        assert [await next_status(call) for call in calls] == [NOT_SERVING] * 3
        for call in calls:
            call.cancel()
        await stopping


async def test_a_health_watch_does_not_hold_up_the_stop(redis_url: str) -> None:
    server = running_server(settings_for(redis_url, grpc_drain_timeout=2.0))
    port = await server.__aenter__()
    async with connected(port) as engine:
        await engine.until_ready()
        call = watch(engine, "")
        assert await next_status(call) == SERVING
        started = asyncio.get_running_loop().time()
        await server.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - started < 1.0


# --- reflection -------------------------------------------------------------------------------------------


async def ask(engine: Engine, version: str, **question: Any) -> Any:
    """Asks one question; v1 has the messages of v1alpha under another name."""
    channel: Any = engine.channel
    call = channel.stream_stream(
        f"/{REFLECTION[version]}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=5)
    return await call.read()


@pytest.mark.parametrize("version", REFLECTION)
async def test_reflection_lists_what_is_served(engine: Engine, version: str) -> None:
    answer = await ask(engine, version, list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("version", REFLECTION)
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (SERVICE_NAME, "mastery/v1/mastery_service.proto"),
        ("mastery.v1.Mastery", "mastery/v1/mastery.proto"),
        ("mastery.v1.LearningEvent", "mastery/v1/events.proto"),
    ],
)
async def test_reflection_describes_the_contract(engine: Engine, version: str, symbol: str, file: str) -> None:
    answer = await ask(engine, version, file_containing_symbol=symbol)
    told = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert file in [each.name for each in told]


@pytest.mark.parametrize("version", REFLECTION)
async def test_reflection_of_an_unknown_symbol_is_an_answer(engine: Engine, version: str) -> None:
    answer = await ask(engine, version, file_containing_symbol="mastery.v1.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("version", REFLECTION)
async def test_reflection_may_be_switched_off(redis_url: str, version: str) -> None:
    async with running_engine(redis_url, grpc_reflection=False) as engine:
        failure = await failure_of(ask(engine, version, list_services=""))
        assert failure.code is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_up_again_after_every_outage(engine: Engine, redis_server: RedisServer) -> None:
    for _ in range(2):
        redis_server.kill()
        await engine.until_ready(ready=False)
        redis_server.restart()
        await engine.until_ready()

    async def answers() -> bool:
        return bool((await engine.client().calculate()).mastery.version)

    await eventually(answers)
