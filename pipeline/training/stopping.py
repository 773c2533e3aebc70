"""Stopping on request: a signal is noted, and the loop ends after the step under way, with a checkpoint.

In: SIGINT and SIGTERM. Out: `asked`. A second signal is a KeyboardInterrupt, at once; the checkpoint before is whole
either way, and a wish that came when no step was left is answered at the end. Before it: `cli/interrupts.py` has its
own handlers, which are put back. After it: `loop.py`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from kdpipe.schemas.errors import Interrupted

BOTH = (signal.SIGINT, signal.SIGTERM)
ASKED = "stopping with a checkpoint once the step under way is done; asked again, it stops at once without"


class Stop:
    """Whether the run was asked to end; whoever asks is told by `tell` what comes of it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.asked, self._tell = False, tell

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Python refuses to write within a write that the signal has interrupted.
        with suppress(RuntimeError):
            self._tell(ASKED)


@contextmanager
def listening(tell: Callable[[str], None] = lambda _: None) -> Iterator[Stop]:
    """Take signals as a wish to stop, unless the parent asked for them to be ignored or this is no main thread."""
    stop = Stop(tell)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    found = {number: signal.getsignal(number) for number in BOTH}
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, stop.note)
    try:
        yield stop
        if stop.asked:
            raise Interrupted(
                "asked to stop when the run was at its end", hint="run the same command again to see what came of it"
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
