"""Look after a mastery engine from a terminal.

Where it is and what to show it comes from a profile of the configuration file, from MASTERYCTL_ variables, or from
options; the later goes before the earlier.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read by typer
from typing import Annotated

import typer

from masteryctl import audit, events, students
from masteryctl.at_risk import at_risk
from masteryctl.failures import TellingGroup
from masteryctl.profiles import config_file, read_profile
from masteryctl.session import Session
from masteryctl.watching import watch

cli = typer.Typer(
    cls=TellingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=__doc__,
    epilog=f"The configuration file is {config_file()}. Ends with 0: done; 1: the answer is bad; 2: wrong use; "
    "3: not found; 4: not allowed; 5: try again later; 6: not in the right state; 7: a fault of the service.",
)
cli.add_typer(students.cli, name="student")
cli.add_typer(events.cli, name="events")
cli.add_typer(audit.cli, name="audit")
cli.command("at-risk")(at_risk)
cli.command()(watch)


@cli.callback()
def masteryctl(
    context: typer.Context,
    profile: Annotated[
        str, typer.Option(envvar="MASTERYCTL_PROFILE", help="Of the configuration file.", show_default=False)
    ] = "",
    address: Annotated[
        str, typer.Option(envvar="MASTERYCTL_ADDRESS", help="Such as mastery.example.org:443.", show_default=False)
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="MASTERYCTL_TOKEN_FILE",
            help="Holds the bearer token; the variable MASTERYCTL_TOKEN may be one itself.",
            show_default=False,
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="MASTERYCTL_CA", help="Who vouches for the server.", show_default=False)
    ] = None,
    plaintext: Annotated[
        bool,
        typer.Option(
            "--plaintext", envvar="MASTERYCTL_PLAINTEXT", help="No TLS: the token can be read on the way."
        ),
    ] = False,
    school: Annotated[
        str, typer.Option(envvar="MASTERYCTL_SCHOOL", help="Not the caller's own.", show_default=False)
    ] = "",
) -> None:
    """Takes up the profile."""
    chosen = read_profile(profile).overridden(address=address, ca=ca, plaintext=plaintext, school=school)
    session = Session(chosen, token_file=token_file)
    context.obj = session
    context.call_on_close(session.close)
