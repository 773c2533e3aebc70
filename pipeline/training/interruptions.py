"""How a run ends early: signals, which stop it after the current step with a checkpoint, and lack of memory.

In: SIGINT, SIGTERM and SIGHUP; what torch or Python raise. Out: a `StopRequest`; a `KdpipeError` with settings that
need less memory. Handlers installed before are called too: the command line ends the process at the second signal
(`cli/interrupts.py`), and Python's own handler raises a KeyboardInterrupt. The last checkpoint is whole either way.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.schemas.errors import STOP_SIGNALS, Interrupted, KdpipeError
from kdpipe.schemas.train_rules import compares_groups
from kdpipe.schemas.train_settings import TrainSettings

STOPPING = "stopping after this step with a checkpoint; interrupt again to stop at once without one"
LONGEST = 160


class StopRequest:
    """A requested stop of the run; `handlers` are the previous signal handlers."""

    def __init__(self, say: Callable[[str], None], handlers: Mapping[int, Any]) -> None:
        self.requested, self._say, self._handlers = False, say, handlers

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        handler = self._handlers.get(number)
        if self.requested:
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        self.requested = True
        with suppress(KeyboardInterrupt, SystemExit):
            if callable(handler):
                handler(number, frame)
        # Python refuses to write within a write that the signal has interrupted.
        with suppress(RuntimeError):
            self._say(STOPPING)


@contextmanager
def stop_on_signals(say: Callable[[str], None] = lambda _: None) -> Iterator[StopRequest]:
    """Turn signals into a stop request, except ignored ones, and only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest(say, {})
        return
    present = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handlers = {number: handler for number, handler in present.items() if handler not in (None, signal.SIG_IGN)}
    stop = StopRequest(say, handlers)
    try:
        for number in handlers:
            signal.signal(number, stop.note)
        yield stop
        if stop.requested:
            raise Interrupted("interrupted at the end of the run", hint="run the same command again to see its result")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def explain_out_of_memory(settings: TrainSettings, when: str) -> Iterator[None]:
    """Replace out-of-memory errors by one that names settings to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        line = next(iter(str(error).splitlines()), "")[:LONGEST]
        raise KdpipeError(f"out of memory {when}" + (f": {line}" if line else ""), hint=_advice(settings)) from error


def _advice(settings: TrainSettings) -> str:
    """Settings that need less memory, first those with which the run can be resumed."""
    run, student = settings.run, settings.student
    same, other = [], ["a smaller student"]
    least = settings.losses.hidden.group if compares_groups(settings) else 1
    if min(run.batch_size, settings.machine.portion or run.batch_size) > least:
        same.append(f"--set machine.portion={least}")
    if not student.gradient_checkpointing:
        same.append("--set student.gradient_checkpointing=true")
    if not student.lora:
        other.append("--lora with a pretrained student")
    other.append("a cache with a shorter --seq-len")
    resume = f"re-run with {' or '.join(same)} to resume with less memory; or " if same else ""
    return f"{resume}start over with {', or '.join(other)}"
