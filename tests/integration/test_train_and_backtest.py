"""The commands `train` and `backtest` as an operator runs them, on simulated learners."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mastery_grpc.domain.forecasting.pooled import read_forecaster
from mastery_grpc.simulation.learners import simulate_class

COLUMNS = [
    "student_id",
    "origin_date",
    "horizon_days",
    "current_score",
    "predicted_score",
    "lower_bound",
    "upper_bound",
    "intervention_probability",
]
FIRST_DAY = date(2026, 1, 5)
FORECASTERS = ["pooled", "linear_regression", "persistence"]

EventJson = dict[str, Any]
Row = dict[str, str]


def run(
    *words: str | Path, status: int = 0, stdin: bytes = b"", without: Sequence[str] = (), **settings: str
) -> tuple[str, str]:
    """Runs the command line in a process of its own, without some libraries; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")}
    missing = "; ".join(f"sys.modules[{name!r}] = None" for name in ["no_such_library", *without])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {missing}; from mastery_grpc.__main__ import main; main()", *words],
        env=environment | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"} | settings,
        input=stdin,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == status, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def refused(*words: str | Path, status: int = 1, **more: Any) -> str:
    """Returns the one line with which a command ends that cannot work."""
    printed, complaint = run(*words, status=status, **more)
    assert printed == ""
    assert complaint.startswith("mastery-grpc: ")
    assert complaint.count("\n") == 1
    return complaint.removeprefix("mastery-grpc: ").strip()


def simulated(learners: int, days: int) -> list[EventJson]:
    return list(simulate_class(seed=7, learners=learners, first_day=FIRST_DAY, days=days))


def write(path: Path, events: Iterable[EventJson]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def day_of(event: EventJson) -> date:
    return datetime.fromtimestamp(event["timestamp"] / 1000, UTC).date()


def origins(events: Iterable[EventJson]) -> list[tuple[str, date]]:
    """Returns the student and day of each forecast that is due, counted day by day."""
    days: dict[str, set[date]] = defaultdict(set)
    for event in events:
        days[event["student_id"]].add(day_of(event))
    due = []
    for student in sorted(days):
        today = min(days[student])
        age = 0
        while today <= max(days[student]):
            if age >= 14 and age % 7 == 0:
                due.append((student, today))
            today += timedelta(days=1)
            age += 1
    return due


def forecasts(path: Path, *words: str | Path) -> list[Row]:
    out = path.with_suffix(".csv")
    run("backtest", path, "--out", out, *words)
    with out.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


@pytest.fixture(scope="module")
def a_class() -> list[EventJson]:
    return simulated(learners=24, days=56)


@pytest.fixture
def file(tmp_path: Path, a_class: list[EventJson]) -> Path:
    return write(tmp_path / "events.jsonl", a_class)


# --- backtest ---------------------------------------------------------------------------------------------


def test_backtest_prints_the_chosen_forecaster_beside_the_simple_ones_and_its_reliability(file: Path) -> None:
    printed, complaint = run("backtest", file, without=["lightgbm", "scipy", "sklearn"])

    assert complaint == ""
    assert "7 days ahead" in printed
    [header] = [line for line in printed.splitlines() if "persistence" in line and "linear_regression" in line]
    assert header.index("pooled") < header.index("persistence") < header.index("linear_regression")
    for metric in (
        "RMSE against persistence",
        "MAE",
        "MAE where the score moved",
        "RMSE where the score moved",
        "pinball loss",
        "interval score",
        "coverage",
        "coverage where wider than 0.005",
        "onset AUC",
        "onset average precision",
        "onset recall at 0.5",
    ):
        assert f" {metric}" in printed
    [ratios] = [line for line in printed.splitlines() if "RMSE against persistence" in line]
    assert ratios.split("│")[3].strip() == "1.0000"
    assert "not below 0.50 now, below it 7 days ahead" in printed
    assert "........" in printed


@pytest.mark.parametrize("horizon", [1, 7, 30])
def test_there_is_one_row_for_each_seventh_day_of_each_student(
    file: Path, a_class: list[EventJson], horizon: int
) -> None:
    rows = forecasts(file, "--horizon", str(horizon))

    assert [(row["student_id"], date.fromisoformat(row["origin_date"])) for row in rows] == origins(a_class)
    assert {row["horizon_days"] for row in rows} == {str(horizon)}
    for row in rows:
        current, predicted, low, high, risk = (float(row[name]) for name in COLUMNS[3:])
        assert 0.0 <= low <= predicted <= high <= 1.0
        assert 0.0 <= risk <= 1.0
        assert 0.0 <= current <= 1.0
    for name in COLUMNS[3:]:
        assert all(row[name] == repr(float(row[name])) for row in rows)
    assert max(len(row["predicted_score"]) for row in rows) > 10


def test_the_same_file_gives_the_same_csv_plain_zipped_or_from_standard_input_in_any_order(
    file: Path, tmp_path: Path, a_class: list[EventJson]
) -> None:
    expected = forecasts(file)

    zipped = tmp_path / "zipped.gz"
    zipped.write_bytes(gzip.compress(file.read_bytes()))
    assert forecasts(zipped) == expected
    assert forecasts(write(tmp_path / "reversed.jsonl", reversed(a_class))) == expected
    for content in (file.read_bytes(), zipped.read_bytes()):
        out = tmp_path / "piped.csv"
        run("backtest", "-", "--out", out, stdin=content)
        assert out.read_bytes() == file.with_suffix(".csv").read_bytes()


def set_back(event: EventJson) -> EventJson:
    """Returns an event of the same time that tells of nothing but failure."""
    failed = {"completed_exercises": 0, "correct_answers": 0, "correctness_score": 0.0, "code_quality_score": 0.0}
    return event | {name: value for name, value in failed.items() if name in event}


@pytest.mark.parametrize("forecaster", FORECASTERS)
def test_a_forecast_is_the_same_whether_the_file_goes_on_goes_on_otherwise_or_ends_on_its_day(
    file: Path, tmp_path: Path, a_class: list[EventJson], forecaster: str
) -> None:
    whole = {(row["student_id"], row["origin_date"]): row for row in forecasts(file, "--forecaster", forecaster)}
    busy = defaultdict(set)
    for event in a_class:
        busy[day_of(event)].add(event["student_id"])
    for today in (FIRST_DAY + timedelta(days=ahead) for ahead in (14, 28, 42)):
        past = [event for event in a_class if day_of(event) <= today]
        future = [set_back(event) for event in a_class if day_of(event) > today]
        cut = forecasts(write(tmp_path / "cut.jsonl", past), "--forecaster", forecaster)
        other = forecasts(write(tmp_path / "other.jsonl", past + future), "--forecaster", forecaster)

        due = {student for student, origin in origins(a_class) if origin == today} & busy[today]
        assert due
        assert due <= {row["student_id"] for row in cut if row["origin_date"] == today.isoformat()}
        assert all(row == whole[row["student_id"], row["origin_date"]] for row in cut)
        other_rows = {(row["student_id"], row["origin_date"]): row for row in other}
        for place, row in whole.items():
            assert (other_rows[place] == row) or place[1] > today.isoformat()
        assert other_rows != whole


def test_the_target_is_the_score_so_many_days_later(tmp_path: Path) -> None:
    """Persistence errs by just as much as the score moves between an origin and its target day."""
    moves = [(0, 10), (14, 10), (20, 4), (21, 4), (28, 4)]
    events = [
        {
            "event_id": f"{number:08x}-0000-4000-8000-000000000000",
            "event_type": "exercise.completion.submitted",
            "timestamp": int(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp() + ahead * 86400) * 1000,
            "student_id": "ann",
            "total_exercises": 10,
            "completed_exercises": completed,
        }
        for number, (ahead, completed) in enumerate(moves)
    ]
    file = write(tmp_path / "events.jsonl", events)

    printed, _ = run(
        "backtest",
        file,
        "--forecaster=persistence",
        MASTERY_WEIGHT_COMPLETION="1",
        MASTERY_WEIGHT_QUIZ="0",
        MASTERY_WEIGHT_QUALITY="0",
        MASTERY_WEIGHT_CONSISTENCY="0",
    )

    # On day 14 the score is 1.0 and becomes 0.4 within 7 days; on days 21 and 28 it stays.
    [error] = [line.split("│") for line in printed.splitlines() if "│ MAE  " in line]
    assert "3 forecasts of 1 students" in printed
    assert error[2].strip() == f"{0.6 / 3:.4f}"


def test_the_plot_is_an_svg_with_a_dot_and_a_count_for_each_line_of_the_printed_one(
    file: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "reliability.svg"
    printed, _ = run("backtest", file, "--plot", plot)

    space = "{http://www.w3.org/2000/svg}"
    drawing = ElementTree.parse(plot).getroot()
    bins = [line.split("│") for line in printed.splitlines() if "......" in line]
    dots = drawing.findall(f"{space}circle")
    texts = {element.text for element in drawing.iter(f"{space}text")}
    assert bins
    assert len(dots) == len(bins)
    assert {cells[3].strip().replace(",", "") for cells in bins} <= texts
    assert any("persistence" in (text or "") or "pooled" in (text or "") for text in texts)
    for dot, cells in zip(dots, bins, strict=True):  # the stated probability grows from left to right
        assert float(dot.attrib["cx"]) == pytest.approx(64 + 480 * float(cells[1]), abs=0.5)
        assert float(dot.attrib["cy"]) == pytest.approx(40 + 480 * (1 - float(cells[2])), abs=0.5)


# --- what cannot work -------------------------------------------------------------------------------------


def damaged_line(file: Path, **changed: Any) -> Path:
    lines = file.read_text().splitlines()
    lines[16] = json.dumps(json.loads(lines[16]) | changed)
    file.write_text("\n".join(lines))
    return file


def test_a_bad_line_is_told_by_its_number_and_field(file: Path) -> None:
    complaint = refused("backtest", damaged_line(file, student_id="no such id"))
    assert complaint == f"{file}, line 17: student_id: must be 1 to 64 characters of A-Z a-z 0-9 _ -"
    assert refused("train", file) == complaint
    assert refused("backtest", damaged_line(file, timestamp=[])).startswith(f"{file}, line 17: timestamp: ")
    assert "line 17: event_type: " in refused("backtest", damaged_line(file, event_type="no.such.type"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no event"),
        (b"\n \n", "holds no event"),
        (gzip.compress(b""), "holds no event"),
        (b"student,score\n", "line 1: value: is not the JSON of an event"),
        (b"\xff\xfe\x00", "line 1: value: is not the JSON of an event"),
        (gzip.compress(b"\n" * 9999)[:-9], "the gzip file is damaged"),
        (b"\x1f\x8b\x08 and then no gzip", "the gzip file is damaged"),
    ],
)
def test_a_file_of_no_events_is_one_clear_line(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(content)
    complaint = refused("backtest", file)
    assert complaint.startswith(f"{file}")
    assert expected in complaint


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    assert refused("backtest", missing) == f"{missing}: No such file or directory"
    assert refused("backtest", tmp_path) == f"{tmp_path}: Is a directory"
    assert refused("backtest", "-") == "standard input: holds no event"
    assert refused("train", missing) == f"{missing}: No such file or directory"


def test_what_backtest_is_asked_wrongly_is_one_clear_line(file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.bin"
    damaged.write_bytes(b"no model")
    for horizon in ("0", "31", "-7"):
        assert refused("backtest", file, "--horizon", horizon) == "horizon_days: must be from 1 to 30"
    unknown = refused("backtest", file, "--forecaster", "tea_leaves")
    assert all(name in unknown for name in FORECASTERS)
    assert refused("backtest", file, "--model", damaged).startswith(f"{damaged}: ")
    assert "No such file" in refused("backtest", file, "--model", tmp_path / "none.bin")
    assert "--forecaster pooled" in refused("backtest", file, "--forecaster", "persistence", "--model", damaged)
    nowhere = tmp_path / "no" / "folder"
    assert "there is no folder" in refused("backtest", file, "--out", nowhere)
    assert "there is no folder" in refused("backtest", file, "--plot", nowhere)
    assert "MASTERY_WEIGHT_QUIZ" in refused("backtest", file, MASTERY_WEIGHT_QUIZ="9")


def test_students_of_a_few_days_only_are_told_to_be_too_short_a_history(tmp_path: Path) -> None:
    file = write(tmp_path / "events.jsonl", simulated(learners=5, days=12))
    assert "14 days" in refused("backtest", file)


# --- train ------------------------------------------------------------------------------------------------


def test_train_needs_its_extra_and_says_how_to_get_it(file: Path) -> None:
    assert "pip install 'mastery-grpc[train]'" in refused("train", file, without=["lightgbm"])


def test_too_few_students_to_learn_from_are_one_clear_line(tmp_path: Path) -> None:
    file, out = write(tmp_path / "events.jsonl", simulated(learners=3, days=30)), tmp_path / "model.bin"
    assert refused("train", file, "--out", out).startswith(f"{file}: ")
    assert not out.exists()
    assert "there is no folder" in refused("train", file, "--out", tmp_path / "no" / "folder")
    assert "--folds" in refused("train", file, "--folds", "1")


def test_a_trained_model_is_described_and_forecasts(tmp_path: Path, file: Path) -> None:
    learners = write(tmp_path / "learners.jsonl", simulated(learners=90, days=98))
    out = tmp_path / "own.bin"

    printed, _ = run("train", learners, "--out", out, "--seed", "3", "--folds", "2")

    version = read_forecaster(out.read_bytes()).model_version
    count = len(learners.read_text().splitlines())
    assert f"{count:,} events of 90 students, {FIRST_DAY}" in printed
    assert f"version {version}, {out.stat().st_size:,} bytes" in printed
    _, _, table = printed.partition("never saw the student")
    assert f"{len(origins(simulated(learners=90, days=98))):,} cases" in table
    [ratios] = [line.split("│") for line in table.splitlines() if "RMSE against persistence" in line]
    assert float(ratios[2]) < 1.0
    rows = forecasts(file, "--model", out)
    assert len(rows) == len(forecasts(file))
    assert rows != forecasts(file)
    assert f"pooled {version}, 7 days ahead" in run("backtest", file, "--model", out)[0]

    out.write_bytes(out.read_bytes()[:-1])
    assert "damaged" in refused("backtest", file, "--model", out)
