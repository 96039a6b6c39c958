"""Who is told of the round trips to Redis."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class RoundTrip(Protocol):
    """Commands under way."""

    def end(self, error: Exception | None) -> None:
        """Takes note that the replies are there, or why they are not."""


class CommandObserver(Protocol):
    """Observes what one client asks of Redis."""

    def begin(self, commands: Sequence[tuple[Any, ...]]) -> RoundTrip:
        """Takes note of commands that are sent together."""


_observers: WeakKeyDictionary[object, CommandObserver] = WeakKeyDictionary()


def observe(client: object, observer: CommandObserver) -> None:
    """Lets somebody observe a client from now on, for as long as there is the client."""
    _observers[client] = observer


@contextmanager
def observed(client: object, commands: Sequence[tuple[Any, ...]]) -> Iterator[None]:
    """Tells the client's observer, if it has one, of the commands that the body runs."""
    if (observer := _observers.get(client)) is None:
        yield
        return
    trip = observer.begin(commands)
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
        raise
    finally:
        trip.end(failure)
