"""What all commands share: the profile in use and a client of it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mastery_client import AsyncClient, Client, Tls
from masteryctl.failures import CommandFailed
from masteryctl.profiles import TOKEN, Profile

if TYPE_CHECKING:
    from pathlib import Path

    import typer

STREAM_PATIENCE = 30.0
"""Somebody is waiting: a stream looks for the service for so long, in seconds."""


class Session:
    """One run of the command line."""

    def __init__(self, profile: Profile, *, token_file: Path | None) -> None:
        """`token_file` is that of the command line, which goes before a token of the environment."""
        self._profile = profile
        self._token_file = token_file

    @property
    def address(self) -> str:
        """Where the service is."""
        return self._profile.address

    @property
    def school_id(self) -> str:
        """The school that requests name; empty for the caller's own."""
        return self._profile.school

    @cached_property
    def client(self) -> Client:
        """A client whose methods wait."""
        return Client(self.address, **self._terms())

    def async_client(self) -> AsyncClient:
        """Returns a client whose methods are awaited."""
        return AsyncClient(self.address, **self._terms())

    def close(self) -> None:
        """Closes the client, if there is one."""
        if "client" in vars(self):
            self.client.close()

    def _terms(self) -> dict[str, Any]:
        profile, tls = self._profile, None
        if profile.ca or profile.certificate:
            tls = Tls(ca=profile.ca, certificate=profile.certificate, key=profile.key)
        if tls and profile.plaintext:
            raise CommandFailed("either plaintext, or a CA or a certificate")
        return {
            "token": self._token_file or os.environ.get(TOKEN) or profile.token_file,
            "tls": tls,
            "plaintext": profile.plaintext,
            "stream_patience": STREAM_PATIENCE,
        }


def session_of(context: typer.Context) -> Session:
    """Returns the session of a command."""
    session: Session = context.obj
    return session
