"""Sending events from a file: read, sent, resumed, and what was refused reported."""

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery.v1 import mastery_service_pb2 as pb
from mastery_client.testing import FakeServer, status_with
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.application.event_protobuf import event_from_proto
from mastery_grpc.simulation.learners import simulate_class
from masteryctl.event_lines import BadLine, csv_lines, event_of, json_lines
from tests.builders import event_id
from tests.client.masteryctl.conftest import Run

SIMULATED = list(simulate_class(seed=7, learners=5, first_day=date(2026, 9, 1), days=30))


def quiz(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": event_id(number),
        "event_type": "quiz.performance.submitted",
        "timestamp": 1768386600000 + number,
        "student_id": f"s{number % 3}",
        "total_questions": 10,
        "correct_answers": number % 11,
    } | fields


def written(file: Path, *events: Any) -> Path:
    """Writes a file of events; what is text already stays as it is."""
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def sent(fake: FakeServer) -> list[str]:
    return [request.event.event_id for request in fake.requests("StreamEvents")]


# --- what a line means ------------------------------------------------------------------------------------


def test_a_line_of_json_means_what_it_means_on_the_topic() -> None:
    assert len({fields["event_type"] for fields in SIMULATED}) >= 4
    for fields in SIMULATED:
        event = event_of(fields, is_text=False, derive_id=False)

        assert event_from_proto(event) == decode_event(json.dumps(fields).encode())


def test_a_row_of_csv_means_the_same() -> None:
    text = io.StringIO()
    names = sorted({name for fields in SIMULATED for name in fields})
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(SIMULATED)

    rows = [fields for _, fields in csv_lines(io.BufferedReader(io.BytesIO(text.getvalue().encode())))]

    assert len(rows) == len(SIMULATED)
    for fields, row in zip(SIMULATED, rows, strict=True):
        event = event_of(row, is_text=True, derive_id=False)
        assert event_from_proto(event) == decode_event(json.dumps(fields).encode())


def test_all_four_components_are_taken_from_json_and_csv() -> None:
    components = {"completion": 0.1, "quiz": 0.2, "quality": 0.3, "consistency": 0}
    fields = {
        "event_id": event_id(1),
        "event_type": "mastery.calculation.requested",
        "timestamp": "2026-01-14T10:30:00.123456+02:00",
        "student_id": "s1",
    }
    expected = decode_event(json.dumps(fields | {"components": components}).encode())
    row = fields | {name: str(value) for name, value in components.items()}

    of_json = event_of(fields | {"components": components}, is_text=False, derive_id=False)
    of_csv = event_of(row, is_text=True, derive_id=False)

    assert event_from_proto(of_json) == event_from_proto(of_csv) == expected


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([], "is not the JSON object of an event"),
        (quiz(1, event_type="quiz"), "event_type: 'quiz' is not known"),
        (quiz(1, event_type=7), "event_type: '7' is not known"),
        (quiz(1, timestamp=None), "timestamp: must be epoch milliseconds or an RFC 3339 time"),
        (quiz(1, timestamp="yesterday"), "timestamp: must be"),
        (quiz(1, timestamp=10**30), "timestamp: must be"),
        (quiz(1, timestamp=True), "timestamp: must be"),
        (quiz(1, total_questions="10"), "total_questions: must be a whole number"),
        (quiz(1, total_questions=1.5), "total_questions: must be a whole number"),
        (quiz(1, total_questions=2**31), "total_questions: must be a whole number"),
        (quiz(1, confidence_score="high"), "confidence_score: must be a number"),
        (quiz(1, student_id=7), "student_id: must be text"),
        (quiz(1, event_type="mastery.calculation.requested"), "components: must be an object"),
    ],
)
def test_a_line_that_is_no_event_is_told_by_field_and_reason(fields: Any, told: str) -> None:
    with pytest.raises(BadLine, match=told):
        event_of(fields, is_text=False, derive_id=False)


TEXTS = st.text("s1-:.+TZé\x00\ud800 ", max_size=30)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@given(changed=st.dictionaries(st.sampled_from([*quiz(1), "components", "time_spent", "source"]), JSON_VALUES))
def test_whatever_stands_in_a_line_it_is_an_event_or_a_bad_line(changed: dict[str, Any]) -> None:
    for is_text in (False, True):
        fields = {name: str(value) if is_text else value for name, value in (quiz(1) | changed).items()}
        with suppress(BadLine):
            event_of(fields, is_text=is_text, derive_id=True).SerializeToString()


def test_a_derived_id_is_that_of_the_line_whatever_the_order_of_its_fields() -> None:
    fields = quiz(1)
    del fields["event_id"]
    swapped = dict(reversed(fields.items()))
    ids = {
        event_of(each, is_text=False, derive_id=True).event_id
        for each in (fields, swapped, fields | {"correct_answers": 2})
    }

    assert len(ids) == 2
    with pytest.raises(BadLine, match="event_id: is missing"):
        event_of(fields, is_text=False, derive_id=False)


def test_lines_are_counted_with_the_empty_and_the_broken_ones() -> None:
    text = b'{"a": 1}\n\n{broken\n[1]\n'

    lines = list(json_lines(io.BufferedReader(io.BytesIO(text))))

    assert [number for number, _ in lines] == [1, 3, 4]
    assert isinstance(lines[1][1], BadLine)


# --- sending ----------------------------------------------------------------------------------------------


def test_a_file_is_sent_whole_and_in_order(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    events = [quiz(number) for number in range(1, 2501)]
    written(tmp_path / "events.jsonl", *events)

    answer = run("events", "send", "events.jsonl")

    assert answer.exit_code == 0, answer.output
    assert answer.stdout == "2500 events accepted, 0 of them sent before\n"
    assert sent(fake) == [event["event_id"] for event in events]
    assert [file.name for file in tmp_path.glob("events*")] == ["events.jsonl"]


def test_a_zipped_csv_file_is_sent(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*quiz(1), "source"])
    writer.writeheader()
    writer.writerows([quiz(1), quiz(2, source='two\n"lines"')])
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))

    answer = run("--school", "school_7", "events", "send", "events.csv.gz", "-o", "json")

    assert json.loads(answer.stdout) == {"accepted": 2, "duplicates": 0, "refused": 0, "refused_file": None}
    second = fake.requests("StreamEvents")[1].event
    assert (second.source, second.school_id) == ('two\n"lines"', "school_7")


def test_what_was_sent_before_is_told(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", quiz(1), quiz(2), quiz(1))

    assert "3 events accepted, 1 of them sent before" in run("events", "send", "events.jsonl").output
    assert "3 events accepted, 3 of them sent before" in run("events", "send", "events.jsonl").output


def refusing(*refused: str) -> Any:
    def answer(request: pb.StreamEventsRequest) -> pb.StreamEventsResponse:
        event = request.event
        error = None
        if event.event_id in refused:
            error = status_with("INVALID_ARGUMENT", reason="INVALID_FIELD", message="too many correct_answers")
        return pb.StreamEventsResponse(event_id=event.event_id, accepted=error is None, error=error)

    return answer


def test_refused_lines_are_reported_by_number_and_reason_in_order(
    fake: FakeServer, run: Run, tmp_path: Path
) -> None:
    fake.answer("StreamEvents", refusing(event_id(2)))
    written(tmp_path / "events.jsonl", quiz(1), "{broken", quiz(2), quiz(3, total_questions="x"), quiz(4), "[]")

    answer = run("events", "send", "events.jsonl", "--refused", "report.jsonl")

    assert answer.exit_code == 1
    assert "2 events accepted" in answer.stdout
    assert "4 lines refused: report.jsonl" in answer.stdout
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in report] == [
        (2, "INVALID_LINE"),
        (3, "INVALID_FIELD"),
        (4, "INVALID_LINE"),
        (6, "INVALID_LINE"),
    ]
    assert report[1]["event_id"] == event_id(2)
    assert report[1]["message"] == "too many correct_answers"
    assert "total_questions" in report[2]["message"]


def test_a_file_without_a_good_line_is_reported_too(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", "{broken", "[]")

    assert run("events", "send", "events.jsonl").exit_code == 1
    assert len((tmp_path / "events.jsonl.refused.jsonl").read_text().splitlines()) == 2


# --- going on ---------------------------------------------------------------------------------------------


def test_a_send_that_failed_goes_on_where_it_stopped(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    events = [quiz(number) for number in range(1, 101)]
    written(tmp_path / "events.jsonl", "{broken", *events)
    fake.fail("StreamEvents", "PERMISSION_DENIED", after=60, times=1000, reason="ROLE_NOT_ALLOWED")

    stopped = run("events", "send", "events.jsonl")
    fake.forgive("StreamEvents")
    before = len(sent(fake))
    went_on = run("events", "send", "events.jsonl")

    assert stopped.exit_code == 4
    assert "stopped after line " in stopped.stderr
    line = int(stopped.stderr.partition("stopped after line ")[2].partition(";")[0])
    assert 2 <= line <= 61
    assert f"goes on after line {line}" in went_on.stderr
    assert went_on.exit_code == 1  # of the broken line, which is reported once
    assert "100 events accepted" in went_on.stdout
    assert sent(fake)[before:] == [event["event_id"] for event in events[line - 1 :]]
    assert len((tmp_path / "events.jsonl.refused.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "events.jsonl.progress.json").exists()


def test_lines_settled_before_any_event_are_not_read_again(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", "{broken", "[]", quiz(1))
    fake.fail("StreamEvents", "PERMISSION_DENIED", times=1000)

    assert "stopped after line 2;" in run("events", "send", "events.jsonl").stderr


def test_a_report_that_is_ahead_of_the_saved_progress_is_not_doubled(
    fake: FakeServer, run: Run, tmp_path: Path
) -> None:
    """As a kill between the two leaves it."""
    written(tmp_path / "events.jsonl", "{broken", quiz(1), "{broken", quiz(2), quiz(3))
    fake.fail("StreamEvents", "PERMISSION_DENIED", after=2, times=1000)
    run("events", "send", "events.jsonl")
    fake.forgive("StreamEvents")
    state = tmp_path / "events.jsonl.progress.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"line": 2, "accepted": 1, "refused": 1}))

    answer = run("events", "send", "events.jsonl")

    assert "3 events accepted" in answer.output
    report = (tmp_path / "events.jsonl.refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in report] == [1, 3]


def test_another_file_of_the_same_name_is_not_gone_on_with(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", *(quiz(number) for number in range(1, 101)))
    fake.fail("StreamEvents", "PERMISSION_DENIED", after=50, times=1000)
    run("events", "send", "events.jsonl")
    fake.forgive("StreamEvents")
    written(tmp_path / "events.jsonl", quiz(200))

    refused = run("events", "send", "events.jsonl")
    anew = run("events", "send", "events.jsonl", "--restart")

    assert refused.exit_code == 2
    assert "is not the file that was sent in part; --restart begins anew" in refused.stderr
    assert anew.exit_code == 0
    assert sent(fake)[-1] == event_id(200)


def test_a_file_that_grew_is_gone_on_with(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    file = written(tmp_path / "events.jsonl", *(quiz(number) for number in range(1, 11)))
    fake.fail("StreamEvents", "PERMISSION_DENIED", after=5, times=1000)
    run("events", "send", "events.jsonl")
    fake.forgive("StreamEvents")
    with file.open("a") as opened:
        opened.write(json.dumps(quiz(11)) + "\n")

    assert "11 events accepted" in run("events", "send", "events.jsonl").output


def test_a_progress_file_that_is_damaged_is_told(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", quiz(1))
    (tmp_path / "events.jsonl.progress.json").write_text("{")

    assert "is damaged; --restart begins anew" in run("events", "send", "events.jsonl").stderr


def test_an_interrupted_program_goes_on_with_nothing_lost(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    total = 30_000  # seconds of work, so that on a slow machine, too, the signals come amid it
    written(tmp_path / "events.jsonl", *(quiz(number) for number in range(1, total + 1)))
    command = [str(Path(sys.executable).with_name("masteryctl")), "events", "send", "events.jsonl"]
    interrupted = 0

    for attempt in range(20):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen, deadline = len(fake.calls), time.monotonic() + 60
        while process.poll() is None and len(fake.calls) < seen + 1000 and time.monotonic() < deadline:
            time.sleep(0.01)
        if attempt < 2:
            process.send_signal(signal.SIGINT if attempt else signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
        interrupted += process.returncode != 0
        if process.returncode == 0:
            break

    assert interrupted == 2, errors
    assert f"{total} events accepted" in output
    assert set(sent(fake)) == {event_id(number) for number in range(1, total + 1)}
