"""Progress of a student: one bar on a terminal, a line now and then in a log, nothing on stdout."""

from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli.progress import SECONDS_BETWEEN_LINES
from kdpipe.cli.train_progress import ShownTrainWatch, following
from kdpipe.pipeline.watch import StepProgress
from support.terminal import on_a_terminal

RUN = """
import time
from kdpipe.cli import console
from kdpipe.cli.train_progress import following
from kdpipe.pipeline.watch import StepProgress
with following() as watch:
    watch.begin(10, 2)
    for n in range(3, 9):
        watch.stepped(StepProgress(step=n, loss=2.5, loss_name="loss", rate=1e-4, positions_per_second=45000.0,
                               waiting_share=0.004, skipped=1, seconds_left=83.0))
        watch.say(f"line {n}")
        time.sleep(0.12)
    watch.warn("look here")
console.answer("the answer")
"""
PLAIN = StepProgress(
    step=7,
    loss=2.48761,
    loss_name="loss",
    rate=9.55e-5,
    positions_per_second=45_000.4,
    waiting_share=0.012,
    skipped=0,
    seconds_left=720.0,
)


class Clock:
    """A clock that does not move until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown_watch() -> tuple[ShownTrainWatch, Clock, list[tuple[int, int | None, str]]]:
    clock, shown = Clock(), list[tuple[int, int | None, str]]()
    watch = ShownTrainWatch(lambda *reported: shown.append(reported), 30.0, clock)
    return watch, clock, shown


def news(**changes: Any) -> StepProgress:
    values = {name: getattr(PLAIN, name) for name in StepProgress.__dataclass_fields__}
    return StepProgress(**{**values, **changes})


def test_steps_are_printed_no_more_often_than_requested(capsys: pytest.CaptureFixture[str]) -> None:
    watch, clock, shown = shown_watch()
    watch.begin(1_200, 2)
    for second in range(91):
        clock.now = float(second)
        watch.stepped(news(step=second))
    reported = "step {}/1,200, loss 2.4876, 12 min left, lr 9.55e-05, 45,000 positions/s, cache 1%"
    assert shown == [(step, 1_200, reported.format(step)) for step in (30, 60, 90)]
    assert capsys.readouterr().err == "resuming from step 2 of 1,200\n"


def test_a_new_run_reports_no_earlier_steps(capsys: pytest.CaptureFixture[str]) -> None:
    shown_watch()[0].begin(5, 0)
    assert capsys.readouterr().err == ""


def test_unknown_values_are_not_shown_and_skips_are() -> None:
    watch, clock, shown = shown_watch()
    watch.begin(10, 0)
    clock.now = 30.0
    watch.stepped(news(loss=None, seconds_left=None, skipped=1_234))
    reported = "step 7/10, lr 9.55e-05, 45,000 positions/s, cache 1%, 1,234 skipped"
    assert shown == [(7, 10, reported)]


def test_a_log_gets_lines_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, SECONDS_BETWEEN_LINES, 1.5 * SECONDS_BETWEEN_LINES])
    monkeypatch.setattr(ShownTrainWatch.__init__, "__defaults__", (lambda: next(times),))
    with following() as watch:
        watch.begin(10, 0)
        watch.stepped(news(step=3))
        watch.stepped(news(step=4))
        watch.say("step 4, validation: CE 3.1")
        watch.warn("step 5 is skipped")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "step 3/10, loss 2.4876, 12 min left, lr 9.55e-05, 45,000 positions/s, cache 1%",
        "step 4, validation: CE 3.1",
        "warning: step 5 is skipped",
    ]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_one_bar_and_every_line(tmp_path: Path, term: str) -> None:
    out, messages, code = on_a_terminal(RUN, tmp_path, term, columns=140)
    assert (out, code) == ("the answer\n", 0)
    for line in ("resuming from step 2 of 10", "line 3", "line 8", "warning: look here"):
        assert line in messages
    if term == "dumb":
        assert "\x1b" not in messages
        return
    assert "80%, step 8/10, loss 2.5000, 83 s left, lr 1.00e-04, 45,000 positions/s, cache 0%, 1 skipped" in messages
    assert messages.rstrip().endswith("\x1b[2K")  # the bar is wiped away
    assert messages.count("\x1b[?25l") == messages.count("\x1b[?25h") == 1
