"""The quotas in a process's memory: what tests may trust, and what a process goes by while Redis is away."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mastery_grpc.application.rate_limits import SLOTS, Grant, share_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.application.rate_limits import Demand, QuotaKey


class MemoryQuotas:
    """Implements `Quotas`; of more callers than `capacity` those not seen for longest are forgotten."""

    def __init__(self, *, period: float, timer: Callable[[], float], capacity: int = 100_000) -> None:
        """`period` in seconds, by `timer`."""
        self._slot_seconds = period / SLOTS
        self._timer = timer
        self._capacity = capacity
        self._counts: OrderedDict[QuotaKey, dict[int, int]] = OrderedDict()
        """The calls that count, by slot."""

    async def settle(self, demands: Sequence[Demand]) -> list[Grant]:
        return [self._settle(demand) for demand in demands]

    def _settle(self, demand: Demand) -> Grant:
        now = self._timer()
        slot = int(now // self._slot_seconds)
        counts = self._counts.pop(demand.key, {})
        if demand.slot in counts:
            counts[demand.slot] = max(0, counts[demand.slot] - demand.returned)
        # The slot that the period begins in counts in full: never are there more calls in a period than the limit.
        counts = {its: count for its, count in counts.items() if its >= slot - SLOTS and count}
        left = demand.limit - sum(counts.values()) - demand.paid
        granted = share_of(left, demand.waiting, demand.wish) if left > 0 else 0
        if counted := demand.paid + granted:
            counts[slot] = counts.get(slot, 0) + counted
        if counts:
            self._counts[demand.key] = counts
            if len(self._counts) > self._capacity:
                self._counts.popitem(last=False)
        left -= granted
        retry_after = 0.0
        if left <= 0 and not granted:
            freed = left
            for its in sorted(counts):
                freed += counts[its]
                retry_after = (its + SLOTS + 1) * self._slot_seconds - now
                if freed > 0:
                    break
        return Grant(granted, left, retry_after, slot)
