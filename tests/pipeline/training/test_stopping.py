"""Stopping on request: noted once, at once the second time, never forgotten."""

import os
import signal

import pytest

from kdpipe.pipeline.training.stopping import BOTH, listening
from kdpipe.schemas.errors import Interrupted


@pytest.mark.parametrize("number", BOTH)
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


def test_another_error_is_not_hidden_by_a_wish_to_stop() -> None:
    with pytest.raises(ZeroDivisionError), listening():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError
