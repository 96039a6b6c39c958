"""Where batches are kept, queued and announced: the ports of the batch use cases, and what passes through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from mastery_grpc.domain.batch import Batch, BatchKey, BatchOperation, BatchPriority, Chunk
from mastery_grpc.domain.errors import MasteryError
from mastery_grpc.domain.forecasting.forecast import Forecast
from mastery_grpc.domain.recommendations import Recommendation
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

CLAIM_SECONDS = 10.0
"""A chunk that nobody has worked on for so long is given to another worker."""
LOST_SECONDS = 10.0
"""After so long a batch must be in the queues, or it was lost on its way there."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One student of a batch, and what is given for him."""

    student_id: str
    """As it was sent; empty for one who was erased."""
    components: Components | None = None
    error: MasteryError | None = None
    """Why he cannot be worked on, whatever is known of him."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemForecast:
    """A forecast as the result of an item."""

    student_id: str
    school_id: str
    forecast: Forecast
    forecaster: str
    model_version: str
    create_time: datetime
    from_cache: bool


ItemOutcome = Mastery | ItemForecast | tuple[Recommendation, ...] | MasteryError


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item."""

    index: int
    student_id: str
    outcome: ItemOutcome

    @property
    def score(self) -> float | None:
        """The score that it tells, None if it tells none."""
        match self.outcome:
            case Mastery():
                return self.outcome.mastery_score
            case ItemForecast():
                return self.outcome.forecast.predicted_score
            case _:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch to be taken."""

    key: BatchKey
    operation: BatchOperation
    priority: BatchPriority
    items: Sequence[BatchItem]
    create_time: datetime
    expire_time: datetime
    owner: str
    """Stands for the caller, of whose batches so many may be open at a time."""
    digest: str
    """Of what was asked for: under one request id it is the same."""


class BatchStore(Protocol):
    """The batches of all schools, for as long as they are kept. Every method raises StorageUnavailable."""

    async def submit(self, new: NewBatch, *, most_open: int) -> Batch:
        """Stores a batch and queues its chunks; one that is there already is left as it is and returned.

        0 for `most_open`: any number. Raises TooManyOpen; RequestIdReused if what is there was asked for in other
        words. After StorageUnavailable it may be there or not, and repeating completes it.
        """

    async def load(self, key: BatchKey) -> Batch:
        """Returns how far a batch is. Raises BatchNotFound."""

    async def load_results(self, key: BatchKey, indices: range) -> list[ItemResult]:
        """Returns the results of these items, as far as they are there."""

    async def load_scores(self, key: BatchKey) -> list[float]:
        """Returns the scores of all results that tell one, in ascending order."""

    async def cancel(self, key: BatchKey, now: datetime) -> Batch:
        """Ends a batch. Raises BatchNotFound, BatchEnded."""


@dataclass(frozen=True, slots=True)
class TakenChunk:
    """A chunk in the hands of a worker."""

    chunk: Chunk
    priority: BatchPriority
    entry_id: str
    """Of the queue."""
    deliveries: int
    """How often it was handed out, this time included."""


@dataclass(frozen=True, slots=True)
class BegunChunk:
    """What there is to do."""

    taken: TakenChunk
    batch: Batch
    items: Mapping[int, BatchItem]
    """By their places in the batch."""


class BatchWork(Protocol):
    """The queues of chunks, one for each priority, and what workers need of the batches behind them.

    Every method raises StorageUnavailable, and repeating is safe.
    """

    async def take(self, order: Sequence[BatchPriority]) -> TakenChunk | None:
        """Takes a chunk that nobody works on, of the first priority that has one; None if there is none.

        Nobody is who has not been heard of for `CLAIM_SECONDS`.
        """

    async def keep(self, taken: TakenChunk) -> None:
        """Says that a chunk is still being worked on."""

    async def begin(self, taken: TakenChunk, now: datetime) -> BegunChunk | None:
        """Returns what there is to do; None, and the chunk is off the queue, if there is nothing any more."""

    async def finish(self, begun: BegunChunk, results: Sequence[ItemResult], now: datetime) -> None:
        """Stores the results, unless somebody else has, and takes the chunk off the queue.

        Of students who were erased since the batch was submitted, nothing is left then: an erasure sets its mark
        and looks for results after that; this writes results and looks for marks after that.
        """

    async def requeue_lost(self, now: datetime) -> int:
        """Queues the chunks again that were to be in a queue and are in none; returns how many.

        Returns 0 where another worker did so a moment ago.
        """


class BatchNews(Protocol):
    """Tells when a batch may have changed."""

    async def next(self) -> None:
        """Waits until it may have changed since the last time. Raises ShuttingDown."""


class BatchFeed(Protocol):
    """The announcements about batches."""

    def subscribe(self, key: BatchKey) -> AbstractAsyncContextManager[BatchNews]:
        """Returns the news of one batch, live from entering the context on."""

    async def until_work(self, seconds: float) -> None:
        """Waits until something may have been queued, or so many seconds."""
