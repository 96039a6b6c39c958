"""HTTP/2 frames as no well-behaved client would send them (RFC 9113, RFC 7541)."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = 8
Headers = Iterable[tuple[str, str]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def opening() -> bytes:
    """Returns what a client says first."""
    return PREFACE + frame(SETTINGS, 0, 0)


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def block(headers: Headers) -> bytes:
    """Returns headers in HPACK, none of them kept by the other side."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)


def call_headers(path: str, port: int, *further: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", f"127.0.0.1:{port}"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *further,
    ]


def message(data: bytes) -> bytes:
    """Returns a message as gRPC frames it: not compressed, its length, itself."""
    return b"\x00" + struct.pack(">I", len(data)) + data


def _text(text: str) -> bytes:
    return _integer(len(text)) + text.encode()


def _integer(value: int) -> bytes:
    """Returns a number with a prefix of seven bits."""
    if value < 127:
        return bytes([value])
    rest, groups = value - 127, bytearray([127])
    while rest > 127:
        groups.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*groups, rest])


class Connection:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> bool:
        """Returns whether the other side still takes it."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            return False
        return True

    async def answer(self, within: float = 1.0) -> bytes:
        """Returns all that the other side says in this time, or until it hangs up."""
        said = bytearray()
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(within):
                while part := await self._reader.read(65_536):
                    said += part
        return bytes(said)


def kinds(said: bytes) -> list[int]:
    """Returns the kinds of the frames in what a server said."""
    found = []
    while len(said) >= 9:
        found.append(said[3])
        said = said[9 + int.from_bytes(said[:3], "big") :]
    return found


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
