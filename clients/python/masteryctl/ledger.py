"""How far a file of events is sent, kept beside it, and which of its lines were refused."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mastery_client import error_of
from masteryctl.failures import CommandFailed

if TYPE_CHECKING:
    from mastery.v1.mastery_service_pb2 import StreamEventsResponse

HEAD = 64 * 1024
"""So many bytes tell one file from another."""
SAVE_SECONDS = 1.0


@dataclass
class Progress:
    """What became of the lines of a file, up to and with `line`."""

    line: int = 0
    accepted: int = 0
    duplicates: int = 0
    """Of those accepted: sent before."""
    refused: int = 0
    head: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    line: int
    refusal: dict[str, Any] | None
    """None for an event that is on its way."""


@dataclass
class Ledger:
    """Lines are entered as they are read and settled in the same order: all before `line` have their outcome."""

    file: Path
    refused_file: Path
    progress: Progress = field(default_factory=Progress)
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _refusals: list[dict[str, Any]] = field(default_factory=list)
    _saved_at: float = 0.0

    @property
    def state_file(self) -> Path:
        """Where the progress is kept; there is none once the file is sent."""
        return self.file.with_name(f"{self.file.name}.progress.json")

    def begin(self, *, restart: bool) -> None:
        """Takes up the work where it was left. Raises CommandFailed if the file has become another."""
        head, sha256 = _fingerprint(self.file, HEAD)
        if restart or not self.state_file.exists():
            self.progress = Progress(head=head, sha256=sha256)
            self.refused_file.unlink(missing_ok=True)
            return
        try:
            self.progress = Progress(**json.loads(self.state_file.read_text()))
        except (ValueError, TypeError):
            raise CommandFailed(f"{self.state_file}: is damaged; --restart begins anew") from None
        if _fingerprint(self.file, self.progress.head) != (self.progress.head, self.progress.sha256):
            raise CommandFailed(f"{self.file} is not the file that was sent in part; --restart begins anew")
        if self.refused_file.exists():  # it may be ahead of the progress that was saved
            entries = [json.loads(line) for line in self.refused_file.read_text().splitlines()]
            kept = [entry for entry in entries if entry["line"] <= self.progress.line]
            self.refused_file.write_text("".join(map(_line, kept)))

    def enter(self, line: int) -> None:
        """Takes note of a line whose event is on its way."""
        self._waiting.append(_Waiting(line, None))

    def refuse(self, line: int, reason: str) -> None:
        """Takes note of a line that holds no event."""
        self._waiting.append(_Waiting(line, {"line": line, "reason": "INVALID_LINE", "message": reason}))
        self._settle_refusals()

    def acknowledge(self, response: StreamEventsResponse) -> None:
        """Settles the oldest event on its way."""
        waiting = self._waiting.popleft()
        self.progress.line = waiting.line
        if response.accepted:
            self.progress.accepted += 1
            self.progress.duplicates += response.duplicate
        else:
            error = error_of(response.error)
            self._refused(
                {
                    "line": waiting.line,
                    "event_id": response.event_id,
                    "reason": error.reason or error.code.name,
                    "message": error.message,
                }
            )
        self._settle_refusals()
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes down what is settled: refusals first, so that none is lost between the two."""
        if self._refusals:
            with self.refused_file.open("a") as report:
                report.write("".join(map(_line, self._refusals)))
            self._refusals.clear()
        fresh = self.state_file.with_suffix(".fresh")
        fresh.write_text(_line(asdict(self.progress)))
        fresh.replace(self.state_file)
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Ends the work: everything is settled."""
        self.save()
        self.state_file.unlink()

    def _settle_refusals(self) -> None:
        while self._waiting and (refusal := self._waiting[0].refusal) is not None:
            self.progress.line = self._waiting.popleft().line
            self._refused(refusal)

    def _refused(self, refusal: dict[str, Any]) -> None:
        self.progress.refused += 1
        self._refusals.append(refusal)


def _fingerprint(file: Path, size: int) -> tuple[int, str]:
    with file.open("rb") as opened:
        head = opened.read(size)
    return len(head), hashlib.sha256(head).hexdigest()


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
