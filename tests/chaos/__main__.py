"""Runs the scenarios and reports: `python -m tests.chaos --short`. Ends with 1 if anything was lost or doubled."""

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.chaos import report, scenarios
from tests.chaos.ledger import Faults, TopicReader
from tests.chaos.place import SESSION_TIMEOUT_MS, TRANSACTION_TIMEOUT_MS, NotCaughtUp, Place
from tests.chaos.scenarios import Figures, Run, Scenario
from tests.chaos.traffic import history, slices, source_of_events
from tests.real.kafka_brokers import ApacheKafka, apache_kafka
from tests.real.kafka_cluster import ApacheKafkaCluster, apache_kafka_cluster
from tests.real.processes import scratch_directory
from tests.real.redis_servers import redis_software, standalone
from tests.real_learners import REPOSITORY

KILLS = "kills"
PATIENCE_WITH_TRANSACTIONS = 45.0
SLICE = 150
"""New events of a round."""
Kafka = ApacheKafka | ApacheKafkaCluster


@dataclass(frozen=True)
class Entry:
    scenario: Scenario
    rounds: int
    short_rounds: int
    slices_per_round: int = 1
    kafka: Callable[[], AbstractContextManager[Kafka]] = apache_kafka
    kafka_properties: Mapping[str, Any] = field(default_factory=dict)
    short_kafka_properties: Mapping[str, Any] = field(default_factory=dict)


SCENARIOS = {
    KILLS: Entry(scenarios.kills, 200, 12),
    "rebalance storm": Entry(scenarios.storm, 10, 2),
    "zombies": Entry(scenarios.zombies, 12, 3, slices_per_round=2),
    "redis restart": Entry(scenarios.redis_restart, 12, 3),
    # A worker must poll that often, and Redis is away for longer.
    "redis paused": Entry(
        scenarios.redis_pause,
        1,
        1,
        slices_per_round=2,
        kafka_properties={"max.poll.interval.ms": 25_000},
        short_kafka_properties={"max.poll.interval.ms": 8_000},
    ),
    "bad proxy": Entry(scenarios.bad_proxy, 12, 3),
    # Not of a single broker: as it comes back, its partitions have no leader for a moment, and Apache Kafka 4.3.1
    # then takes them for deleted and drops the markers of their transactions for good.
    "broker restart": Entry(scenarios.broker_restart, 6, 2, kafka=apache_kafka_cluster),
}


def main() -> int:
    options = _options()
    started = time.monotonic()
    chosen = [options.only] if options.only else list(SCENARIOS)
    all_figures: list[Figures] = []
    about = [
        f"{redis_software()} with append-only file, events of {source_of_events()}",
        f"seed {options.seed}, {'short' if options.short else 'long'} form",
        f"session.timeout.ms {SESSION_TIMEOUT_MS}, transaction.timeout.ms {TRANSACTION_TIMEOUT_MS}",
    ]
    _say("\n".join(about))
    for start, names in groupby(chosen, key=lambda name: SCENARIOS[name].kafka):
        together = list(names)
        with start() as kafka:
            about.append(f"{', '.join(together)}: {kafka.kind}")
            _say(about[-1])
            for name in together:
                entry = SCENARIOS[name]
                rounds = entry.short_rounds if options.short else entry.rounds
                if name == KILLS and options.rounds is not None:
                    rounds = options.rounds
                all_figures.append(_run(name, entry, rounds, options, kafka))
    minutes = (time.monotonic() - started) / 60
    report.write(all_figures, [*about, f"{minutes:.1f} minutes"], options.out)
    _say(f"\n{report.table(all_figures)}\n\n{minutes:.1f} minutes; {options.out / 'report.md'}")
    for figures in all_figures:
        for line in (*figures.notes, *figures.faults.details):
            _say(f"{figures.name}: {line}")
    return int(any(figures.faults.total for figures in all_figures))


def _run(name: str, entry: Entry, rounds: int, options: argparse.Namespace, kafka: Kafka) -> Figures:
    rng = random.Random(f"{options.seed}/{name}")
    figures = Figures(name)
    properties = entry.short_kafka_properties if options.short else entry.kafka_properties
    count = SLICE * (rounds * entry.slices_per_round + 1)
    with (
        standalone(append_only=True) as redis,
        scratch_directory("mastery-chaos-") as directory,
        Place(kafka, redis, directory, rng, kafka_properties=properties) as place,
    ):
        portions = slices(rng, history(rng, count), SLICE)
        run = Run(place, figures, portions, rounds, options.short, lambda line: _say(f"{name:<16} {line}"))
        try:
            entry.scenario(run)
        except NotCaughtUp as error:
            figures.faults.note("not_caught_up", str(error))
        figures.events = place.ledger.count
        _judge(place, figures.faults)
    return figures


def _judge(place: Place, faults: Faults) -> None:
    """Adds to what was seen on the way what is wrong in the end."""
    with place.redis.client() as client:
        place.ledger.check_redis(client, place.ledger.events, faults)
    with closing(TopicReader(place.kafka.bootstrap_servers, place.topics.results)) as results:
        deadline = time.monotonic() + PATIENCE_WITH_TRANSACTIONS
        while results.has_open_transactions() and time.monotonic() < deadline:
            time.sleep(0.2)
        if results.has_open_transactions():
            faults.note("hanging_transactions", "read-committed readers are kept from the end of the results")
        place.ledger.check_results(results.read(), faults)
    with closing(TopicReader(place.kafka.bootstrap_servers, place.topics.dead_letters)) as dead_letters:
        faults.dead_letters += len(dead_letters.read())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, help="of kills; 200, or 12 in the short form")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a few rounds of everything: under four minutes")
    parser.add_argument("--only", choices=list(SCENARIOS), help="one scenario")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".cache" / "chaos")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
