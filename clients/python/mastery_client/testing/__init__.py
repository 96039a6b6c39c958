"""A server for the tests of those who call the mastery engine: real gRPC on a loopback port, in this process.

    with FakeServer() as fake:
        fake.set_mastery("s1", quiz=0.8)
        fake.fail("GetMastery", "UNAVAILABLE", reason="STORAGE_UNAVAILABLE", times=2)
        client = Client(fake.address, token="any")
        assert client.mastery.get_mastery(student_id="s1").mastery.components.quiz == 0.8
        assert len(fake.requests("GetMastery")) == 3

It remembers masteries and events, and tells watchers. Events do no more than set what they observe;
the rules of scoring are the engine's. What other methods answer is for the test to say, with `answer`.
"""

from mastery_client.testing.server import FakeServer, RecordedCall
from mastery_client.testing.statuses import status_with

__all__ = ["FakeServer", "RecordedCall", "status_with"]
