"""The growing end of a school's audit log, which many processes append to."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

import structlog

from mastery_grpc.application.audit.store import ChainEnd, SealedEntries
from mastery_grpc.domain.audit_chain import Chain, Mark
from mastery_grpc.domain.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.audit.store import AuditStore
    from mastery_grpc.domain.audit_chain import AuditKeys, Draft

MOST_ATTEMPTS = 100
"""At winning the end from other processes, before the next flush tries again."""

FIRST_PAUSE = 0.002
"""Seconds at most after a lost attempt; grows tenfold."""

log = structlog.get_logger(__name__)


class _Attempt(NamedTuple):
    sealed: SealedEntries
    mark: Mark
    size: int


class OpenChain:
    """Appends to the log of one school, each entry exactly once, and remembers where it ended."""

    def __init__(self, store: AuditStore, keys: AuditKeys, school_id: str) -> None:
        self.witness: Mark | None = None
        """Where this process has seen the log end; of a log that was put back, where it ended before."""
        self._store = store
        self._chain = Chain(keys, school_id)
        self._school_id = school_id
        self._end = ChainEnd()
        self._is_new: bool | None = None
        self._was_put_back = False
        self._pending: _Attempt | None = None

    async def finish(self) -> int:
        """Tries once more what was last tried and may have been done; returns its size if it is done now, else 0.

        Raises StorageUnavailable.
        """
        attempt = self._pending
        return attempt.size if attempt is not None and await self._try(attempt) else 0

    async def append(self, drafts: Sequence[Draft], size: int) -> None:
        """Appends entries. `size` is what `finish` returns if that is not known to be done.

        Raises StorageUnavailable: then `finish` has to come first.
        """
        if self._is_new is None:
            self._is_new = not await self._store.has_log(self._school_id)
        for attempt in range(MOST_ATTEMPTS):
            after, is_broken = self._mark_of_end()
            records, mark = self._chain.seal(after, drafts)
            sealed = SealedEntries(self._end.head, self._chain.sign_head(mark), after.sequence + 1, records)
            self._pending = made = _Attempt(sealed, mark, size)
            if await self._try(made):
                if is_broken:
                    log.error(
                        "the head of the audit log was lost", school_id=self._school_id, after=after.sequence
                    )
                return
            # Whoever lost gives way, so that equals do not meet again and again.
            await asyncio.sleep(random.uniform(0, FIRST_PAUSE * min(attempt + 1, 10)))  # noqa: S311 - not a secret
        raise StorageUnavailable("audit log: other processes keep appending")

    async def _try(self, attempt: _Attempt) -> bool:
        appended = await self._store.append(self._school_id, attempt.sealed)
        self._pending = None
        self._end = appended.end
        if appended.is_done and appended.is_replicated and not self._was_put_back:
            self.witness = attempt.mark
        return appended.is_done

    def _mark_of_end(self) -> tuple[Mark, bool]:
        """Returns after which mark the next entry comes, and whether that is a break: where the end cannot be
        trusted, it is not signed as if it could, and the entry that follows says so for ever."""
        head, last = self._end
        mark = self._chain.head_in(head) if head else Mark()
        witness = self.witness
        if witness is not None and (mark is None or mark.sequence < witness.sequence):
            self._tell_put_back(mark, witness)
        was_there = witness is not None or not self._is_new
        if mark is None or last > mark.sequence or (not head and was_there):
            return Mark(max(last, mark.sequence if mark else 0), self._chain.broken), True
        return mark, False

    def _tell_put_back(self, mark: Mark | None, witness: Mark) -> None:
        if not self._was_put_back:
            self._was_put_back = True
            log.error(
                "the audit log was put back to an older state",
                school_id=self._school_id,
                found=None if mark is None else mark.sequence,
                sequence=witness.sequence,
                mac=witness.mac.hex(),
            )
