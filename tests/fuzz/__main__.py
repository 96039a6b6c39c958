"""Fuzzes the decoder, the worker and every RPC: `python -m tests.fuzz`. Ends with 1 if anything went wrong.

The short form, under two minutes: `--records 50000 --through-worker 2000 --messages 2000 --over-socket 50`.
A message is found again by its seed: `python -c` with `tests.fuzz.messages.fuzzed_message(method, seed)`.
"""

import argparse
import asyncio
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz import through_pipeline
from tests.fuzz.decoder import PROCESSES, Findings, decode_all
from tests.fuzz.over_socket import call_server
from tests.fuzz.through_worker import WAVES, Passage, pass_through_worker
from tests.real.redis_servers import standalone

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
    if options.messages:
        faults += _fuzz_pipeline(options.seed, options.messages)
    if options.over_socket:
        faults += _fuzz_server(options.seed, options.over_socket)
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


def _fuzz_pipeline(seed: int, count: int) -> list[str]:
    methods = through_pipeline.offered_methods()
    found = {method: through_pipeline.Findings(method) for method in methods}
    with _progress() as progress:
        task = progress.add_task("messages through the pipeline", total=count * len(methods))
        for portion in through_pipeline.call_all(seed, methods, count):
            found[portion.method].add(portion)
            progress.advance(task, portion.count)
    return _told(f"{count:,} messages to each method, through the pipeline", list(found.values()))


def _fuzz_server(seed: int, count: int) -> list[str]:
    methods = through_pipeline.offered_methods()
    with standalone() as redis, _progress() as progress:
        task = progress.add_task("messages over the socket", total=len(methods))
        found = asyncio.run(call_server(redis.url, seed, count, lambda _: progress.advance(task)))
    return _told(f"{count:,} messages to each method, over a socket, on a real Redis", found)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def _told(title: str, found: list[through_pipeline.Findings]) -> list[str]:
    """Shows what came of the messages to each method; returns the faults."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("answered", "refused", "faults", "slowest", "per second"):
        table.add_column(name, justify="right")
    table.add_column("refusals")
    for findings in found:
        refusals = ", ".join(
            f"{code} {count:,}" for code, count in findings.codes.most_common() if code != "OK"
        ).lower()
        table.add_row(
            findings.method.removeprefix("mastery.v1."),
            f"{findings.codes['OK']:,}",
            f"{findings.count - findings.codes['OK']:,}",
            f"{findings.fault_count:,}",
            f"{1000 * findings.slowest[0]:.0f} ms" if findings.seconds else "",
            f"{findings.count / findings.seconds:,.0f}" if findings.seconds else "",
            refusals,
        )
    Console(width=160).print(table)
    return [fault for findings in found for fault in findings.faults]


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
    parser.add_argument("--messages", type=int, default=100_000, help="to each method, through the pipeline")
    parser.add_argument("--over-socket", type=int, default=250, help="to each method of a running server")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
