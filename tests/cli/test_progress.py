"""Progress: one bar on a terminal, a line now and then in a log, nothing on stdout, the terminal left as it was."""

import time
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli.progress import SECONDS_BETWEEN_LINES, ShownWatch, watching
from kdpipe.pipeline.watch import PartsProgress
from support.terminal import on_a_terminal

RUN = """
import sys, time
from kdpipe.cli import console
from kdpipe.cli.progress import watching
from kdpipe.pipeline.watch import PartsProgress
def news(*values):
    return PartsProgress(**dict(zip(PartsProgress.__slots__, values)))
with watching() as watch:
    watch.begin(4, 1, 1000)
    for n in range(6):
        watch.progress(news(100 * n, 45000.0, 0.91, 34_500_000, 83.0))
        watch.say(f"line {n}")
        time.sleep(0.12)
    watch.warn("look here")
    STOP
console.answer("the answer")
"""


def news(*values: Any) -> PartsProgress:
    """News from their values in order."""
    return PartsProgress(**dict(zip(PartsProgress.__slots__, values, strict=True)))


class Clock:
    """A clock that does not move until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown_watch() -> tuple[ShownWatch, Clock, list[tuple[int, int | None, str]]]:
    clock, shown = Clock(), list[tuple[int, int | None, str]]()
    watch = ShownWatch(lambda *reported: shown.append(reported), 30.0, clock)
    return watch, clock, shown


def test_progress_is_printed_no_more_often_than_requested(capsys: pytest.CaptureFixture[str]) -> None:
    watch, clock, shown = shown_watch()
    watch.begin(11, 2, 5000)
    for second in range(91):
        clock.now = float(second)
        watch.progress(news(second * 10, 45_000.4, 0.91, 34_500_000, 720.0))
        if second == 40:
            watch.part_done(2, 100, 1000, 3.0)
    reported = "45,000 positions/s, teacher 91%, 34.5 MB, part {}/11, 12 min left"
    assert shown == [(300, 5000, reported.format(2)), (600, 5000, reported.format(3)), (900, 5000, reported.format(3))]
    assert capsys.readouterr().err == "2 of 11 parts are already there\n"


def test_uncounted_positions_are_estimated_from_the_time_left() -> None:
    watch, clock, shown = shown_watch()
    watch.begin(2, 0, None)
    clock.now = 30.0
    watch.progress(news(1000, 100.0, 0.5, 0, 20.0))
    assert [planned for _, planned, _ in shown] == [3000]


def test_unknown_values_are_not_shown() -> None:
    watch, clock, shown = shown_watch()
    watch.begin(1, 0, None)
    clock.now = 30.0
    watch.progress(news(7, 0.0, 0.0, 0, None))
    assert shown == [(7, None, "0 positions/s, teacher 0%, 0 bytes, part 0/1")]


def test_a_log_gets_lines_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, SECONDS_BETWEEN_LINES, 2 * SECONDS_BETWEEN_LINES])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(ShownWatch.__init__, "__defaults__", (time.monotonic,))
    with watching() as watch:
        watch.begin(3, 0, 1000)
        watch.progress(news(120, 40.0, 0.5, 2000, 22.0))
        watch.begin(3, 1, None)
        watch.warn("the disk is slow")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "120 positions (12%): 40 positions/s, teacher 50%, 2.0 kB, part 0/3, 22 s left",
        "1 of 3 parts are already there",
        "warning: the disk is slow",
    ]


def test_a_terminal_gets_one_bar_and_every_line(tmp_path: Path) -> None:
    out, messages, code = on_a_terminal(RUN.replace("STOP", "pass"), tmp_path)
    assert (out, code) == ("the answer\n", 0)
    assert "50%, 45,000 positions/s, teacher 91%, 34.5 MB, part 1/4, 83 s left" in messages
    for line in ("1 of 4 parts are already there", "line 0", "line 5", "warning: look here"):
        assert line in messages
    assert messages.rstrip().endswith("\x1b[2K")  # the bar is wiped away
    assert messages.count("\x1b[?25l") == messages.count("\x1b[?25h") == 1


def test_a_terminal_is_left_as_it_was_when_a_run_stops(tmp_path: Path) -> None:
    out, messages, code = on_a_terminal(RUN.replace("STOP", "raise KeyboardInterrupt"), tmp_path)
    assert out == ""
    assert code != 0
    assert messages.count("\x1b[?25l") == messages.count("\x1b[?25h") == 1


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path: Path) -> None:
    out, messages, code = on_a_terminal(RUN.replace("STOP", "pass"), tmp_path, term="dumb")
    assert (out, code) == ("the answer\n", 0)
    assert "\x1b" not in messages
    assert "line 5" in messages
