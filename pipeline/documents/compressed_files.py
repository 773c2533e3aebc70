"""Compressed files (.gz, .zst) as streams of their contents that can be read, read by line, and sought.

In: a path. Out: `Decompressed`. Seeking forward decompresses what is between, seeking backward starts over; the last
stream is therefore kept open for the next reader of the same file, which usually continues behind it.
"""

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdpipe.cache.parts.arrow_files import open_zstd

OPENERS: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".zst": open_zstd}
BLOCK_BYTES = 1 << 20
# Text is rarely compressed to less than a fiftieth; small files may be repetitive.
EXPANDED_BYTES, EXPANDED_PER_BYTE = 1 << 26, 100
# The last stream that was read, if it is not in use.
_idle: "list[Decompressed]" = []


class DamagedStream(ValueError):
    """Compressed data that are damaged, truncated or expand too far, with the reason."""


def open_compressed(path: Path, state: tuple[int, int]) -> "Decompressed":
    """A stream of a file in this state, the one that was last closed if it is of this file."""
    with suppress(IndexError):
        stream = _idle.pop()
        if (stream.path, stream.state) == (path, state):
            stream.seek(0)
            return stream
        stream.close()
    return Decompressed(path, state)


class Decompressed:
    """The contents of a compressed file; bytes since the last `seek` or `readline` stay in memory."""

    def __init__(self, path: Path, state: tuple[int, int]) -> None:
        self.path, self.state = path, state
        self._most = EXPANDED_BYTES + EXPANDED_PER_BYTE * state[0]
        self._stream: Any = OPENERS[path.suffix](str(path))
        self._buffer, self._start, self._place, self._kept = bytearray(), 0, 0, 0

    def __enter__(self) -> "Decompressed":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or _idle:
            self.close()
        else:
            _idle.append(self)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()

    def close(self) -> None:
        self._stream.close()

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> int:
        self._place = self._kept = place
        return place

    def read(self, n_bytes: int) -> bytes:
        self._rewind()
        while self._end() < self._place + n_bytes and self._fill():
            pass
        return self._take(n_bytes)

    def readline(self, n_bytes: int) -> bytes:
        """The bytes up to and with the next line end, at most `n_bytes`."""
        self._rewind()
        searched = self._kept = self._place
        while True:
            begin = max(searched - self._start, 0)
            end = self._buffer.find(b"\n", begin, self._place + n_bytes - self._start)
            if end >= 0:
                line = self._take(self._start + end + 1 - self._place)
                break
            searched = max(self._end(), self._place)
            if self._end() >= self._place + n_bytes or not self._fill():
                line = self._take(n_bytes)
                break
        self._kept = self._place
        return line

    def _rewind(self) -> None:
        """Start over if the next byte is no longer in memory."""
        if self._place < self._start:
            self.close()
            self._stream = OPENERS[self.path.suffix](str(self.path))
            self._buffer, self._start = bytearray(), 0

    def _end(self) -> int:
        return self._start + len(self._buffer)

    def _take(self, n_bytes: int) -> bytes:
        begin = max(self._place - self._start, 0)
        data = bytes(self._buffer[begin : begin + n_bytes])
        self._place += len(data)
        return data

    def _fill(self) -> bool:
        """Decompress a block more, without bytes that are no longer needed; false at the end."""
        unneeded = min(self._kept - self._start, len(self._buffer))
        del self._buffer[:unneeded]
        self._start += unneeded
        try:
            block = self._stream.read1(BLOCK_BYTES)
        except EOFError:
            raise DamagedStream("the compressed data end early") from None
        except (OSError, zlib.error) as error:
            raise DamagedStream(f"the compressed data are damaged or end early ({error})") from None
        self._buffer += block
        if self._end() > self._most:
            raise DamagedStream(f"it expands to more than {self._most:,} bytes, which is implausible for text")
        return bool(block)
