import io
import random
import re
from collections.abc import Mapping
from datetime import date
from threading import Thread

import pytest
from rich.console import Console

from mastery_grpc.simulation.screen import PLAIN_LINE_SECONDS, ClassScreen, announce

ALL_COMPONENTS: Mapping[str, float] = {"completion": 0.91, "quiz": 0.8, "quality": 1.0, "consistency": 0.07}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(*, width: int = 80, height: int = 24, colour: bool = False) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        force_interactive=True,
        color_system="truecolor" if colour else None,
        legacy_windows=False,
        _environ={},
    )


def pipe(*, environ: Mapping[str, str] | None = None) -> Console:
    return Console(file=io.StringIO(), width=80, height=24, _environ=environ or {})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(screen: ClassScreen, console: Console) -> list[str]:
    with console.capture() as capture:
        console.print(screen)
    return capture.get().splitlines()


def test_a_row_shows_score_level_components_and_the_last_scores() -> None:
    console = terminal()
    screen = ClassScreen(console)
    for score in (0.1, 0.45, 0.83):
        screen.update("student_01", score=score, level="proficient", components=ALL_COMPONENTS)
    row = drawn(screen, console)[-1]
    assert re.fullmatch(r"student_01 ━+\S* *0\.83 proficient +91% +80% 100% +7% ▁▄▇ *", row)


def test_the_bar_grows_with_the_score() -> None:
    console = terminal()
    screen = ClassScreen(console)
    bars = []
    for score in (0.0, 0.3, 0.6, 1.0):
        screen.update("student_01", score=score, level="competent", components=ALL_COMPONENTS)
        bars.append(drawn(screen, console)[-1].count("━"))
    assert bars[0] == 0
    assert bars == sorted(set(bars))


def test_a_component_never_observed_shows_as_a_dash() -> None:
    console = terminal()
    screen = ClassScreen(console)
    screen.update("student_01", score=0.32, level="beginner", components={"completion": 0.8})
    assert re.search(r"beginner +80% +- +- +- ", drawn(screen, console)[-1])


def test_rows_are_sorted_by_student_and_stay_where_they_are() -> None:
    console = terminal()
    screen = ClassScreen(console)
    for student in ("student_03", "student_01", "student_02", "student_03"):
        screen.update(student, score=0.5, level="developing", components={})
    assert [line[:10] for line in drawn(screen, console)[-3:]] == ["student_01", "student_02", "student_03"]


def test_the_header_counts_events_and_levels_and_shows_the_simulated_date() -> None:
    console, clock = terminal(), Clock()
    screen = ClassScreen(console, clock=clock)
    screen.show_day(date(2026, 2, 3))
    clock.now += 2.0
    screen.update("student_01", score=0.5, level="developing", components={}, events=1_000)
    screen.update("student_02", score=0.92, level="expert", components={}, events=234)
    headline, levels = drawn(screen, console)[:2]
    assert headline == "2026-02-03  2 learners  1,234 events applied  617 events/s"
    assert levels == "beginner 0  developing 1  competent 0  proficient 0  expert 1"


def test_the_rate_follows_the_last_seconds_and_falls_to_zero_when_nothing_comes() -> None:
    console, clock = terminal(), Clock()
    screen = ClassScreen(console, clock=clock)
    for _ in range(20):
        clock.now += 1.0
        screen.update("student_01", score=0.5, level="developing", components={}, events=10)
    assert "10 events/s" in drawn(screen, console)[0]
    clock.now += 60.0
    drawn(screen, console)
    clock.now += 60.0
    assert " 0 events/s" in drawn(screen, console)[0]


def test_a_late_event_does_not_turn_the_date_back() -> None:
    console = terminal()
    screen = ClassScreen(console)
    screen.show_day(date(2026, 2, 3))
    screen.show_day(date(2026, 2, 1))
    assert drawn(screen, console)[0].startswith("2026-02-03")


def test_the_sparkline_has_one_point_for_each_of_the_last_fourteen_days() -> None:
    console = terminal()
    screen = ClassScreen(console)
    for day in range(1, 21):
        screen.show_day(date(2026, 2, day))
        for score in (0.0, 0.99 if day == 20 else 0.5):
            screen.update("student_01", score=score, level="competent", components=ALL_COMPONENTS)
    assert drawn(screen, console)[-1].endswith(" " + "▅" * 13 + "█")


@pytest.mark.parametrize("learners", [0, 1, 12, 16, 500])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (60, 10)])
def test_a_class_fits_its_terminal(learners: int, width: int, height: int) -> None:
    console = terminal(width=width, height=height)
    screen = ClassScreen(console)
    screen.show_day(date(2026, 12, 31))
    for number in range(learners):
        screen.update(
            f"student_{number:02d}", score=1.0, level="proficient", components=ALL_COMPONENTS, events=12_345
        )
    lines = drawn(screen, console)
    assert len(lines) < height
    assert all(len(line.rstrip()) <= width for line in lines)
    if learners <= 16 and height >= 24:
        assert sum(line.startswith("student_") for line in lines) == learners
        assert "…" not in "".join(lines)
    if learners == 500:
        assert re.fullmatch(r"and \d+ more", lines[-1])


def test_levels_differ_in_colour() -> None:
    console = terminal(colour=True)
    screen = ClassScreen(console)
    screen.update("student_01", score=0.1, level="beginner", components={})
    screen.update("student_02", score=0.95, level="expert", components={})
    lines = drawn(screen, console)[-2:]
    assert "\x1b[31mbeginner" in lines[0]
    assert "\x1b[1;35mexpert" in lines[1]


def test_a_level_or_student_it_never_heard_of_is_shown_as_it_is() -> None:
    console = terminal()
    screen = ClassScreen(console)
    screen.update("[bold]x:smile:", score=0.5, level="grand", components={"stamina": 0.5})
    lines = drawn(screen, console)
    assert "grand 1" in lines[1]
    assert lines[-1].startswith("[bold]x:smile:")


def test_a_terminal_without_unicode_gets_plain_characters() -> None:
    console = Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
        width=80,
        height=24,
        force_terminal=True,
        _environ={},
    )
    screen = ClassScreen(console)
    screen.update("student_01", score=0.6, level="competent", components=ALL_COMPONENTS)
    assert "".join(drawn(screen, console)).isascii()


def test_a_terminal_is_redrawn_in_place_and_keeps_the_last_picture() -> None:
    console = terminal()
    with ClassScreen(console, live=True) as screen:
        screen.update("student_01", score=0.5, level="developing", components=ALL_COMPONENTS)
    text = written(console)
    assert "\x1b[?25l" in text
    assert text.rstrip().endswith("\x1b[?25h")
    assert "student_01" in text


def test_the_cursor_comes_back_after_an_error() -> None:
    console = terminal()
    with pytest.raises(RuntimeError, match="gone"), ClassScreen(console, live=True):
        raise RuntimeError("gone")
    assert written(console).rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize("environ", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"TTY_COMPATIBLE": "1"}])
def test_without_a_terminal_there_are_plain_lines_and_no_control_codes(environ: dict[str, str]) -> None:
    console, clock = pipe(environ=environ), Clock()
    with ClassScreen(console, clock=clock) as screen:
        screen.show_day(date(2026, 2, 3))
        for _ in range(50):
            clock.now += 0.1
            screen.update("student_01", score=0.5, level="developing", components=ALL_COMPONENTS)
    text = written(console)
    assert "\x1b" not in text
    assert text.splitlines()[-1] == (
        "2026-02-03  50 events applied  10 events/s  beginner 0  developing 1  competent 0  proficient 0  expert 0"
    )


def test_plain_lines_come_every_couple_of_seconds_and_once_at_the_end() -> None:
    console, clock = pipe(), Clock()
    with ClassScreen(console, clock=clock) as screen:
        for _ in range(10):
            clock.now += PLAIN_LINE_SECONDS / 4
            screen.update("student_01", score=0.5, level="developing", components={})
    assert [line.split()[0] for line in written(console).splitlines()] == ["4", "8", "10"]


def test_a_run_without_events_prints_nothing_to_a_pipe() -> None:
    console = pipe()
    with ClassScreen(console):
        pass
    assert written(console) == ""


def test_updates_from_many_threads_are_all_counted_while_it_draws() -> None:
    console = terminal()
    screen = ClassScreen(console)

    def study(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            screen.update(f"student_{rng.randrange(400)}", score=rng.random(), level="expert", components={})

    threads = [Thread(target=study, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        drawn(screen, console)
    assert "800 events applied" in drawn(screen, console)[0]


@pytest.mark.parametrize("console", [terminal(width=40), terminal(width=40, colour=True), pipe()])
def test_commands_are_printed_so_that_they_can_be_copied(console: Console) -> None:
    command = (
        "grpcurl -plaintext -H 'authorization: Bearer [red]ey:smile:J' -d '{\"student_id\": \"student_01\"}' "
        "localhost:50051 mastery.v1.MasteryService/GetMastery"
    )
    announce(console, "Try next", [("One student's mastery", command), ("Its history", "a \\\n  b")])
    lines = written(console).splitlines()
    assert command in lines
    assert lines[-3:-1] == ["a \\", "  b"]
    assert "# One student's mastery" in written(console)
