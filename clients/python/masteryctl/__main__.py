"""The command line: `masteryctl student | at-risk | watch | events | audit`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; says what to install where its libraries are missing."""
    try:
        from masteryctl.cli import cli
    except ModuleNotFoundError as error:
        sys.exit(f"masteryctl: {error.name} is missing; it comes with: pip install 'mastery-grpc[cli]'")
    cli()


if __name__ == "__main__":
    main()
