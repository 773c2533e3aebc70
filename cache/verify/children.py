"""Child processes that ignore the signals of the terminal and end with their parent.

In: the start of a child. Out: a child that Ctrl-C and a hangup of the terminal do not reach: the parent stops the work
in its own order and ends its children itself.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.5


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started in this block ignore Ctrl-C and the hangup of the terminal."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
