"""Attacks below gRPC: frames, floods, connections that do nothing. A bystander must not notice them."""

import asyncio
import random
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack

from mastery.v1 import mastery_service_pb2 as pb
from mastery_grpc.application.callers import Role
from tests.hardening.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    call_headers,
    connection,
    frame,
    kinds,
    message,
    opening,
    reset,
)
from tests.hardening.place import STUDENT, Fault, Place
from tests.integration.serving import quiz_event, token

STREAMS = 10_000
GET = "/mastery.v1.MasteryService/GetMastery"
WATCH = "/mastery.v1.MasteryService/WatchMastery"
REQUEST = message(pb.GetMasteryRequest(student_id="somebody-else").SerializeToString())


async def streams_opened_and_reset_at_once(place: Place) -> str:
    """10,000 streams opened and reset at once on one connection (CVE-2023-44487)"""
    headers = block(call_headers(GET, place.port))
    return await _reset_many(place, lambda stream: frame(HEADERS, END_HEADERS, stream, headers))


async def whole_calls_reset_at_once(place: Place) -> str:
    """10,000 calls with token and request, each reset before its answer"""
    headers = block(call_headers(GET, place.port, ("authorization", f"Bearer {place.token}")))
    return await _reset_many(
        place,
        lambda stream: frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, REQUEST),
    )


async def _reset_many(place: Place, opened: Callable[[int], bytes]) -> str:
    async with place.unnoticed() as remarks, AsyncExitStack() as stack:
        sent, connections = 0, 0
        while sent < STREAMS and connections < 200:
            attacker = await stack.enter_async_context(connection(place.port))
            connections += 1
            takes = await attacker.send(opening())
            for start in range(1, 2 * STREAMS, 200):
                if not takes or sent >= STREAMS:
                    break
                takes = await attacker.send(b"".join(opened(n) + reset(n) for n in range(start, start + 200, 2)))
                sent += 100
            await attacker.answer(0.1)
    return f"{sent} streams on {connections} connections; {remarks[0]}"


async def malformed_frames(place: Place) -> str:
    """frames that break the protocol, in 20 ways, 5 times each"""
    headers = block(call_headers(GET, place.port))
    good = frame(HEADERS, END_HEADERS, 1, headers)
    bad = [
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 99, b"x" * 100),
        frame(DATA, 0x8, 1, b"\xff"),
        frame(HEADERS, END_HEADERS, 0, headers),
        frame(HEADERS, END_HEADERS, 2, headers),
        frame(HEADERS, END_HEADERS, 1, b"\xff" * 100),
        frame(HEADERS, END_HEADERS, 1, b"\x80"),
        frame(HEADERS, END_HEADERS, 1, b"\x00\x7f\xff\xff\xff\xff\xff\x0f"),
        frame(HEADERS, 0, 1, headers) + frame(PING, 0, 0, b"x" * 8),
        frame(CONTINUATION, END_HEADERS, 1, headers),
        frame(PRIORITY, 0, 1, b"x"),
        frame(SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff"),
        frame(SETTINGS, 0, 0, b"x" * 5),
        frame(SETTINGS, 0, 3),
        frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + headers),
        frame(PING, 0, 0, b"short"),
        frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)),
        good + frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 2**31 - 1)) * 2,
        frame(GOAWAY, 0, 0, b""),
        struct.pack(">I", 2**24 - 1)[1:] + bytes([DATA, 0, 0, 0, 0, 1]) + b"x" * 50_000,
        frame(255, 255, 1, b"x" * 100),
    ]
    async with place.unnoticed() as remarks:
        for payload in bad * 5:
            async with connection(place.port) as attacker:
                await attacker.send(opening() + payload)
                await attacker.answer(0.02)
    return f"{5 * len(bad)} connections; {remarks[0]}"


async def random_bytes(place: Place) -> str:
    """random bytes, with and without the preface, HTTP/1 and TLS greetings"""
    rng = random.Random(1)
    async with place.unnoticed() as remarks:
        for number in range(150):
            start = (b"", PREFACE, opening(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01")[
                number % 5
            ]
            async with connection(place.port) as attacker:
                await attacker.send(start + rng.randbytes(rng.choice((1, 100, 10_000))))
                await attacker.answer(0.02)
    return f"150 connections; {remarks[0]}"


async def headers_without_an_end(place: Place) -> str:
    """one header block continued 20,000 times (CVE-2024-27316)"""
    async with place.unnoticed() as remarks, connection(place.port) as attacker:
        await attacker.send(opening() + frame(HEADERS, 0, 1, block(call_headers(GET, place.port))))
        part = frame(CONTINUATION, 0, 1, block([("x", "y" * 50)] * 20))
        sent = 0
        while sent < 20_000 and await attacker.send(part * 100):
            sent += 100
        said = kinds(await attacker.answer(0.2))
    return f"{sent} frames taken{', then sent away' if GOAWAY in said else ''}; {remarks[0]}"


async def headers_that_grow(place: Place) -> str:
    """1 MiB of headers out of few bytes: one kept header of 4,000 bytes named again and again"""
    kept = (
        b"\x40" + b"\x01a" + b"\x7f\xa1\x1e" + b"b" * 4000
    )  # literal, indexed: the first of the other side's table
    headers = block(call_headers(GET, place.port)) + kept + b"\xbe" * 260
    async with place.unnoticed() as remarks, connection(place.port) as attacker:
        await attacker.send(opening())
        for stream in range(1, 401, 2):
            if not await attacker.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, headers)):
                break
        await attacker.answer(0.3)
    return remarks[0]


async def floods_of_control_frames(place: Place) -> str:
    """50,000 pings, settings and empty frames (CVE-2019-9512, -9515, -9518)"""
    headers = frame(HEADERS, END_HEADERS, 1, block(call_headers(GET, place.port)))
    floods = [frame(PING, 0, 0, b"x" * 8), frame(SETTINGS, 0, 0), headers + frame(DATA, 0, 1)]
    async with place.unnoticed() as remarks:
        for one in floods:
            async with connection(place.port) as attacker:
                await attacker.send(opening())
                for _ in range(170):
                    if not await attacker.send((one if one is not floods[2] else frame(DATA, 0, 1)) * 100):
                        break
                await attacker.answer(0.1)
    return remarks[0]


async def connections_that_say_nothing(place: Place) -> str:
    """400 connections held open, silent, in the preface or in the middle of headers or of a message"""
    headers = block(call_headers(GET, place.port, ("authorization", f"Bearer {place.token}")))
    starts = [
        b"",
        PREFACE[:10],
        opening(),
        opening() + frame(HEADERS, 0, 1, headers[:20]),
        opening() + frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, 0, 1, REQUEST[:3]),
    ]
    async with place.unnoticed() as remarks, AsyncExitStack() as stack:
        for number in range(400):
            attacker = await stack.enter_async_context(connection(place.port))
            await attacker.send(starts[number % len(starts)])
        await asyncio.sleep(1.0)
    return remarks[0]


async def streams_beyond_the_limit(place: Place) -> str:
    """3,000 calls left open on one connection, of which 1,000 are allowed"""
    headers = block(call_headers(GET, place.port, ("authorization", f"Bearer {place.token}")))
    async with place.unnoticed() as remarks, connection(place.port) as attacker:
        await attacker.send(opening())
        for start in range(1, 6001, 200):
            await attacker.send(
                b"".join(frame(HEADERS, END_HEADERS, n, headers) for n in range(start, start + 200, 2))
            )
        said = kinds(await attacker.answer(0.5))
    if not said:
        raise Fault("the server said nothing at all")
    return remarks[0]


async def watchers_who_never_read(place: Place) -> str:
    """20 callers who watch a student and take nothing, while he changes 1,000 times"""
    no_window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    watch = message(pb.WatchMasteryRequest(student_ids=[STUDENT]).SerializeToString())
    async with place.unnoticed() as remarks, AsyncExitStack() as stack:
        for number in range(20):
            own = ("authorization", f"Bearer {token(Role.SERVICE, f'watcher-{number}')}")
            headers = frame(HEADERS, END_HEADERS, 1, block(call_headers(WATCH, place.port, own)))
            attacker = await stack.enter_async_context(connection(place.port))
            await attacker.send(PREFACE + no_window + headers + frame(DATA, END_STREAM, 1, watch))
        for start in range(10, 1010, 50):
            await place.client.ingest(*(quiz_event(number=start + n, student_id=STUDENT) for n in range(50)))
    return remarks[0]


CHECKS = (
    streams_opened_and_reset_at_once,
    whole_calls_reset_at_once,
    malformed_frames,
    random_bytes,
    headers_without_an_end,
    headers_that_grow,
    floods_of_control_frames,
    connections_that_say_nothing,
    streams_beyond_the_limit,
    watchers_who_never_read,
)
