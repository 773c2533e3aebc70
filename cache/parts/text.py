"""text.arrow: the documents' text, for students with another tokenizer; only on request.

In: texts in document order. Out: the texts of some documents. Texts are packed into zstd frames of about a mebibyte.
"""

import itertools
from typing import Any, BinaryIO

import numpy as np

from kdpipe.cache.parts.arrow_files import Field, IpcTable, compress, decompress, write_ipc
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError

FRAME_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 26
FIELDS = [Field(name="frame", type="binary"), Field(name="lengths", type="uint32", listed=True)]


class TextWriter:
    """Gathers texts and compresses them frame by frame."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._lengths: list[list[int]] = []
        self._open: list[bytes] = []
        self._size = 0

    def add(self, texts: list[str]) -> None:
        """Take the texts of the next documents."""
        for text in texts:
            try:
                self._open.append(text.encode())
            except UnicodeEncodeError as error:
                raise CacheWriteError(
                    f"a document's text cannot be written as UTF-8: {error.reason}",
                    hint="repair or leave out the document",
                ) from None
            self._size += len(self._open[-1])
            if self._size > MAX_FRAME_BYTES:
                raise CacheWriteError(
                    f"a document's text has {len(self._open[-1]):,} bytes, "
                    f"at most {MAX_FRAME_BYTES - FRAME_BYTES:,} can be kept",
                    hint="split the document, or cache without its text",
                )
            if self._size >= FRAME_BYTES:
                self._close()

    def _close(self) -> None:
        self._frames.append(compress(b"".join(self._open)))
        self._lengths.append([len(text) for text in self._open])
        self._open, self._size = [], 0

    def write(self, file: BinaryIO) -> int:
        """Write them all; the number of frames."""
        if self._open:
            self._close()
        offsets = np.concatenate([[0], np.cumsum([len(lengths) for lengths in self._lengths])]).astype(np.int32)
        flat = np.array([length for lengths in self._lengths for length in lengths], np.uint32)
        write_ipc(file, FIELDS, {"frame": self._frames, "lengths": flat}, offsets)
        return len(self._frames)


class Texts:
    """The texts of a part's documents, in the order in which its sequences hold them."""

    def __init__(self, data: memoryview, n_frames: int, n_documents: int, what: str) -> None:
        self._table = IpcTable(data, FIELDS, n_frames, what)
        self._what = what
        self._offsets = self._table.offsets("lengths")
        self._lengths = self._table.numbers("lengths").astype(np.int64)
        if len(self._lengths) != n_documents:
            raise CacheDamaged(f"{what} holds {len(self._lengths):,} texts for {n_documents:,} documents")

    def get(self, start: int, stop: int) -> list[str]:
        """The texts of documents start to stop."""
        lines: list[str] = []
        for frame in range(len(self._offsets) - 1):
            first, end = int(self._offsets[frame]), int(self._offsets[frame + 1])
            if first < stop and end > start:
                texts = self._frame(frame, first, end)
                lines += texts[max(start - first, 0) : stop - first]
        return lines

    def _frame(self, frame: int, first: int, end: int) -> list[str]:
        lengths = self._lengths[first:end]
        total = int(lengths.sum())
        if total > MAX_FRAME_BYTES:
            raise CacheDamaged(f"{self._what}: a frame claims {total:,} bytes of text")
        packed: Any = self._table.values("frame", frame, frame + 1)[0]
        data = decompress(packed, total, self._what)
        places = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        try:
            return [data[a:b].decode() for a, b in itertools.pairwise(places)]
        except UnicodeDecodeError:
            raise CacheDamaged(f"{self._what}: a text is not UTF-8") from None
