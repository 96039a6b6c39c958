"""Where the service is and what to show it: a profile of the configuration file, and what overrides it.

The file is `config.toml` in the user's configuration folder (`masteryctl --help` names it), or what
MASTERYCTL_CONFIG names:

    default = "staging"

    [profiles.staging]
    address = "mastery.staging.example.org:443"
    token_file = "~/.config/masteryctl/staging.token"
    ca = "/etc/ssl/mastery-ca.pem"
    school = "school_7"

A token itself never stands in it.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

CONFIG = "MASTERYCTL_CONFIG"
TOKEN = "MASTERYCTL_TOKEN"  # noqa: S105 - the variable's name
PATHS = ("token_file", "ca", "certificate", "key")


class UnusableProfile(Exception):
    """The configuration cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How the service is reached."""

    address: str = "127.0.0.1:50051"
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    plaintext: bool = False
    school: str = ""

    def overridden(self, **given: Any) -> Profile:
        """Returns the profile with what was given in its place."""
        return replace(self, **{name: value for name, value in given.items() if value})


def config_file() -> Path:
    """Returns where the configuration is."""
    return Path(os.environ.get(CONFIG) or Path(typer.get_app_dir("masteryctl"), "config.toml"))


def read_profile(name: str) -> Profile:
    """Returns a profile, or the default one for an empty name. Raises UnusableProfile."""
    file = config_file()
    try:
        config = tomllib.loads(file.read_text())
    except FileNotFoundError:
        if name or CONFIG in os.environ:
            raise UnusableProfile(f"{file}: there is no such file") from None
        return Profile()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UnusableProfile(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    name = name or config.get("default", "")
    if not name:
        return Profile()
    profiles = config.get("profiles", {})
    if name not in profiles:
        known = ", ".join(profiles) or "none"
        raise UnusableProfile(f"{file}: there is no profile {name!r}; there is: {known}")
    return _profile(profiles[name], f"{file}: profile {name!r}")


def _profile(given: dict[str, Any], place: str) -> Profile:
    known = {field.name for field in fields(Profile)}
    for key, value in given.items():
        if key not in known:
            raise UnusableProfile(f"{place}: {key!r} is not known; known are: {', '.join(sorted(known))}")
        wanted = bool if key == "plaintext" else str
        if not isinstance(value, wanted):
            raise UnusableProfile(f"{place}: {key} must be {'true or false' if wanted is bool else 'text'}")
    paths = {key: Path(given[key]).expanduser() for key in PATHS if key in given}
    return Profile(**given | paths)
