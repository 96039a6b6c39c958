"""Where the bearer token of a call comes from. No token is ever shown: not in a log, a message or a `repr`."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from mastery_client.errors import Unauthenticated

Token = str | Path | Callable[[], str | Awaitable[str]]
"""A token itself, the file that holds it, or what is called to get it; given as a function it may be async."""

log = logging.getLogger(__name__)

_SENDABLE = re.compile(r"[!-~]+")


class TokenSource:
    """Gives the token for each call."""

    def __init__(self, token: Token) -> None:
        self._source: Token = _TokenFile(token) if isinstance(token, Path) else token

    def __repr__(self) -> str:
        return "TokenSource(...)"

    async def token(self) -> str:
        """Returns the token as it is now. Raises Unauthenticated if there is none that could be sent."""
        given = self._source if isinstance(self._source, str) else self._source()  # type: ignore[operator]
        token = await given if inspect.isawaitable(given) else given
        # Checked here, because gRPC would show it in its complaint.
        if not isinstance(token, str) or not _SENDABLE.fullmatch(token):
            raise _no_token("the token is empty or holds what no header can carry")
        return token


class _TokenFile:
    """Reads a token from a file, and again whenever that changes: by rewriting, replacing or relinking."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = ""
        self._seen: tuple[int, int, int] | None = None

    def __call__(self) -> str:
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_size, status.st_ino
            if seen != self._seen:
                self._token = self._path.read_text(encoding="ascii").strip()
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            if not self._token:
                cause = error.strerror if isinstance(error, OSError) else "is no text"
                raise _no_token(f"the token file {self._path}: {cause}") from None
            log.warning("the token file %s cannot be read just now; the last token is used", self._path)
        return self._token


def _no_token(message: str) -> Unauthenticated:
    return Unauthenticated(message, grpc.StatusCode.UNAUTHENTICATED, reason="TOKEN_MISSING")
