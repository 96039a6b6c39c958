"""Known vulnerabilities of what constraints.txt pins: `python -m tests.hardening.dependencies`.

Ends with 1 if there are any, and with 2 if that cannot be told: what was not looked up was not found to be good.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SERVICES = ("pypi", "osv")
"""Asked one after the other for as long as something is not answered."""
GOOD, VULNERABLE, NOT_CHECKED = 0, 1, 2


def main() -> int:
    lines: list[str] = []
    for service in SERVICES:
        found, error = _audited(service)
        known = [dependency for dependency in found if "skip_reason" not in dependency]
        lines = [line for dependency in known for line in _told(dependency)]
        skipped = [dependency["name"] for dependency in found if "skip_reason" in dependency]
        if not error and not skipped:
            _say(f"{len(known)} dependencies looked up at {service}: {len(lines)} vulnerabilities", *lines)
            return VULNERABLE if lines else GOOD
        reason = error or f"{len(skipped)} of {len(found)} not found there, such as {skipped[0]}"
        _say(f"NOT CHECKED at {service}: {reason}")
        if lines:
            _say(*lines)
            return VULNERABLE
    _say("NOT CHECKED: no advisory service answered for every dependency; run it again where one can be reached")
    return NOT_CHECKED


def _audited(service: str) -> tuple[list[dict[str, Any]], str]:
    """Returns what a service says of each dependency, and why it says nothing if it does not."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += [
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "15",
        "--vulnerability-service",
        service,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(ended.stdout)["dependencies"], ""
    except (ValueError, KeyError):
        words = [line for line in ended.stderr.splitlines() if line and not line.startswith("WARNING")]
        return [], words[-1][:300] if words else f"pip-audit ended with {ended.returncode}"


def _told(dependency: dict[str, Any]) -> list[str]:
    return [
        f"  {dependency['name']} {dependency['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for vulnerability in dependency["vulns"]
    ]


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
