"""Fuzzes the decoder and the worker: `python -m tests.fuzz`. Ends with 1 if anything went wrong.

The short form, under a minute: `--records 50000 --through-worker 2000`.
"""

import argparse
import sys
import time

from tests.fuzz.decoder import PROCESSES, Findings, decode_all
from tests.fuzz.through_worker import WAVES, Passage, pass_through_worker

WARM_UP = 0.25
"""Of a run: what is used after it must not grow."""
MOST_GROWTH = 24 * 2**20
"""Bytes: less than one record of every batch would leave behind, and more than an allocator's moods."""
PROGRESS_SECONDS = 5.0


def main() -> int:
    options = _options()
    faults: list[str] = []
    rows: list[tuple[str, str]] = [("seed", str(options.seed))]
    if options.records:
        faults += _fuzz_decoder(options.seed, options.records, rows)
    if options.through_worker:
        faults += _fuzz_worker(options.seed, options.through_worker, rows)
    width = max(len(name) for name, _ in rows)
    _say("\n" + "\n".join(f"{name:<{width}}  {figure}" for name, figure in rows))
    _say("".join(f"\nFAULT {fault}" for fault in faults) or "\nno fault")
    return int(bool(faults))


def _fuzz_decoder(seed: int, count: int, rows: list[tuple[str, str]]) -> list[str]:
    findings, began, told = Findings(), time.monotonic(), time.monotonic()
    for portion in decode_all(seed, count):
        findings.add(portion)
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            _say(f"decoder: {findings.count:,} of {count:,}, {len(findings.faults)} faults")
    seconds = time.monotonic() - began
    rows += [
        ("decoder: records", f"{findings.count:,} of {count:,}"),
        *(
            (f"  {kind}", f"{findings.accepted[kind]:>9,} accepted {findings.refused[kind]:>9,} refused")
            for kind in sorted(findings.accepted | findings.refused)
        ),
        ("  accepted", f"{findings.accepted.total():,}"),
        ("  refused", f"{findings.refused.total():,}"),
        ("  neither", str(len(findings.faults))),
        ("  speed", f"{count / seconds:,.0f} records/s in {PROCESSES} processes, making them included"),
        ("  slowest", f"{1000 * findings.slowest[0]:.0f} ms ({findings.slowest[1]})"),
    ]
    rows += [("  memory of a process", _memory(samples)) for samples in findings.memory.values()]
    growths = [_growth(samples) for samples in findings.memory.values()]
    return findings.faults + [_too_much("the decoder", growth) for growth in growths if growth > MOST_GROWTH]


def _fuzz_worker(seed: int, count: int, rows: list[tuple[str, str]]) -> list[str]:
    passage: Passage = pass_through_worker(seed, count, _say)
    rows += [
        ("worker: records", f"{passage.produced:,} on {passage.broker}, in {WAVES} waves"),
        ("  accepted", f"{passage.accepted:,}, {passage.events:,} distinct events"),
        ("  dead letters", f"{passage.dead_letters:,}"),
    ]
    if passage.faults:
        return passage.faults
    rows += [
        ("  speed", f"{passage.produced / passage.seconds:,.0f} records/s, waiting for each wave included"),
        ("  memory", _memory(passage.memory)),
    ]
    growth = _growth(passage.memory)
    return [_too_much("the worker", growth)] if growth > MOST_GROWTH else []


def _growth(samples: list[int]) -> int:
    """Returns by how much memory has grown since the warm-up, in bytes."""
    return samples[-1] - _after_warm_up(samples)


def _after_warm_up(samples: list[int]) -> int:
    return samples[min(len(samples) - 1, int(WARM_UP * len(samples)))]


def _memory(samples: list[int]) -> str:
    first, last = _after_warm_up(samples) / 2**20, samples[-1] / 2**20
    return (
        f"{first:.1f} MiB after {WARM_UP:.0%}, {last:.1f} MiB at the end, {max(samples) / 2**20:.1f} MiB at most"
    )


def _too_much(what: str, growth: int) -> str:
    return f"the memory of {what} has grown by {growth / 2**20:.1f} MiB after the warm-up"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="into the decoder")
    parser.add_argument("--through-worker", type=int, default=20_000, help="through a worker process")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
