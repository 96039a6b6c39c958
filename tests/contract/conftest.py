"""The stores that several suites are about."""

from collections.abc import AsyncIterator

import pytest

from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.memory.cohorts import MemoryCohortStore
from mastery_grpc.storage.redis_cohorts import RedisCohortStore
from tests.contract.clients import Clients
from tests.contract.cohorts import CLASS, Stores


@pytest.fixture(params=["memory", "redis", "redis cluster"])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    """Whoever asks for it runs three times: on the fake, on Redis, and on a Redis Cluster."""
    if request.param == "memory":
        yield None
        return
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        url = request.getfixturevalue("redis_cluster").url.replace("redis://", "redis+cluster://")
    one, other = connect(url, timeout=5), connect(url, timeout=5)
    yield one, other
    await one.aclose()
    await other.aclose()


@pytest.fixture
async def cohort_stores(clients: Clients) -> AsyncIterator[Stores]:
    if clients is None:
        memory = MemoryCohortStore()
        yield Stores(memory, memory)
        return
    one, other = (RedisCohortStore(client, retention=keys.Retention()) for client in clients)
    for store in (one, other):  # so that a cluster's client gets to know the nodes once, whatever comes first
        await store.load(CLASS)
    yield Stores(one, other, clients[0])
