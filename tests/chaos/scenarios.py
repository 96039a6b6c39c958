"""What goes wrong: each scenario breaks something, round by round, while events flow, and waits for the cure."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from tests.chaos.dying_worker import Step
from tests.chaos.ledger import Faults, TopicReader
from tests.chaos.place import SESSION_TIMEOUT_MS, Fate, Place, Worker
from tests.chaos.proxy import BadProxy
from tests.chaos.traffic import EventJson
from tests.real.kafka_cluster import ApacheKafkaCluster

STREAM_SECONDS = 1.0
LOOK_EVERY = 10
"""Rounds between two looks at the results: so that one who doubles them is found near the moment."""
AT_RANDOM = "at a random moment"
STEPS: list[Step | None] = [None, *Step]


@dataclass
class Figures:
    """What one scenario came to."""

    name: str
    rounds: int = 0
    kills: int = 0
    events: int = 0
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    """What was done, and the seconds from it, or from its end, until the group had caught up."""
    faults: Faults = field(default_factory=Faults)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [seconds for _, seconds in self.recoveries]


@dataclass
class Run:
    """What a scenario works with."""

    place: Place
    figures: Figures
    slices: Iterator[list[EventJson]]
    rounds: int
    is_short: bool
    show: Callable[[str], None]

    @property
    def rng(self) -> random.Random:
        return self.place.rng

    def done(self, label: str, since: float, sent: list[EventJson]) -> None:
        """Waits for the group to catch up; takes the time, and a look at the students of the round."""
        self.place.until_caught_up()
        seconds = time.monotonic() - since
        self.figures.recoveries.append((label, seconds))
        self.figures.rounds += 1
        with self.place.redis.client() as client:
            self.place.ledger.check_redis(client, {event["student_id"] for event in sent}, self.figures.faults)
        if self.figures.rounds % LOOK_EVERY == 0:
            self.figures.faults.doubled_on_the_way = max(0, self._results_read() - self.place.ledger.count)
        verdict = "" if not self.figures.faults.total else f"  FAULTS: {self.figures.faults.counts}"
        self.show(f"{self.figures.rounds:>4}/{self.rounds}  {label:<32} {seconds:6.1f} s{verdict}")

    def _results_read(self) -> int:
        """Returns how many updates a read-committed reader sees."""
        with closing(TopicReader(self.place.kafka.bootstrap_servers, self.place.topics.results)) as reader:
            return sum(result["event_type"] == "mastery.updated" for result in reader.read())


class Scenario(Protocol):
    def __call__(self, run: Run) -> None: ...


def kills(run: Run) -> None:
    """One of two workers dies, by SIGKILL, at a random moment or at a named step; then it is started again."""
    place, rng = run.place, run.rng
    plan = [STEPS[number % len(STEPS)] for number in range(run.rounds)]
    rng.shuffle(plan)
    nths = [rng.randint(1, 3) for _ in plan]

    def start(number: int) -> Worker:
        """Starts the worker that is to die in this round."""
        step = plan[number] if number < len(plan) else None
        return place.start_worker(None if step is None else Fate(step, nths[number]))

    pair = [start(0), start(1)]
    for worker in pair:
        worker.until_ingesting()
    place.stream(next(run.slices), STREAM_SECONDS).result()
    place.until_caught_up()
    missed = 0
    for number, step in enumerate(plan):
        victim = pair[number % 2]
        victim.until_ingesting()
        if step is not None:
            victim.arm()
        events = next(run.slices)
        moment = rng.uniform(0, 1.2 * STREAM_SECONDS)
        sending = place.stream(events, STREAM_SECONDS)
        label = (step or AT_RANDOM).replace("_", " ")
        if step is None or not _has_died(victim, STREAM_SECONDS + 2):
            missed += step is not None
            if step is None:
                time.sleep(moment)
            victim.kill()
            label = AT_RANDOM
        killed = time.monotonic()
        run.figures.kills += 1
        pair[number % 2] = start(number + 2)
        sending.result()
        run.done(label, killed, events)
    run.figures.notes.append(f"{missed} victims did not come by their step in time, and died at a random moment")


def storm(run: Run) -> None:
    """Workers join and leave every second or two, politely or by SIGKILL, while events flow."""
    place, rng = run.place, run.rng
    crew = [place.start_worker()]
    crew[0].until_ingesting()
    for _ in range(run.rounds):
        events = next(run.slices)
        sending = place.stream(events, 7.0)
        for _ in range(5):
            time.sleep(rng.uniform(0.8, 2.0))
            if len(crew) == 1 or (len(crew) < 4 and rng.random() < 0.5):
                crew.append(place.start_worker())
            else:
                leaver = crew.pop(rng.randrange(len(crew)))
                if rng.random() < 0.5:
                    leaver.kill()
                    run.figures.kills += 1
                else:
                    leaver.signal(signal.SIGTERM)
        calm = time.monotonic()
        sending.result()
        run.done("five changes", calm, events)


def zombies(run: Run) -> None:
    """A worker is stopped at a step for longer than its session lasts, and then goes on as if nothing had been."""
    place, rng = run.place, run.rng
    steps = [
        Step.BEFORE_OFFSETS,
        Step.AFTER_REDIS_COMMIT,
        Step.BEFORE_TRANSACTION_COMMIT,
        Step.BEFORE_PRODUCE,
    ]
    other = place.start_worker()
    other.until_ingesting()
    for number in range(run.rounds):
        step = steps[number % len(steps)]
        victim = place.start_worker(Fate(step, rng.randint(1, 3), is_stop=True))
        victim.arm()
        time.sleep(1.0)  # until it has its partitions
        events = next(run.slices)
        sending = place.stream(events, STREAM_SECONDS)
        if not _within(STREAM_SECONDS + 2, lambda victim=victim: victim.is_stopped):  # type: ignore[misc]
            victim.signal(signal.SIGSTOP)
        run.figures.kills += 1
        time.sleep(SESSION_TIMEOUT_MS / 1000 * rng.uniform(1.3, 2.0))
        woken = time.monotonic()
        victim.signal(signal.SIGCONT)
        sending.result()
        more = next(run.slices)
        place.stream(more, 0.3).result()
        run.done(f"stopped {step}".replace("_", " "), woken, events + more)
        victim.stop()


def broker_restart(run: Run) -> None:
    """One of three brokers is stopped or killed, and started again, while events flow; each round another one."""
    place, rng = run.place, run.rng
    cluster = place.kafka
    assert isinstance(cluster, ApacheKafkaCluster)
    for worker in (place.start_worker(), place.start_worker()):
        worker.until_ingesting()
    cluster.until_in_sync()
    victim = None
    for number in range(run.rounds):
        victim = rng.choice([node for node in cluster.nodes if node is not victim])
        events = next(run.slices)
        sending = place.stream(events, 2 * STREAM_SECONDS)
        time.sleep(rng.uniform(0.2, 1.5))
        gone = time.monotonic()
        if number % 2:
            victim.stop()
        else:
            victim.kill()
            run.figures.kills += 1
        time.sleep(rng.uniform(0, 2))
        victim.launch()
        sending.result()
        run.done("broker stopped" if number % 2 else "broker killed", gone, events)
        cluster.until_in_sync()  # as who restarts brokers one by one would: the next one must be dispensable too


def redis_restart(run: Run) -> None:
    """Redis is killed and started again from its append-only file, while events flow."""
    place, rng = run.place, run.rng
    for worker in (place.start_worker(), place.start_worker()):
        worker.until_ingesting()
    for _ in range(run.rounds):
        events = next(run.slices)
        sending = place.stream(events, STREAM_SECONDS)
        time.sleep(rng.uniform(0.1, STREAM_SECONDS))
        gone = time.monotonic()
        place.redis.kill()
        run.figures.kills += 1
        time.sleep(rng.uniform(0, 2))
        place.redis.start()
        sending.result()
        run.done("redis killed", gone, events)


def redis_pause(run: Run) -> None:
    """Redis keeps its connections and answers nothing, for longer than a consumer may go without polling."""
    place = run.place
    seconds = 10 if run.is_short else 60
    workers = [place.start_worker(), place.start_worker()]
    for worker in workers:
        worker.until_ingesting()
    for _ in range(run.rounds):
        before = next(run.slices)
        place.stream(before, STREAM_SECONDS).result()
        place.until_caught_up()
        ended = sum(worker.log_count("kafka session ended") for worker in workers)
        place.redis.pause()
        events = next(run.slices)
        sending = place.stream(events, STREAM_SECONDS)
        time.sleep(seconds)
        place.redis.resume()
        resumed = time.monotonic()
        sending.result()
        run.done(f"redis paused for {seconds} s", resumed, before + events)
        ended = sum(worker.log_count("kafka session ended") for worker in workers) - ended
        run.figures.notes.append(f"{ended} of 2 workers had to join their group anew")


def bad_proxy(run: Run) -> None:
    """Between the workers and Redis: replies come late, are swallowed, or the connection is cut instead."""
    place = run.place
    with BadProxy(place.redis.port, run.rng).running() as proxy:
        place.settings_of_its_own = {
            "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0",
            "REDIS_TIMEOUT": "0.5",
        }
        for worker in (place.start_worker(), place.start_worker()):
            worker.until_ingesting()
        for _ in range(run.rounds):
            events = next(run.slices)
            sending = place.stream(events, 2 * STREAM_SECONDS)
            proxy.is_bad = True
            time.sleep(4)
            proxy.is_bad = False
            calm = time.monotonic()
            sending.result()
            run.done("four bad seconds", calm, events)
        run.figures.notes.append(
            f"replies delayed {proxy.delayed}, swallowed {proxy.swallowed}, connections cut {proxy.cut}"
        )


def _has_died(worker: Worker, seconds: float) -> bool:
    return _within(seconds, lambda: not worker.running)


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
