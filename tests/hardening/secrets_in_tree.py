"""Secrets in the files of the repository: `python -m tests.hardening.secrets_in_tree`. Ends with 1 on any.

The throw-away secrets of the tests are known by their hashes, in `.secrets.baseline`. `--accept` writes all that
is found there: look at it first.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / ".secrets.baseline"
WITHOUT_SECRETS = {".secrets.baseline", "mastery_grpc/domain/forecasting/pooled_model.bin"}
Found = dict[str, list[dict[str, Any]]]


def main() -> int:
    scanned = _scanned()
    found: Found = scanned["results"]
    if "--accept" in sys.argv:
        known: Found = {file: _hashes_alone(secrets) for file, secrets in found.items()}
        BASELINE.write_text(json.dumps(known, indent=2) + "\n")
    known = json.loads(BASELINE.read_text())
    accepted = {(file, secret["hashed_secret"]) for file, secrets in known.items() for secret in secrets}
    unknown = [
        f"{file}:{secret['line_number']}: {secret['type']}"
        for file, secrets in found.items()
        for secret in secrets
        if (file, secret["hashed_secret"]) not in accepted
    ]
    for line in unknown:
        sys.stdout.write(f"SECRET {line}\n")
    sys.stdout.write(f"{len(_files())} files: {len(unknown)} secrets, beside {len(accepted)} throw-away ones\n")
    return int(bool(unknown))


def _scanned() -> dict[str, Any]:
    command = [sys.executable, "-m", "detect_secrets", "scan", *_files()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    scanned: dict[str, Any] = json.loads(ended.stdout)
    return scanned


def _files() -> list[str]:
    """Returns what is in the repository, or would be: not what it ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [file for file in listed if file not in WITHOUT_SECRETS and (ROOT / file).is_file()]


def _hashes_alone(secrets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": secret["type"], "hashed_secret": secret["hashed_secret"]} for secret in secrets]


if __name__ == "__main__":
    sys.exit(main())
