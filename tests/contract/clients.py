"""On what the suites of the ports run."""

from typing import Any

Clients = tuple[Any, Any] | None
"""Two clients of one empty Redis or Redis Cluster, as two processes have them; None for the fake.

Of no type: the two drivers agree on less than they have in common.
"""
