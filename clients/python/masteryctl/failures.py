"""What becomes of an error: one line that says what is wrong and what may help, and an exit code.

- 0: done
- 1: done, and the answer is bad: events refused, an export that is not whole, a log that was tampered with
- 2: the command or the profile is wrong, or the service calls the request invalid
- 3: there is no such thing
- 4: the token is missing or not accepted, or the caller may not do this
- 5: the service is away or too slow, or a limit is reached: the same command may work later
- 6: things are not in the state that the command needs
- 7: the service does not offer this, or is at fault
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from mastery_client import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MasteryError,
    NotFound,
    NotOffered,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from masteryctl.profiles import UnusableProfile

BAD_ANSWER, WRONG_USE, SERVER_FAULT = 1, 2, 7
EXIT_CODES: dict[type[MasteryError], int] = {
    InvalidRequest: WRONG_USE,
    NotFound: 3,
    Unauthenticated: 4,
    PermissionDenied: 4,
    Unavailable: 5,
    DeadlineExceeded: 5,
    ResourceExhausted: 5,
    Conflict: 6,
    AlreadyExists: 6,
    FailedPrecondition: 6,
}
HINTS = {
    "TOKEN_MISSING": "name a file with a token: --token-file, or token_file in the profile",
    "TOKEN_EXPIRED": "get a new token",
    "TOKEN_INVALID": "is the token of this service, and whole?",
    "ROLE_NOT_ALLOWED": "a token of another role is needed",
    "OTHER_SCHOOL": "leave --school out, or use a token of that school",
    "STUDENT_NOT_FOUND": "no event of this student has arrived; is he of another --school?",
    "COHORT_NOT_FOUND": "is the cohort of another --school?",
    "INSUFFICIENT_HISTORY": "wait until the student has done more",
    "RATE_LIMITED": "wait a little",
    "STORAGE_UNAVAILABLE": "the service heals by itself; try again",
}


class CommandFailed(Exception):
    """A command cannot go on; the message is the one line."""

    def __init__(self, message: str, exit_code: int = WRONG_USE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TellingGroup(TyperGroup):
    """Ends a command that fails with one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MasteryError as error:
            line, code = in_words(error, address=getattr(ctx.obj, "address", "")), exit_code_of(error)
        except CommandFailed as error:
            line, code = str(error), error.exit_code
        except UnusableProfile as error:
            line, code = str(error), WRONG_USE
        except OSError as error:
            line, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), WRONG_USE
        typer.echo(f"masteryctl: {line}", err=True)
        raise typer.Exit(code)


def exit_code_of(error: MasteryError) -> int:
    """Returns how a command ends that failed like this."""
    return EXIT_CODES.get(type(error), SERVER_FAULT)


def in_words(error: MasteryError, *, address: str = "") -> str:
    """Returns one line: what is wrong, the reason by its name, and what may help."""
    hint = HINTS.get(error.reason, "")
    if isinstance(error, Unavailable) and not error.reason:
        line, hint = "the service does not answer", f"is it at {address}, with or without TLS?"
    elif isinstance(error, DeadlineExceeded):
        line = "the service takes too long"
    elif isinstance(error, NotOffered):
        line = "the service does not offer this"
    else:
        line = f"{error.message} ({error.reason or error.code.name})"
    if error.retry_delay:
        hint = f"{hint}, in {error.retry_delay:g} s" if hint else f"try again in {error.retry_delay:g} s"
    parts = [" ".join(line.split()), hint]
    if not EXIT_CODES.get(type(error)) and error.request_id:
        parts.append(f"request id {error.request_id}")
    return "; ".join(filter(None, parts))
