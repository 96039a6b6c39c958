"""Ends what a test run left behind, however that run ended.

A process of its own that reads notes from the test run through a pipe. The pipe closes when the test run is
gone, be it by SIGKILL; what is still noted then is killed and deleted. (A parent-death signal would be
shorter, but it fires when the *thread* that started the server ends, is Linux only, and needs code between
fork and exec.)
"""

import os
import shutil
import signal
import sys
import time

SETTLE_SECONDS = 2.0


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    noted: dict[str, set[str]] = {"group": set(), "directory": set()}
    for note in sys.stdin:
        verb, kind, what = note.rstrip("\n").split(" ", 2)
        (noted[kind].add if verb == "remember" else noted[kind].discard)(what)
    groups = {int(group) for group in noted["group"]}
    deadline = time.monotonic() + SETTLE_SECONDS
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if _kill(group)}
        time.sleep(0.02)
    for directory in noted["directory"]:
        shutil.rmtree(directory, ignore_errors=True)


def _kill(group: int) -> bool:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
