"""A fake server, and a client of it for each face."""

from collections.abc import AsyncIterator, Iterator

import pytest

from mastery_client import AsyncClient, Client
from mastery_client.testing import FakeServer

TOKEN = "the-token-that-nobody-may-see"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(fake.address, token=TOKEN, stream_patience=20) as client:
        yield client


@pytest.fixture
def waiting_client(fake: FakeServer) -> Iterator[Client]:
    with Client(fake.address, token=TOKEN, stream_patience=20) as client:
        yield client
