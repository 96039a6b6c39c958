"""How often a cache had what was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheTally:
    """Counts since the process began."""

    hits: int = 0
    misses: int = 0

    def take(self, *, asked: int, missing: int) -> None:
        """Counts one look at the cache."""
        self.hits += asked - missing
        self.misses += missing
