"""Counters and histograms whose attributes are bound once, when they are composed.

The SDK's own look the attributes up at every measurement, which takes 10 to 20 µs; these count in plain numbers,
in less than one. The SDK collects them all the same: counters by its callbacks, and histograms, for which it has
none, through readers that add them to what it collected.

Each bound instrument is written by one thread. Reading it meanwhile is safe, and at most one measurement behind.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Meter

METER = "mastery_grpc"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Bounds of durations, as the semantic conventions of RPC and messaging advise them."""

Attributes = dict[str, str]
Readings = Iterable[tuple[float, Attributes]]
"""Values, and the attributes that they have."""
_Bound = TypeVar("_Bound")


class Count:
    """A sum under one set of attributes."""

    __slots__ = ("attributes", "value")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Adds to the sum."""
        self.value += amount


class Distribution:
    """Measurements under one set of attributes, by size."""

    __slots__ = ("_bounds", "_counts", "_least", "_most", "_start", "_sum", "attributes")

    def __init__(self, attributes: Attributes, bounds: Sequence[float]) -> None:
        self.attributes = attributes
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._least, self._most = math.inf, -math.inf
        self._start = time.time_ns()

    def record(self, value: float) -> None:
        """Takes down one measurement."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        if value < self._least:
            self._least = value
        if value > self._most:
            self._most = value

    def points(self, now: int) -> Iterator[HistogramDataPoint]:
        """Yields all measurements so far as one point, none if there is none; `now` in nanoseconds."""
        counts = self._counts.copy()
        if count := sum(counts):
            yield HistogramDataPoint(
                attributes=self.attributes,
                start_time_unix_nano=self._start,
                time_unix_nano=now,
                count=count,
                sum=self._sum,
                bucket_counts=counts,
                explicit_bounds=self._bounds,
                min=self._least,
                max=self._most,
            )


class Counter:
    """One metric: a count for each set of attributes."""

    def __init__(self) -> None:
        self._counts: dict[tuple[tuple[str, str], ...], Count] = {}

    def at(self, attributes: Mapping[str, str]) -> Count:
        """Returns the count under these attributes; it is shown from now on, be it 0."""
        return _bound(self._counts, attributes, Count)

    def observe(self, options: CallbackOptions) -> Iterator[Observation]:
        """Yields the counts, for the SDK."""
        for count in list(self._counts.values()):
            yield Observation(count.value, count.attributes)


class Histogram:
    """One metric: a distribution for each set of attributes."""

    def __init__(self, name: str, *, unit: str, description: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._unit = unit
        self._description = description
        self._bounds = bounds
        self._distributions: dict[tuple[tuple[str, str], ...], Distribution] = {}

    def at(self, attributes: Mapping[str, str]) -> Distribution:
        """Returns the distribution under these attributes."""
        return _bound(self._distributions, attributes, lambda own: Distribution(own, self._bounds))

    def metrics(self, now: int) -> Iterator[Metric]:
        """Yields what there is as one metric, none if nothing was measured yet."""
        if points := [point for each in list(self._distributions.values()) for point in each.points(now)]:
            data = HistogramData(data_points=points, aggregation_temporality=AggregationTemporality.CUMULATIVE)
            yield Metric(name=self._name, description=self._description, unit=self._unit, data=data)


class Histograms:
    """All histograms of a process."""

    def __init__(self) -> None:
        self._all: list[Histogram] = []

    def add(self, histogram: Histogram) -> None:
        """Shows one more."""
        self._all.append(histogram)

    def beside(self, collected: MetricsData) -> MetricsData:
        """Returns what the SDK collected, and the histograms with it."""
        now = time.time_ns()
        metrics = [metric for histogram in self._all for metric in histogram.metrics(now)]
        # All of one process is about one resource; and a scope that came twice would count once with OTLP.
        [resource] = collected.resource_metrics
        scopes = [
            replace(scope, metrics=[*scope.metrics, *metrics]) if scope.scope.name == METER else scope
            for scope in resource.scope_metrics
        ]
        return MetricsData([replace(resource, scope_metrics=scopes)])


class Instruments:
    """Makes the instruments of a process; each name once."""

    def __init__(self, meter: Meter, histograms: Histograms) -> None:
        self._meter = meter
        self._histograms = histograms

    def counter(self, name: str, *, unit: str, description: str) -> Counter:
        """Returns a new counter."""
        counter = Counter()
        self._meter.create_observable_counter(name, [counter.observe], unit, description)
        return counter

    def histogram(
        self, name: str, *, unit: str = "s", description: str, bounds: Sequence[float] = SECONDS
    ) -> Histogram:
        """Returns a new histogram."""
        histogram = Histogram(name, unit=unit, description=description, bounds=bounds)
        self._histograms.add(histogram)
        return histogram

    def read_counter(self, name: str, *, unit: str, description: str, read: Callable[[], Readings]) -> None:
        """Makes a counter of what somebody else counts."""
        self._meter.create_observable_counter(name, [_reading(read)], unit, description)

    def read_gauge(self, name: str, *, unit: str = "", description: str, read: Callable[[], Readings]) -> None:
        """Makes a gauge of what somebody else knows."""
        self._meter.create_observable_gauge(name, [_reading(read)], unit, description)


class PrometheusReader(PrometheusMetricReader):
    """Shows everything to Prometheus."""

    def __init__(self, histograms: Histograms, **options: Any) -> None:
        self._histograms = histograms
        super().__init__(scope_info_enabled=False, **options)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self._histograms.beside(metrics_data), timeout_millis, **kwargs)


class PushingReader(PeriodicExportingMetricReader):
    """Sends everything from time to time."""

    def __init__(self, histograms: Histograms, **options: Any) -> None:
        self._histograms = histograms
        super().__init__(**options)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self._histograms.beside(metrics_data), timeout_millis, **kwargs)


def _bound(
    known: dict[tuple[tuple[str, str], ...], _Bound],
    attributes: Mapping[str, str],
    bind: Callable[[Attributes], _Bound],
) -> _Bound:
    key = tuple(attributes.items())
    if (found := known.get(key)) is None:
        found = known[key] = bind(dict(attributes))
    return found


def _reading(read: Callable[[], Readings]) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        for value, attributes in read():
            yield Observation(value, attributes)

    return observe
