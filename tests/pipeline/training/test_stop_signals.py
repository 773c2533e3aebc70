"""Stopping on request: noted once, at once the second time, never forgotten."""

import os
import signal

import pytest

from kdpipe.pipeline.training.stop_signals import listening
from kdpipe.schemas.errors import STOP_SIGNALS, Interrupted


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_wish_to_stop_that_no_step_answers_is_answered_at_the_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="asked to stop when the run was at its end") as caught, listening() as stop:
        os.kill(os.getpid(), number)
        assert stop.asked
    assert caught.value.hint == "run the same command again to see what came of it"
    assert signal.getsignal(number) is before


def test_a_second_wish_is_answered_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal was passed over")


def test_the_handler_that_was_there_hears_of_both_signals() -> None:
    """Whoever ends the process at a second signal must know of the first."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the second signal was passed over")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_error_is_not_hidden_by_a_wish_to_stop() -> None:
    with pytest.raises(ZeroDivisionError), listening():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError
