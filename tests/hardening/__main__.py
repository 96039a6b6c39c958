"""Checks of a running server: `python -m tests.hardening`. Ends with 1 if one fails.

A line for each: its name, what was tried, and whether the server stood it.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from tests.hardening import calls, connections, exposure
from tests.hardening.place import Fault, Place, place

Check = Callable[[Place], Awaitable[str]]


async def main() -> int:
    # Redis is killed by a call of the last check, and the log is looked through when all is said.
    passed = await _run_all([*connections.CHECKS, *calls.CHECKS, *exposure.CHECKS])
    passed += await _run_alone(exposure.ALONE)
    return int(not all(passed))


async def _run_all(checks: Sequence[Check]) -> list[bool]:
    async with place() as found:
        return [await _run(check.__name__, check.__doc__, check(found)) for check in checks]


async def _run_alone(checks: Sequence[Callable[[], Awaitable[str]]]) -> list[bool]:
    return [await _run(check.__name__, check.__doc__, check()) for check in checks]


async def _run(name: str, tried: str | None, running: Awaitable[str]) -> bool:
    began = time.monotonic()
    try:
        async with asyncio.timeout(90):
            remark, verdict = await running, "ok  "
    except Fault as fault:
        remark, verdict = str(fault), "FAIL"
    except Exception as error:
        remark, verdict = f"{type(error).__name__}: {error}", "FAIL"
    sys.stdout.write(
        f"{verdict} {name.replace('_', ' ')}: {tried}\n     {remark} ({time.monotonic() - began:.1f} s)\n"
    )
    sys.stdout.flush()
    return verdict == "ok  "


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
