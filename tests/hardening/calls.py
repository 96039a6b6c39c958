"""Calls of a kind that the server must refuse, and what its refusals may not tell."""

import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from mastery_grpc.application.callers import Role
from tests.hardening.place import REDIS_PASSWORD, Fault, Place
from tests.integration.every_method import answers, contract, request_for
from tests.integration.serving import SECRET, bearer, token

MEBIBYTE = 2**20
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
ROOT = Path(__file__).parents[2]
INDISCREET = re.compile(
    r"Traceback|File \"|\.py\b|line \d+|redis|hiredis|librdkafka|confluent|Errno|Error:|Exception|object at 0x|"
    r"127\.0\.0\.1|localhost|/usr/|/home/|/tmp/|site-packages",
    re.IGNORECASE,
)


async def refused(place: Place, call: Awaitable[Any], *expected: grpc.StatusCode) -> str:
    """Awaits a call that must be refused with one of these codes; returns its name."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        note(place, error)
        if error.code() not in expected:
            raise Fault(f"{error.code().name}: {error.details()}") from None
        return str(error.code().name)
    raise Fault("was answered")


def note(place: Place, error: grpc.aio.AioRpcError) -> None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a finished call in all but its type
    place.told.append(f"{error.code().name} {error.details()} {status}")


async def reflection_is_off(place: Place) -> str:
    """reflection, v1 and v1alpha, where MASTERY_GRPC_REFLECTION=false"""
    channel: Any = place.engine.channel
    for name in REFLECTION:
        # One request is sent with the headers: a stream of them could meet the refusal half-way.
        call = channel.unary_stream(
            f"/{name}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        )(reflection_pb2.ServerReflectionRequest(list_services=""), timeout=5)
        await refused(place, call.read(), grpc.StatusCode.UNIMPLEMENTED)
    return "UNIMPLEMENTED"


async def unknown_methods(place: Place) -> str:
    """unknown services and methods, paths that are none"""
    channel: Any = place.engine.channel
    paths = (
        "/mastery.v1.MasteryService/Nothing",
        "/mastery.v2.MasteryService/GetMastery",
        "/x",
        "//",
        "/" + "a" * 4000,
    )
    for path in paths:
        call = channel.unary_unary(path)(b"", metadata=place.client.metadata, timeout=5)
        await refused(place, call, grpc.StatusCode.UNIMPLEMENTED)
    return "UNIMPLEMENTED"


async def headers_are_bounded(place: Place) -> str:
    """metadata of 1 MiB, in one header and in many"""
    channel: Any = place.engine.channel
    codes = set()
    for metadata in ((("x", "y" * MEBIBYTE),), tuple((f"x-{n}", "y" * 1000) for n in range(1000))):
        async with place.unnoticed() as remarks:
            call = channel.unary_unary("/mastery.v1.MasteryService/GetMastery")(
                b"", metadata=(*place.client.metadata, *metadata), timeout=5
            )
            codes.add(await refused(place, call, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE))
    return f"{', '.join(sorted(codes))}; {remarks[0]}"


async def messages_are_bounded(place: Place) -> str:
    """messages of 5 and 64 MiB"""
    async with place.unnoticed() as remarks:
        for size in (5, 64):
            call = place.client.send("GetMastery", b"\x00" * size * MEBIBYTE)
            await refused(place, call, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return f"RESOURCE_EXHAUSTED; {remarks[0]}"


async def compressed_messages_are_bounded(place: Place) -> str:
    """messages of 16 and 100 MiB, compressed to some KiB"""
    channel: Any = place.engine.channel
    async with place.unnoticed() as remarks:
        for size in (16, 100):
            call = channel.unary_unary("/mastery.v1.MasteryService/GetMastery")(
                b"\x00" * size * MEBIBYTE,
                metadata=place.client.metadata,
                timeout=20,
                compression=grpc.Compression.Gzip,
            )
            await refused(place, call, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return f"RESOURCE_EXHAUSTED; {remarks[0]}"


async def every_refusal_is_discreet(place: Place) -> str:
    """every method without a token, with a bad one, wrong bytes or fields, Redis away: no trace, no path"""
    methods = [method for method in contract().values() if not method.client_streaming]
    for method in methods:
        own = bearer(token(Role.ADMIN, method.name))  # each has a limit of calls
        for metadata in ((), bearer("garbage"), bearer(place.token[:-4]), place.client.metadata, own):
            for request in (b"\xff", b"\x0a\x7f", request_for(method, "a b"), request_for(method, "s" * 9000)):
                await _note_answer(place, method, request, metadata)
        await _note_answer(place, method, request_for(method, "nobody"), own)
    place.redis.kill()
    try:
        for method in methods:
            away = bearer(token(Role.ADMIN, f"{method.name}-away"))
            await _note_answer(place, method, request_for(method, "nobody"), away)
    finally:
        place.redis.restart()
    for told in place.told:
        words = [word for word in (SECRET, REDIS_PASSWORD, place.token, str(ROOT)) if word in told]
        if found := INDISCREET.search(told):
            words.append(found[0])
        if words:
            raise Fault(f"{words} in {told[:500]!r}")
    return f"{len(place.told)} statuses"


async def _note_answer(place: Place, method: MethodDescriptor, request: Any, metadata: Any) -> None:
    try:
        await answers(place.engine.channel, method, request, metadata, patience=0.2)
    except grpc.aio.AioRpcError as error:
        note(place, error)
        if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
            raise Fault(f"{method.name}: {error.code().name} {error.details()}") from None


CHECKS = (
    reflection_is_off,
    unknown_methods,
    headers_are_bounded,
    messages_are_bounded,
    compressed_messages_are_bounded,
    every_refusal_is_discreet,
)
