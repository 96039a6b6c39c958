"""How far a worker is behind, while it works and while it cannot."""

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from mastery_grpc.app import running_worker
from mastery_grpc.settings import Settings
from mastery_grpc.telemetry.instruments import METER, Histograms, PrometheusReader
from mastery_grpc.telemetry.process import ProcessTelemetry
from tests.builders import at, quiz, student
from tests.integration.ingesting import Log, Record, json_record, until, until_consumed
from tests.real.redis_servers import RedisServer


class Shown:
    """A worker's telemetry, and the lag that Prometheus reads of it."""

    def __init__(self) -> None:
        histograms = Histograms()
        self._registry = CollectorRegistry()
        self._provider = MeterProvider([PrometheusReader(histograms, registry=self._registry)])
        self.telemetry = ProcessTelemetry(self._provider.get_meter(METER), histograms)

    async def lags(self) -> list[float]:
        return [
            sample.value
            for family in self._registry.collect()
            if family.name == "mastery_ingest_lag"
            for sample in family.samples
        ]

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def shown() -> Iterator[Shown]:
    shown = Shown()
    yield shown
    shown.close()


def records(first: int, count: int) -> list[Record]:
    who = student("s1")  # one student, hence one partition
    return [json_record(quiz(1, 2, number=n, time=at(seconds=n), of=who)) for n in range(first, first + count)]


async def test_lag_grows_while_redis_is_away_and_is_gone_once_it_is_back(
    settings: Settings, log: Log, redis_server: RedisServer, shown: Shown
) -> None:
    async def is_level() -> bool:
        return await shown.lags() == [0]

    async def is_behind() -> bool:
        return await shown.lags() == [30]

    async with running_worker(settings, shown.telemetry):
        await asyncio.to_thread(log.send, records(1, 1))
        await until_consumed(log)
        await until(is_level, "nothing is behind")
        redis_server.kill()
        await asyncio.to_thread(log.send, records(2, 30))
        await until(is_behind, "what waits is seen")
        redis_server.revive()
        await until_consumed(log)
        await until(is_level, "nothing is behind any more")
    assert await shown.lags() == []
