"""Where an issuer publishes his keys: a file, or a URL that is fetched with bounds of time and size."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mastery_grpc.rpc.signing_keys import DamagedKeys, VerificationKey, keys_in

if TYPE_CHECKING:
    from http.client import HTTPResponse

LARGEST_DOCUMENT = 1024 * 1024
_CHUNK = 64 * 1024


class JwksFile:
    """Keys in a file, which may be replaced at any time."""

    is_local = True

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    async def read(self) -> tuple[VerificationKey, ...]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[VerificationKey, ...]:
        try:
            with self._path.open("rb") as file:
                document = file.read(LARGEST_DOCUMENT + 1)
        except OSError as error:
            raise DamagedKeys(error.strerror or str(error)) from None
        return _keys_within_bounds(document)


class JwksUrl:
    """Keys at a URL."""

    is_local = False

    def __init__(self, url: str, *, timeout: float) -> None:
        """`timeout` in seconds. Raises ValueError, which says why, for a URL that nobody should trust."""
        if reason := _reason_against(url):
            raise ValueError(reason)
        self._url = url
        self._timeout = timeout
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _TrustedRedirects(),
        ):
            self._opener.add_handler(handler)

    def __str__(self) -> str:
        return self._url

    async def read(self) -> tuple[VerificationKey, ...]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[VerificationKey, ...]:
        request = urllib.request.Request(  # noqa: S310 - its scheme was looked at
            self._url,
            headers={"Accept": "application/jwk-set+json, application/json", "User-Agent": "mastery-grpc"},
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                document = self._document_in(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DamagedKeys(f"{type(error).__name__}: {error}") from None
        return _keys_within_bounds(document)

    def _document_in(self, response: HTTPResponse) -> bytes:
        # The timeout of the socket is for each piece; a source that drips must not hold us for ever.
        deadline = time.monotonic() + self._timeout
        document = b""
        while len(document) <= LARGEST_DOCUMENT and (piece := response.read1(_CHUNK)):
            document += piece
            if time.monotonic() > deadline:
                raise TimeoutError("the answer takes too long")
        return document


class _TrustedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where we would have asked ourselves."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if reason := _reason_against(newurl):
            raise ValueError(f"the redirect {reason}")
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise ValueError("the redirect leads from https to http")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason_against(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "is not a URL"
    if not host or port == 0:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "must not hold a name or a password"
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)):
        return None
    return "must begin with https:// (http:// for a loopback host only)"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys_within_bounds(document: bytes) -> tuple[VerificationKey, ...]:
    if len(document) > LARGEST_DOCUMENT:
        raise DamagedKeys(f"is larger than {LARGEST_DOCUMENT} bytes")
    return keys_in(document)
