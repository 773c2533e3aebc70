"""One part under construction: sequences in, encoded chunks out to a folder of its own.

In: `Sequence` and `Block` pairs in document order. Out: the finished files of a part, each synced, and its record.
Memory holds one open chunk an array, never the part.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.durable.files import make_dir, new_file
from kdpipe.cache.format.encode import CodedRows, encode
from kdpipe.cache.format.quantizers import Codes
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.format.shards import ShardWriter
from kdpipe.cache.format.statistics import StatisticsSum
from kdpipe.cache.format.zarr_json import GROUP, ArrayGrid, grids
from kdpipe.cache.parts.sequences import Places, SequencesWriter
from kdpipe.cache.parts.text import TextWriter
from kdpipe.schemas.cache_plan import MAX_PART_ROWS, PlannedPart
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import Fidelity, PartRecord, ScaledRows
from kdpipe.schemas.strict_json import sha256_file


class Stream:
    """One array on its way to its shard: codes gather until a chunk is full."""

    def __init__(self, path: Path, grid: ArrayGrid, stack: ExitStack) -> None:
        make_dir(path.parent)
        self._shard = ShardWriter(stack.enter_context(new_file(path)))
        self._grid, self._chunk_length = grid, grid.chunk[0]
        self._open: list[npt.NDArray[Any]] = []
        self._n_open = self._n_chunks = 0
        self.length = 0
        self.column_bytes = np.zeros(grid.n_columns, np.int64)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take some codes, or rows of codes."""
        self._open.append(values)
        self._n_open += len(values)
        self.length += len(values)
        if self._n_open >= self._chunk_length:
            joined = np.concatenate(self._open)
            whole = len(joined) - len(joined) % self._chunk_length
            for start in range(0, whole, self._chunk_length):
                self._encode(joined[start : start + self._chunk_length])
            self._open, self._n_open = [joined[whole:]], len(joined) - whole

    def finish(self) -> str:
        """Fill up the last chunk with zeros, as zarr does, and write the index; its sha256."""
        if self._n_open:
            joined = np.concatenate(self._open)
            padding = np.zeros((self._chunk_length - len(joined), *joined.shape[1:]), joined.dtype)
            self._encode(np.concatenate([joined, padding]))
        return self._shard.finish(self._n_chunks)

    def _encode(self, values: npt.NDArray[Any]) -> None:
        for column, numbers in enumerate(np.ascontiguousarray(values.T) if self._grid.by_column else [values]):
            self.column_bytes[column] += self._shard.add(self._n_chunks, self._grid.codec.encode(numbers))
            self._n_chunks += 1


class PartWriter:
    """Takes the sequences of one part; `CacheWriter.part` makes it and commits it."""

    def __init__(
        self, work: Path, planned: PlannedPart, manifest: Manifest, rank_of_id: Codes, stack: ExitStack
    ) -> None:
        self.planned = planned
        self.fidelity: Fidelity | None = None
        self.scaled: ScaledRows | None = None
        self.batches_halved = 0
        self._work, self._manifest, self._rank_of_id = work, manifest, rank_of_id
        self._sequences = SequencesWriter(manifest, planned.first_document)
        self._texts = TextWriter() if manifest.data.text else None
        self._statistics = StatisticsSum(manifest)
        self._n_rows = self._n_positions = self._n_exact = self._n_draws = self._n_sequences = self._n_begun = 0
        self._grids = grids(manifest, 1, 1, 1)
        self._stack = stack
        self._streams = {name: self._stream(name) for name in layout.array_names(manifest)}

    def _stream(self, name: str) -> Stream:
        return Stream(self._work / layout.array_shard(name), self._grids[name], self._stack)

    def add(self, sequence: Sequence, block: Block) -> None:
        """Add the next sequence and the teacher's predictions at each of its rows."""
        self._begin(len(sequence.tokens), sequence.documents)
        coded = encode(sequence, block, self._manifest, self._rank_of_id)
        self._take(coded, Places.of(sequence, self._manifest), sequence.texts)
        self._statistics.add(sequence, block)
        self._n_positions += int(np.count_nonzero(sequence.loss_mask))
        self._n_exact += int(np.sum(block.n_exact))
        self._n_draws += int(np.sum(block.n_draws))

    def add_coded(self, coded: CodedRows, places: Places, texts: list[str] | None) -> None:
        """Take the next sequence as another cache has it: no number is rounded again."""
        self._begin(places.n_rows, places.documents)
        self._take(coded, places, texts)
        counts = self._statistics.add_coded(coded)
        self._n_positions += counts.n_positions
        self._n_exact += counts.n_exact
        self._n_draws += counts.n_draws

    def _begin(self, n_rows: int, documents: npt.NDArray[Any]) -> None:
        # A caller that continues after a refusal has lost a sequence: such a part is never committed.
        self._n_begun += 1
        if self._n_rows + n_rows > MAX_PART_ROWS:
            raise CacheWriteError(
                f"part {self.planned.number} would pass {MAX_PART_ROWS:,} rows", hint="plan fewer documents a part"
            )
        first, end = self.planned.first_document, self.planned.first_document + self.planned.n_documents
        if np.min(documents) < first or np.max(documents) >= end:
            raise CacheWriteError(
                f"part {self.planned.number} holds documents {first} to {end - 1}, a sequence has another"
            )

    def _take(self, coded: CodedRows, places: Places, texts: list[str] | None) -> None:
        self._sequences.add(places, self._n_exact, self._n_draws)
        if self._texts is not None:
            self._texts.add(texts or [])
        self._add_codes(coded)
        self._n_sequences += 1
        self._n_rows += places.n_rows

    def _add_codes(self, coded: CodedRows) -> None:
        self._streams["row"].add(coded.columns)
        for name, codes in (("id", coded.ids), ("times", coded.times), ("logprob", coded.logprobs)):
            if name in self._streams:
                self._streams[name].add(codes)
        for name, vectors in coded.vectors.items():
            self._streams[name].add(vectors)

    def finish(self, tables: dict[str, FileRecord]) -> PartRecord:
        """Write what is left, sync every file, and write the record last."""
        if self._n_begun != self._n_sequences:
            raise CacheWriteError(
                f"part {self.planned.number} lacks a sequence that was refused", hint="write it again"
            )
        indexes = {name: stream.finish() for name, stream in self._streams.items()}
        self._stack.close()
        self._write_metadata()
        n_frames = self._write_tables()
        record = PartRecord(
            manifest_sha256=self._manifest.sha256,
            part=self.planned.number,
            split=self.planned.split,
            first_document=self.planned.first_document,
            n_documents=self.planned.n_documents,
            n_sequences=self._n_sequences,
            n_rows=self._n_rows,
            n_positions=self._n_positions,
            n_exact=self._n_exact,
            n_draws=self._n_draws,
            n_text_frames=n_frames,
            column_bytes=self._column_bytes(),
            indexes={name: sha256 for name, sha256 in indexes.items() if self._streams[name].length},
            statistics=self._statistics.record(),
            fidelity=self.fidelity,
            scaled=self.scaled,
            batches_halved=self.batches_halved,
            tables=tables,
            files=self._files(),
        )
        with new_file(self._work / layout.PART_RECORD) as file:
            file.write(record.to_json())
        return record

    def _write_metadata(self) -> None:
        """One zarr.json an array, and one for their group; an array without numbers has no shard."""
        with new_file(self._work / layout.TARGETS / layout.ZARR_JSON) as file:
            file.write(GROUP)
        for name, grid in grids(self._manifest, self._n_rows, self._n_exact, self._n_draws).items():
            with new_file(self._work / layout.array_metadata(name)) as file:
                file.write(grid.to_json())
            if not self._streams[name].length:
                shard = self._work / layout.array_shard(name)
                shard.unlink()
                shard.parent.rmdir()

    def _write_tables(self) -> int:
        with new_file(self._work / layout.SEQUENCES) as file:
            self._sequences.write(file)
        if self._texts is None:
            return 0
        with new_file(self._work / layout.TEXT) as file:
            return self._texts.write(file)

    def _column_bytes(self) -> dict[str, int]:
        names = [column.name for column in self._manifest.arrays.row.columns]
        return dict(zip(names, self._streams["row"].column_bytes.tolist(), strict=True))

    def _files(self) -> dict[str, FileRecord]:
        paths = sorted(path for path in self._work.rglob("*") if path.is_file())
        return {
            path.relative_to(self._work).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in paths
        }
