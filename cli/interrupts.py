"""Ctrl-C, SIGTERM and SIGHUP: the first stops cleanly (exit 75), the second at once (exit 130), at any moment.

In: signals. Out: a KeyboardInterrupt in the main thread, which lets every `finally` run, and `seen()` for the exit
code. Python drops exceptions in some places (finalizers, callbacks of weak references), and libraries drop them while
they are imported: there, and in functions that must not end in the middle, the KeyboardInterrupt is put off and raised
a moment later.
"""

import _thread
import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TypeVar

from kdpipe.schemas.errors import STOP_SIGNALS

# Wakes the main thread for an interrupt that was put off; does nothing where no one listens, and Windows has none.
_WAKE = getattr(signal, "SIGURG", None)
_WAKE_SECONDS = 0.02

Function = TypeVar("Function", bound=Callable[..., object])

_unbroken: set[CodeType] = set()
_seen = False
_is_put_off = False
_is_over = False


def listen() -> None:
    """Take over the signals, but those that the parent process asked to ignore (as nohup does)."""
    # First here, last at exit: then Python gives signals up whose handlers it can no longer run.
    atexit.register(_ignore)
    sys.unraisablehook = _unraisable
    if _WAKE is not None:
        signal.signal(_WAKE, _wake)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def seen() -> bool:
    """Whether a first signal has arrived."""
    return _seen


def unbroken(function: Function) -> Function:
    """A function in which no interrupt is raised: it comes when the function has returned."""
    _unbroken.add(function.__code__)
    return function


def check() -> None:
    """Raise the interrupt that was put off, if one was."""
    global _is_put_off
    if _is_put_off:
        _is_put_off = False
        raise KeyboardInterrupt


def settle() -> None:
    """The exit code is known: from now on a first signal changes nothing, a second one still ends the process."""
    global _is_over
    _is_over = True


def _stop(number: int, frame: FrameType | None) -> None:
    global _seen
    if _seen:
        os._exit(130)
    _seen = True
    # Otherwise another handler has taken the place of this one, stops the work itself, and passes the signal on.
    if signal.getsignal(number) is _stop:
        _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    global _is_put_off
    if _is_over:
        return
    if _WAKE is None or not _must_go_on(frame):
        raise KeyboardInterrupt
    if not _is_put_off:
        _put_off()


def _must_go_on(frame: FrameType | None) -> bool:
    """Whether an interrupt would do harm: in an unbroken function, and in an import, where libraries clear it."""
    while frame is not None:
        code = frame.f_code
        if code in _unbroken or code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _put_off() -> None:
    global _is_put_off
    _is_put_off = True
    _thread.start_new_thread(_wake_main_thread, (_thread.get_ident(),))


def _wake_main_thread(main: int) -> None:
    while _is_put_off and not _is_over and _WAKE is not None:
        time.sleep(_WAKE_SECONDS)
        signal.pthread_kill(main, _WAKE)


def _wake(_number: int, frame: FrameType | None) -> None:
    global _is_put_off
    if _is_put_off and not _must_go_on(frame):
        _is_put_off = False
        _interrupt(frame)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Raise again what was raised where Python drops exceptions; anything else is shown as Python does."""
    if not issubclass(lost.exc_type, KeyboardInterrupt) or not _seen:
        sys.__unraisablehook__(lost)
    elif _WAKE is not None and not _is_over and not _is_put_off:
        _put_off()


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
