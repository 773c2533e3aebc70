"""Progress of an evaluation: how far it is and what is left, now and then, on stderr alone."""

import pytest

from kdpipe.cli.eval_progress import ShownEvalWatch, measuring


def test_sequences_are_shown_at_the_requested_interval_with_the_time_left() -> None:
    now, shown = [0.0], list[tuple[int, int | None, str]]()
    watch = ShownEvalWatch(lambda *words: shown.append(words), 30.0, lambda: now[0])
    for n_done in range(8, 1201, 8):
        now[0] += 1.0
        watch.measured(n_done, 1200)
    assert [n_done for n_done, _, _ in shown] == [240, 480, 720, 960, 1200]
    assert shown[0] == (240, 1200, "measured 240/1,200 sequences, 2 min left")
    assert shown[-1] == (1200, 1200, "measured 1,200/1,200 sequences, 0.0 s left")


def test_a_slow_first_batch_shows_no_time_left() -> None:
    now, shown = [0.0], list[str]()
    watch = ShownEvalWatch(lambda _done, _planned, text: shown.append(text), 30.0, lambda: now[0])
    now[0] = 40.0
    watch.measured(8, 1200)
    assert shown == ["measured 8/1,200 sequences"]


def test_a_log_gets_lines_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    with measuring() as watch:
        watch.say("a student")
        watch.warn("look here")
        watch.measured(3, 6)
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err == "a student\nwarning: look here\nmeasured 3/6 sequences\n"
