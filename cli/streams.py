"""Standard streams that never raise: output that cannot be written is dropped, and the run continues.

A terminal, `tee` or `head` may close hours before a run is done; progress bars, warnings, log lines and libraries
would otherwise end the run with an exception. `lost_answer` reports whether output on stdout was lost.
"""

import errno
import io
import os
import sys
from typing import Any, BinaryIO, TextIO, final

from kdpipe.cli.interrupts import unbroken

OUT, ERR = 1, 2
# The reader of a pipe or the terminal has gone; a full disk has another code.
_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO}


@final
class _QuietRawStream(io.RawIOBase):
    """A raw stream that drops what cannot be written; stdout drops everything after its first failure."""

    def __init__(self, raw: io.RawIOBase | BinaryIO, name: str, *, is_answer: bool) -> None:
        self._raw, self.name, self._is_answer = raw, name, is_answer
        self.refusal: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    # An interrupt after the system call would make the buffer write the bytes again.
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


_answers: _QuietRawStream | None = None


def guard() -> None:
    """Replace stdout and stderr of this process."""
    global _answers
    if _answers is None:
        for descriptor in (0, OUT, ERR):
            _keep_occupied(descriptor)
        sys.stderr, _ = _guarded(sys.stderr, ERR)
        sys.stdout, _answers = _guarded(sys.stdout, OUT)


def lost_answer() -> OSError | None:
    """Why output on stdout was lost; None also where stdout and stderr had the same reader, which has gone.

    Examples are `2>&1 | head` and a closed terminal.
    """
    sys.stdout.flush()
    refusal = None if _answers is None else _answers.refusal
    if refusal is None or (refusal.errno in _GONE and os.path.sameopenfile(OUT, ERR)):
        return None
    return refusal


def _keep_occupied(descriptor: int) -> None:
    """Keep the descriptor of a closed stream occupied: a file that got it would receive the output of libraries."""
    try:
        os.fstat(descriptor)
    except OSError:
        # Opened for reading, stdout rejects every write, so the loss is detected.
        opened = os.open(os.devnull, os.O_WRONLY if descriptor == ERR else os.O_RDONLY)
        os.set_inheritable(opened, True)


def _guarded(stream: TextIO | None, descriptor: int) -> tuple[TextIO, _QuietRawStream]:
    name = f"<{'stdout' if descriptor == OUT else 'stderr'}>"
    if stream is None:
        closed = io.FileIO(descriptor, "w", closefd=False)
        raw = _QuietRawStream(closed, name, is_answer=descriptor == OUT)
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True), raw
    stream.flush()
    raw = _QuietRawStream(getattr(stream.buffer, "raw", stream.buffer), name, is_answer=descriptor == OUT)
    by_lines = bool(getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False))
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="replace", line_buffering=by_lines), raw
