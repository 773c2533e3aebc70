"""The standard streams of this process: what cannot be written is dropped, and no work ends for it.

In: stdout and stderr as the parent process gave them, closed ones too. Out: streams that never fail, and whether an
answer was lost. A terminal, `tee` or `head` may go away hours before a run is done, and everything that writes progress
(bars, warnings, log lines, libraries) would otherwise end the run by an exception of its own.
"""

import errno
import io
import os
import sys
from typing import Any, BinaryIO, TextIO, final

from kdpipe.cli.interrupts import unbroken

OUT, ERR = 1, 2
# The reader of a pipe or the terminal has gone; a full disk is none of these.
_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO}


@final
class _Raw(io.RawIOBase):
    """The bytes of a stream; those that are refused are dropped, and after an answer's first all the others too."""

    def __init__(self, raw: io.RawIOBase | BinaryIO, name: str, *, is_answer: bool) -> None:
        self._raw, self.name, self._is_answer = raw, name, is_answer
        self.refusal: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    # Interrupted after the system took the bytes, it would be asked to write them once more.
    @unbroken
    def write(self, data: Any, /) -> int:
        n_bytes = memoryview(data).nbytes
        if self._is_answer and self.refusal is not None:
            return n_bytes
        try:
            n_written = self._raw.write(data)
            if n_written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return n_written
        except OSError as error:
            self.refusal = self.refusal or error
            return n_bytes


_answers: _Raw | None = None


def guard() -> None:
    """Replace stdout and stderr of this process."""
    global _answers
    if _answers is None:
        for descriptor in (0, OUT, ERR):
            _occupy(descriptor)
        sys.stderr, _ = _guarded(sys.stderr, ERR)
        sys.stdout, _answers = _guarded(sys.stdout, OUT)


def lost_answer() -> OSError | None:
    """Why an answer could not be written; None as well where its reader has gone and read stderr too.

    Then no one is left who waits for the answer, as with `2>&1 | head` and a terminal that was closed.
    """
    sys.stdout.flush()
    refusal = None if _answers is None else _answers.refusal
    if refusal is None or (refusal.errno in _GONE and os.path.sameopenfile(OUT, ERR)):
        return None
    return refusal


def _occupy(descriptor: int) -> None:
    """Let no file of ours take the number of a stream that was closed: libraries would write into it."""
    try:
        os.fstat(descriptor)
    except OSError:
        # Opened for reading, stdout refuses every answer, and it is known that they are lost.
        opened = os.open(os.devnull, os.O_WRONLY if descriptor == ERR else os.O_RDONLY)
        os.set_inheritable(opened, True)


def _guarded(stream: TextIO | None, descriptor: int) -> tuple[TextIO, _Raw]:
    name = f"<{'stdout' if descriptor == OUT else 'stderr'}>"
    if stream is None:
        closed = io.FileIO(descriptor, "w", closefd=False)
        raw = _Raw(closed, name, is_answer=descriptor == OUT)
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True), raw
    stream.flush()
    raw = _Raw(getattr(stream.buffer, "raw", stream.buffer), name, is_answer=descriptor == OUT)
    by_lines = bool(getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False))
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="replace", line_buffering=by_lines), raw
