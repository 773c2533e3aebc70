"""Child processes: signals are the parent's business, and a child ends with its parent.

In: the start of a child. Out: one that Ctrl-C in a terminal and the end of the terminal do not reach: they go to every
process of a command, whose parent then stops the work in its own order and ends its children itself.
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
    """Processes that begin here do not hear what a terminal sends to all: Ctrl-C, and that it is gone."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this child when its parent is gone, which a kill or a second Ctrl-C may end at any moment."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
