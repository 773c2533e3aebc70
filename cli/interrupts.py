"""Ctrl-C, SIGTERM and SIGHUP: the first stops cleanly (exit 75), the second at once (exit 130), at any moment.

In: signals. Out: a KeyboardInterrupt in the main thread, which lets every `finally` run, and `seen()` for the exit
code. Python drops exceptions in some places (finalizers, callbacks of weak references), and libraries drop them while
they are imported: there, and in functions that must not be interrupted, the KeyboardInterrupt is deferred for a
moment.
"""

import _thread
import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import TypeVar

from kdpipe.schemas.errors import STOP_SIGNALS

# Wakes the main thread for a deferred interrupt; ignored without a handler, and missing on Windows.
_WAKE = getattr(signal, "SIGURG", None)
_WAKE_SECONDS = 0.02

Function = TypeVar("Function", bound=Callable[..., object])

_unbroken: set[CodeType] = set()
_seen = False
_is_deferred = False
_is_over = False


def listen() -> None:
    """Install signal handlers, except for signals that the parent process ignores (as nohup does)."""
    # Registered first, so it runs last at exit, when Python can no longer run handlers.
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
    """Decorator: an interrupt within the function is raised after it has returned."""
    _unbroken.add(function.__code__)
    return function


def check() -> None:
    """Raise the deferred interrupt, if there is one."""
    global _is_deferred
    if _is_deferred:
        _is_deferred = False
        raise KeyboardInterrupt


@contextmanager
def ending() -> Iterator[None]:
    """A block that a first signal ends as intended: the command then succeeds."""
    global _seen
    try:
        yield
    except KeyboardInterrupt:
        _seen = False


def settle() -> None:
    """Ignore a first signal from now on, since the exit code is known; a second one still ends the process."""
    global _is_over
    _is_over = True


def _stop(number: int, frame: FrameType | None) -> None:
    global _seen
    if _seen:
        os._exit(130)
    _seen = True
    # Otherwise another handler replaced this one; it stops the work itself and passes the signal on.
    if signal.getsignal(number) is _stop:
        _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    global _is_deferred
    if _is_over:
        return
    if _WAKE is None or not _must_defer(frame):
        raise KeyboardInterrupt
    if not _is_deferred:
        _defer()


def _must_defer(frame: FrameType | None) -> bool:
    """Whether an interrupt must wait: in an unbroken function, and in an import, where libraries swallow it."""
    while frame is not None:
        code = frame.f_code
        if code in _unbroken or code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _defer() -> None:
    global _is_deferred
    _is_deferred = True
    _thread.start_new_thread(_wake_main_thread, (_thread.get_ident(),))


def _wake_main_thread(main: int) -> None:
    while _is_deferred and not _is_over and _WAKE is not None:
        time.sleep(_WAKE_SECONDS)
        signal.pthread_kill(main, _WAKE)


def _wake(_number: int, frame: FrameType | None) -> None:
    global _is_deferred
    if _is_deferred and not _must_defer(frame):
        _is_deferred = False
        _interrupt(frame)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Raise interrupts again that Python dropped; other exceptions are shown as usual."""
    if not issubclass(lost.exc_type, KeyboardInterrupt) or not _seen:
        sys.__unraisablehook__(lost)
    elif _WAKE is not None and not _is_over and not _is_deferred:
        _defer()


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
