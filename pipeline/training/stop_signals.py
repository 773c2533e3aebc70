"""Stopping on request: a signal is noted, and the loop ends after the step under way, with a checkpoint.

In: SIGINT, SIGTERM and SIGHUP. Out: `asked`. The handlers that were there hear of both signals: the command line ends
the process at the second (`cli/interrupts.py`), Python's own handler raises a KeyboardInterrupt. The checkpoint before
is whole either way, and a wish that came when no step was left is answered at the end.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from kdpipe.schemas.errors import STOP_SIGNALS, Interrupted

ASKED = "stopping with a checkpoint once the step under way is done; asked again, it stops at once without"


class StopRequest:
    """Whether the run was asked to end; whoever asks is told by `tell` what comes of it."""

    def __init__(self, tell: Callable[[str], None], before: Mapping[int, Any]) -> None:
        self.asked, self._tell, self._before = False, tell, before

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        handler = self._before.get(number)
        if self.asked:
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        self.asked = True
        with suppress(KeyboardInterrupt, SystemExit):
            if callable(handler):
                handler(number, frame)
        # Python refuses to write within a write that the signal has interrupted.
        with suppress(RuntimeError):
            self._tell(ASKED)


@contextmanager
def listening(tell: Callable[[str], None] = lambda _: None) -> Iterator[StopRequest]:
    """Take signals as a wish to stop, unless the parent asked for them to be ignored or this is no main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest(tell, {})
        return
    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    stop = StopRequest(tell, before)
    try:
        for number in before:
            signal.signal(number, stop.note)
        yield stop
        if stop.asked:
            raise Interrupted(
                "asked to stop when the run was at its end", hint="run the same command again to see what came of it"
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
