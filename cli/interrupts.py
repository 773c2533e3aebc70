"""Ctrl-C and SIGTERM: the first stops cleanly (exit 75), the second at once (exit 130).

In: signals. Out: a KeyboardInterrupt in the main thread, which lets every `finally` run, and `seen()` for the exit
code. What is already committed to a cache or a run is safe either way. Before it: nothing. After it: `main.py`.
"""

import os
import signal
from types import FrameType

_seen = False


def listen() -> None:
    """Take over SIGINT and SIGTERM, unless the parent process asked for them to be ignored (as nohup does)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def seen() -> bool:
    """Whether a first signal has arrived."""
    return _seen


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _seen
    if _seen:
        os._exit(130)
    _seen = True
    raise KeyboardInterrupt
