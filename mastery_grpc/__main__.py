"""The command line: `mastery-grpc dev | serve | ingest | topics | token | dlq | rebuild | simulate`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; says what to install where the service's libraries are missing."""
    try:
        from mastery_grpc.commands import run
    except ModuleNotFoundError as error:
        sys.exit(f"mastery-grpc: {error.name} is missing; the service needs: pip install 'mastery-grpc[server]'")
    run()


if __name__ == "__main__":
    main()
