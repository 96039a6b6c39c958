"""The use case of recomputing students from their event logs and repairing what differs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING

from mastery_grpc.application.ports import StudentRewrite
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.scoring import Components
from mastery_grpc.domain.student import Mastery, StudentState, mastery_of
from mastery_grpc.domain.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime, timedelta

    from mastery_grpc.application.ports import StoredMasteries, StudentHistory, StudentRepository
    from mastery_grpc.domain.scoring import ScoringRules

MAX_ATTEMPTS = 50
"""Each failed attempt means that somebody else wrote the student in the milliseconds that it took."""


class Verdict(StrEnum):
    """What became of one student."""

    RIGHT = "right"
    """What is stored is what the log amounts to."""
    WRONG = "wrong"
    """It differs, and was left alone."""
    REPAIRED = "repaired"
    UNKNOWN = "unknown"
    """Nothing is known of him that a mastery could be recomputed from."""
    LOG_INCOMPLETE = "log incomplete"
    """The log holds fewer events than the mastery counts: what is stored knows more, and was left alone."""
    BUSY = "busy"
    """Others kept changing the student, so nothing could be compared or repaired."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One stored thing that is not what the log amounts to."""

    what: str
    """`state`, `mastery`, `snapshot 2026-01-12`, or `scores 2026-01-12`."""
    stored: StudentState | Mastery | Components | None
    """None if it is missing or cannot be read."""
    recomputed: StudentState | Mastery | Components


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found of one student."""

    student: StudentKey
    verdict: Verdict
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class _Recomputed:
    """What one student's log amounts to by the rules of today."""

    base: StudentState
    state: StudentState
    mastery: Mastery
    snapshots: dict[date, Mastery]
    """The last mastery of every day with an event in the log."""


class RebuildStudents:
    """Folds logs by the current rules and compares; may run beside every other writer.

    What is compared is of one moment, though it takes several reads: the revision is the same before the first
    and in the last, and every write changes it. What is written replaces just the revision that was compared.
    Whoever loaded that revision to fold on from it is refused in turn, and loads what the rebuild wrote.
    """

    def __init__(
        self,
        repository: StudentRepository,
        *,
        rules: ScoringRules,
        snapshot_retention: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._repository = repository
        self._rules = rules
        self._snapshot_retention = snapshot_retention
        self._clock = clock

    async def __call__(self, students: Sequence[StudentKey], *, apply: bool) -> list[Rebuilt]:
        """Returns what was found of each student, once each; repairs it if `apply` says so.

        Raises StorageUnavailable; then some may have been repaired and others not, and repeating is safe.
        """
        found: dict[StudentKey, Rebuilt] = {}
        pending = list(dict.fromkeys(students))
        for _ in range(MAX_ATTEMPTS):
            if not pending:
                break
            found |= await self._attempt(pending, apply=apply)
            pending = [student for student in pending if student not in found]
        return [found.get(student, Rebuilt(student, Verdict.BUSY)) for student in dict.fromkeys(students)]

    async def _attempt(self, students: Sequence[StudentKey], *, apply: bool) -> dict[StudentKey, Rebuilt]:
        """Returns what was found, without the students that changed meanwhile."""
        histories = {history.student: history for history in await self._repository.load_histories(students)}
        recomputed = {student: self._recompute(history) for student, history in histories.items()}
        days = {student: list(result.snapshots) if result else [] for student, result in recomputed.items()}
        stored = dict(zip(days, await self._repository.load_masteries(days), strict=True))
        found: dict[StudentKey, Rebuilt] = {}
        wrong: dict[StudentKey, tuple[Difference, ...]] = {}
        for student, history in histories.items():
            if stored[student].revision != history.revision:
                continue
            result = recomputed[student]
            if (result.state.event_count if result else 0) < history.revision.version:
                found[student] = Rebuilt(student, Verdict.LOG_INCOMPLETE)
            elif result is None:
                found[student] = Rebuilt(student, Verdict.UNKNOWN)
            elif differences := tuple(self._differences(history, stored[student], result)):
                wrong[student] = differences
                found[student] = Rebuilt(student, Verdict.WRONG, differences)
            else:
                found[student] = Rebuilt(student, Verdict.RIGHT)
        if not apply or not wrong:
            return found
        rewrites = []
        for student, differences in wrong.items():
            if (result := recomputed[student]) is not None:
                rewrites.append(self._rewrite(histories[student], result, differences))
        for rewrite, is_written in zip(rewrites, await self._repository.rewrite(rewrites), strict=True):
            if is_written:
                found[rewrite.student] = Rebuilt(rewrite.student, Verdict.REPAIRED, wrong[rewrite.student])
            else:
                del found[rewrite.student]
        return found

    def _recompute(self, history: StudentHistory) -> _Recomputed | None:
        """Returns what the log amounts to, None for a student without events."""
        # Where all of the log has expired, the state stands for everything before.
        base = history.base if history.log or history.state is None else history.state
        timeline = Timeline(base=base, events=[logged.event for logged in history.log], rules=self._rules)
        if not timeline.state.event_count:
            return None
        return _Recomputed(
            base,
            timeline.state,
            self._mastery_of(history.student, timeline.state),
            {
                day: self._mastery_of(history.student, state)
                for day, state in timeline.last_states_since(date.min).items()
            },
        )

    def _differences(
        self, history: StudentHistory, stored: StoredMasteries, recomputed: _Recomputed
    ) -> Iterator[Difference]:
        if history.state != recomputed.state:
            yield Difference("state", history.state, recomputed.state)
        if stored.current != recomputed.mastery:
            yield Difference("mastery", stored.current, recomputed.mastery)
        for day in sorted(recomputed.snapshots):
            snapshot, kept = recomputed.snapshots[day], stored.days.get(day)
            if kept is None:
                if not self._may_have_expired(history, day):
                    yield Difference(f"snapshot {day}", None, snapshot)
                continue
            if kept.mastery != snapshot:
                yield Difference(f"snapshot {day}", kept.mastery, snapshot)
            if kept.scores != snapshot.components:
                yield Difference(f"scores {day}", kept.scores, snapshot.components)

    def _may_have_expired(self, history: StudentHistory, day: date) -> bool:
        """Returns whether a day's snapshot was last written so long ago that it need not be there any more."""
        written = max(log.written_time for log in history.log if log.event.event_time.date() == day)
        return self._clock() - written >= self._snapshot_retention

    def _rewrite(
        self, history: StudentHistory, recomputed: _Recomputed, differences: Sequence[Difference]
    ) -> StudentRewrite:
        wrong_days = {difference.what.rpartition(" ")[2] for difference in differences}
        return StudentRewrite(
            student=history.student,
            expected=history.revision,
            state=recomputed.state,
            base=recomputed.base,
            log_start_time=history.log_start_time
            or min((logged.written_time for logged in history.log), default=self._clock()),
            mastery=recomputed.mastery,
            snapshots={day: each for day, each in recomputed.snapshots.items() if str(day) in wrong_days},
        )

    def _mastery_of(self, student: StudentKey, state: StudentState) -> Mastery:
        return mastery_of(student, state, self._rules)
