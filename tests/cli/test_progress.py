"""Shown progress: one bar on a terminal and in a notebook, a line every half minute in a log, nothing on stdout."""

import io
import queue
import sys
from pathlib import Path

import pytest

from kdpipe.cli import console
from kdpipe.cli.progress import (
    SECONDS_BETWEEN_LINES,
    Line,
    Log,
    Notebook,
    QuietProgress,
    ShownProgress,
    hidden_messages,
    shown_progress,
)
from kdpipe.schemas.progress import Task, TaskUpdate
from support.terminal import on_a_terminal, screen

PROGRAM = """
import time
from kdpipe.cli import console
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.progress import Task, TaskUpdate, running
with shown_progress() as progress:
    with running(progress, Task(name="train", unit="steps", total=10, done=2, note="resuming from step 2 of 10")):
        for n in range(3, 9):
            progress.update(TaskUpdate(done=n, seconds_left=83.0, facts={"loss": 2.5, "val": 2.25, "best": 2.0}))
            progress.message(f"message {n}")
            time.sleep(0.25)
        progress.warning("look here")
        progress.message("    step   val loss", "heading")
        STOP
console.answer("the answer")
"""
TRAIN = Task(name="train", unit="steps", total=1200)
FACTS = {"loss": 2.48761, "val": 2.5, "best": 2.25, "lr": 9.55e-5, "positions/s": 45_000.4, "cache": 0.012}


class Canvas:
    """Keeps what it is given for the test to read."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.printed: list[str] = []

    def start(self, line: Line) -> None:
        self.line = line

    def changed(self) -> None:
        pass

    def stop(self) -> None:
        self.line = None

    def print(self, text: str) -> None:
        self.printed.append(text)

    def at(self, columns: int | None) -> str:
        assert self.line is not None
        return self.line(columns)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(task: Task, seconds: float, *updates: TaskUpdate) -> Canvas:
    """A canvas with a task that received updates, some seconds after its beginning."""
    canvas, clock = Canvas(), Clock()
    progress = ShownProgress(canvas, clock)
    progress.begin(task)
    for update in updates:
        progress.update(update)
    clock.now = seconds
    return canvas


def test_a_bar_fits_the_terminal_and_drops_the_last_numbers_first() -> None:
    canvas = shown(TRAIN, 10.0, TaskUpdate(done=504, seconds_left=720.0, facts=FACTS))
    assert canvas.at(80) == "train ████░░░░░░  42% 12 min left 50 steps/s loss 2.488 val 2.500 best 2.250"
    wide = canvas.at(120)
    assert wide.startswith("train ████████░░░░░░░░░░░░  42% 12 min left") and "lr 9.55e-05" in wide
    slow = shown(TRAIN, 9000.0, TaskUpdate(done=504, seconds_left=4300.0, facts=FACTS))
    assert slow.at(80) == "train ████░░░░░░  42% 1 h 12 min left loss 2.488 val 2.500 best 2.250"
    for columns in range(20, 160):
        assert len(canvas.at(columns)) < columns
    assert canvas.at(30) == "train ████░░░░░░  42%"


def test_a_log_line_has_all_numbers() -> None:
    canvas = shown(TRAIN, 10.0, TaskUpdate(done=504, seconds_left=720.0, facts=FACTS))
    assert canvas.at(None) == (
        "train: 504 of 1,200 steps (42%), 12 min left, 50 steps/s, loss 2.4876, val 2.5000, best 2.2500, lr 9.55e-05, "
        "45,000 positions/s, cache 1%"
    )


def test_the_shown_loss_is_the_mean_of_about_twenty_steps() -> None:
    steps = [TaskUpdate(done=n, facts={"loss": float(n), "val": float(n)}) for n in (1, 2, 3)]
    assert "loss 2.0000, val 3.0000" in shown(TRAIN, 1.0, *steps).at(None)
    spike = [*(TaskUpdate(done=n, facts={"loss": 1.0}) for n in range(100)), TaskUpdate(done=100, facts={"loss": 21.0})]
    assert "loss 2.0000" in shown(TRAIN, 1.0, *spike).at(None)


def test_a_rate_below_one_is_seconds_per_unit_and_does_not_count_earlier_runs() -> None:
    canvas = shown(Task(name="merge", unit="parts", total=10, done=4), 20.0, TaskUpdate(done=6))
    assert canvas.at(None) == "merge: 6 of 10 parts (60%), 40 s left, 10.0 s/part"


def test_bytes_are_shown_as_sizes() -> None:
    canvas = shown(Task(name="copy", unit="bytes", total=40_000_000), 2.0, TaskUpdate(done=10_000_000))
    assert canvas.at(None) == "copy: 10.0 MB of 40.0 MB (25%), 6.0 s left, 5.0 MB/s"


def test_the_share_of_an_unknown_total_follows_from_the_time_left() -> None:
    facts = {"teacher": 0.9, "written": 34_500_000, "parts": 2}
    canvas = shown(
        Task(name="cache-teacher", unit="positions"), 30.0, TaskUpdate(done=900, seconds_left=90, facts=facts)
    )
    assert canvas.at(None) == (
        "cache-teacher: 900 positions (25%), 90 s left, 30 positions/s, teacher 90%, 34.5 MB written, 2 parts"
    )


def test_work_of_unknown_length_shows_its_seconds() -> None:
    canvas = shown(Task(name="load student"), 12.0)
    assert canvas.at(None) == canvas.at(80).replace(" 12", ": 12") == "load student: 12 s"


def test_the_innermost_task_is_shown_until_it_is_finished() -> None:
    canvas = Canvas()
    progress, evaluation = ShownProgress(canvas), Task(name="evaluate", unit="sequences", total=8)
    progress.begin(TRAIN)
    progress.begin(evaluation)
    assert canvas.at(None).startswith("evaluate")
    progress.finish(evaluation)
    assert canvas.at(None).startswith("train")
    progress.finish(TRAIN)
    assert canvas.line is None


def test_a_task_begins_with_its_note() -> None:
    canvas = shown(Task.of_parts("merge", 11, 2), 0.0)
    assert canvas.printed == ["2 of 11 parts are already there"]
    assert shown(Task.of_parts("merge", 11), 0.0).printed == []


def test_a_log_gets_a_line_every_half_minute_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = ShownProgress(Log(SECONDS_BETWEEN_LINES, clock), clock)
    progress.begin(TRAIN)
    for second in range(91):
        clock.now = float(second)
        progress.update(TaskUpdate(done=second, seconds_left=9.0))
    progress.message("step 90, validation: CE 3.1")
    progress.warning("step 91 is skipped")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert SECONDS_BETWEEN_LINES == 30.0
    assert printed.err.splitlines() == [
        *(f"train: {n} of 1,200 steps ({n / 1200:.0%}), 9.0 s left, 1.0 steps/s" for n in (30, 60, 90)),
        "step 90, validation: CE 3.1",
        "warning: step 91 is skipped",
    ]


def test_a_log_gets_lines_of_a_task_without_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(console, "note", printed.put)
    log = Log(0.01)
    ShownProgress(log).begin(Task(name="load student"))
    assert printed.get(timeout=60).startswith("load student: ")
    log.stop()


def test_quiet_progress_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=True) as progress:
        assert isinstance(progress, QuietProgress)
        progress.begin(TRAIN)
        progress.message("a message")
        progress.warning("the disk is slow")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "warning: the disk is slow\n")


def test_a_notebook_gets_one_line_that_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    canvas = Notebook(clock)
    progress = ShownProgress(canvas, clock)
    progress.begin(TRAIN)
    clock.now = 1.0
    progress.update(TaskUpdate(done=600))
    bar = "train ██████████░░░░░░░░░░  50% 1.0 s left 600 steps/s"
    assert capsys.readouterr().out == f"\r{bar}"
    progress.message("step 600, validation: CE 3.1")
    progress.finish(TRAIN)
    assert capsys.readouterr().out == f"\r{' ' * len(bar)}\rstep 600, validation: CE 3.1\n"


def test_a_notebook_is_recognized_by_its_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    stream = kind()
    monkeypatch.setattr(sys, "stdout", stream)
    with shown_progress() as progress:
        progress.message("a message")
    assert stream.getvalue() == "a message\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_one_bar_and_every_message(tmp_path: Path, columns: int) -> None:
    out, err, code = on_a_terminal(PROGRAM.replace("STOP", "pass"), tmp_path, columns=columns)
    assert (out, code) == ("the answer\n", 0)
    assert "\u2588" in err and " left " in err and "loss 2.500 val 2.250 best 2.000" in err
    assert [line for line in screen(err) if line] == [
        "resuming from step 2 of 10",
        *(f"message {n}" for n in range(3, 9)),
        "\x1b[33mwarning:\x1b[0m look here",
        "\x1b[1m    step   val loss\x1b[0m",
    ]
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1


def test_a_terminal_is_left_as_it_was_when_a_run_stops(tmp_path: Path) -> None:
    out, err, code = on_a_terminal(PROGRAM.replace("STOP", "raise KeyboardInterrupt"), tmp_path)
    assert out == ""
    assert code != 0
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path: Path) -> None:
    out, err, code = on_a_terminal(PROGRAM.replace("STOP", "pass"), tmp_path, term="dumb")
    assert (out, code) == ("the answer\n", 0)
    assert "\x1b" not in err
    assert "message 8" in err


def test_no_color_leaves_the_bar_and_plain_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, err, code = on_a_terminal(PROGRAM.replace("STOP", "pass"), tmp_path, columns=80)
    assert code == 0 and "\u2588" in err
    assert [line for line in screen(err) if line][-2:] == ["warning: look here", "    step   val loss"]


def test_messages_can_be_hidden_while_bars_and_warnings_stay() -> None:
    canvas = Canvas()
    with hidden_messages():
        progress = ShownProgress(canvas, Clock())
        progress.message("a message")
        progress.begin(Task(name="train", unit="steps", total=10, note="a note"))
        progress.warning("look here")
        assert canvas.at(80).startswith("train ")
    ShownProgress(canvas, Clock()).message("later")
    assert canvas.printed == ["warning: look here", "later"]
