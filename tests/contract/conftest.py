"""The stores that several suites are about."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.memory_cohorts import MemoryCohortStore
from mastery_grpc.storage.redis_cohorts import RedisCohortStore
from tests.contract.cohorts import CLASS, Stores


@pytest.fixture(params=["memory", "redis", "redis cluster"])
async def cohort_stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        memory = MemoryCohortStore()
        yield Stores(memory, memory)
        return
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        url = request.getfixturevalue("redis_cluster").url.replace("redis://", "redis+cluster://")
    async with AsyncExitStack() as stack:
        clients = [connect(url, timeout=5), connect(url, timeout=5)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        one, other = (RedisCohortStore(client, retention=keys.Retention()) for client in clients)
        for store in (one, other):  # so that a cluster's client gets to know the nodes once, whatever comes first
            await store.load(CLASS)
        yield Stores(one, other, clients[0])
