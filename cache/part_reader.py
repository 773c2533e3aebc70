"""One committed part, mapped: any range of its sequences, decoded into arrays.

In: a store, the manifest, the part's checked record. Out: `Rows` of neighbouring sequences.
Before it: `part_files.py`, `shards.py`, `decode.py`. After it: `reader.py` holds a few of these. Nothing here writes
or locks;
the last decoded chunk of each array is kept, and replaced in one assignment, so that threads can share a part.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.codecs import decode_numbers, decode_plain
from kdpipe.cache.decode import Decoder, Entries, EntryCodes
from kdpipe.cache.index import IndexRow
from kdpipe.cache.laws import Codes, Floats, dequantise_vectors
from kdpipe.cache.part_files import REFETCH, examine_part, part_grids
from kdpipe.cache.rows import Rows
from kdpipe.cache.sequences import Sequences, split_vectors
from kdpipe.cache.shards import Shard
from kdpipe.cache.store import Store
from kdpipe.cache.text import Texts
from kdpipe.cache.zarr_json import Grid
from kdpipe.schemas.arrays import log_z_column
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.targets import State

Longs = npt.NDArray[np.int64]


class PartArray:
    """One array of a part: ranges of its numbers, chunk by chunk."""

    def __init__(self, data: memoryview, grid: Grid, index_sha256: str) -> None:
        self._grid = grid
        self._shard = Shard(data, grid.n_chunks, index_sha256) if grid.n_chunks else None
        self._length = grid.shape[0]
        self._columns = grid.shape[1] if grid.level is not None and len(grid.shape) == 2 else 1
        self._last: list[tuple[int, npt.NDArray[Any]] | None] = [None] * self._columns

    @property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return self._grid.n_chunks

    def get(self, start: int, stop: int, column: int = 0) -> npt.NDArray[Any]:
        """Numbers start to stop of a column, read-only: the result may share memory with the last chunk."""
        if not 0 <= start <= stop <= self._length:
            raise CacheDamaged(f"numbers {start} to {stop} are asked of an array of {self._length}")
        size = self._grid.chunk[0]
        pieces = []
        for number in range(start // size, -(-stop // size) if stop > start else start // size):
            chunk = self._chunk(number * self._columns + column, column)
            pieces.append(chunk[max(start - number * size, 0) : stop - number * size])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros((0, *self._chunk_shape[1:]), self._dtype)

    def column_bytes(self) -> list[int]:
        """Bytes of each column, checksums included."""
        if self._shard is None:
            return [0] * self._columns
        return [int(size) for size in self._shard.sizes.reshape(-1, self._columns).sum(axis=0)]

    def decode(self, number: int) -> npt.NDArray[Any]:
        """One chunk, without remembering it."""
        assert self._shard is not None
        into = np.empty(self._chunk_shape, self._dtype)
        (decode_plain if self._grid.level is None else decode_numbers)(self._shard.chunk(number), into)
        return into

    def _chunk(self, number: int, column: int) -> npt.NDArray[Any]:
        last = self._last[column]
        if last is not None and last[0] == number:
            return last[1]
        chunk = self.decode(number)
        chunk.flags.writeable = False
        self._last[column] = (number, chunk)
        return chunk

    @property
    def _chunk_shape(self) -> tuple[int, ...]:
        return self._grid.chunk if self._grid.level is None else self._grid.chunk[:1]

    @property
    def _dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if self._grid.level is None else np.uint32


class PartReader:
    """The sequences of one part."""

    def __init__(self, store: Store, manifest: Manifest, decoder: Decoder, number: int, row: IndexRow | None) -> None:
        record, problems = examine_part(store, manifest, number, row)
        if problems or record is None:
            raise CacheDamaged(str(problems[0]), hint=problems[0].do)
        self.number, self.record = number, record
        self._store, self._manifest, self._decoder = store, manifest, decoder
        self._grids = part_grids(manifest, record)
        self._arrays: dict[str, PartArray] = {}
        self._column_numbers = {column.name: n for n, column in enumerate(manifest.arrays.row.columns)}
        self._texts: Texts | None = None
        with _Named(f"{layout.part_dir(number)}/{layout.SEQUENCES}"):
            self.sequences = Sequences(self._whole(layout.SEQUENCES), manifest, record, layout.SEQUENCES)

    def _view(self, file: str) -> memoryview:
        return self._store.view(f"{layout.part_dir(self.number)}/{file}", self.record.files[file].bytes)

    def _whole(self, file: str) -> memoryview:
        """A file without checksums inside: small, and checked as a whole."""
        data = self._view(file)
        if sha256_hex(data) != self.record.files[file].sha256:
            raise CacheDamaged("its bytes are not those that were written (sha256 differs)")
        return data

    def array(self, name: str) -> PartArray:
        """An array, mapped when it is first asked for."""
        if name not in self._arrays:
            grid = self._grids[name]
            shard = layout.array_shard(name)
            data = self._view(shard) if grid.n_chunks else memoryview(b"")
            self._arrays[name] = PartArray(data, grid, self.record.indexes.get(name, ""))
        return self._arrays[name]

    def codes(self, array: str, start: int, stop: int, column: str = "") -> npt.NDArray[Any]:
        """Codes of an array, or of a column of the array `row`; a refusal names the file."""
        with _Named(f"{layout.part_dir(self.number)}/{layout.array_shard(array)}"):
            return self.array(array).get(start, stop, self._column_numbers[column] if column else 0)

    def rows(self, first: int, end: int) -> Rows:
        """The rows of sequences first to end, as if they were one: document starts count from the first row."""
        places = self.sequences
        start, stop = int(places.row_starts[first]), int(places.row_starts[end])
        with _Named(layout.part_dir(self.number)):
            mask = self._mask(start, stop)
            entries, counts, n_exact = self._entries(first, end, mask)
            documents = slice(int(places.document_offsets[first]), int(places.document_offsets[end]))
            return Rows(
                tokens=self._decoder.tokens(self._column("token", start, stop)),
                loss_mask=mask,
                document_starts=self._document_starts(first, end) - start,
                documents=places.documents[documents],
                count=counts.astype(np.int32),
                n_exact=n_exact.astype(np.int32),
                ids=entries.ids,
                logprobs=entries.logprobs,
                weights=entries.weights,
                log_tail=self._scalar("log_tail", start, stop),
                entropy=self._scalar("entropy", start, stop),
                label_logprob=self._scalar("label_logprob", start, stop),
                log_z={t: self._log_z(t, start, stop) for t in self._manifest.targets.temperatures},
                boundary_logprob=self._scalar("boundary_logprob", start, stop),
                times=entries.times,
                hidden=self._hidden(start, stop),
                state=self._state(start, stop),
            )

    def _mask(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        codes = self._column("loss_mask", start, stop)
        if int(codes.max(initial=0)) > 1:
            raise CacheDamaged("loss_mask holds something else than 0 and 1")
        return codes.astype(bool)

    def _document_starts(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Rows of the part at which documents begin."""
        places = self.sequences
        offsets = places.document_offsets
        starts = places.document_starts[offsets[first] : offsets[end]]
        return starts + np.repeat(places.row_starts[first:end], np.diff(offsets[first : end + 1]))

    def _entries(self, first: int, end: int, mask: npt.NDArray[np.bool_]) -> tuple[Entries, Longs, Longs]:
        places = self.sequences
        start, stop = int(places.row_starts[first]), int(places.row_starts[end])
        n_exact, n_draws = self._counts("n_exact", start, stop), self._counts("n_draws", start, stop)
        exact, draws = places.exact_starts[[first, end]], places.draw_starts[[first, end]]
        if (
            n_exact.sum() != exact[1] - exact[0]
            or n_draws.sum() != draws[1] - draws[0]
            or (n_exact + n_draws)[~mask].any()
        ):
            raise CacheDamaged("the counts of entries do not agree with sequences.arrow and loss_mask")
        if not self._manifest.targets.has_entries:
            nothing = np.zeros(0, np.float32)
            none = Entries(
                is_draw=np.zeros(0, bool), ids=np.zeros(0, np.int32), logprobs=nothing, weights=nothing, times=None
            )
            return none, n_exact, n_exact
        values = exact + draws if self._manifest.targets.draw_values else exact
        codes = EntryCodes(
            n_exact=n_exact,
            n_draws=n_draws,
            ids=self.codes("id", int(exact[0] + draws[0]), int(exact[1] + draws[1])),
            times=self.codes("times", int(draws[0]), int(draws[1])) if self._manifest.arrays.times else None,
            logprobs=self.codes("logprob", int(values[0]), int(values[1])),
            log_tail=self._optional("log_tail", start, stop),
            drawn_log_tail=self._optional("drawn_log_tail", start, stop),
            log_z=self._optional(log_z_column(self._manifest.targets.target_temperature), start, stop),
        )
        return self._decoder.entries(codes), n_exact + n_draws, n_exact

    def _counts(self, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
        codes = self._optional(name, start, stop)
        if codes is None:
            return np.zeros(stop - start, np.int64)
        if int(codes.max(initial=0)) > self._manifest.targets.max_entries:
            raise CacheDamaged(f"{name} is above the {self._manifest.targets.max_entries} ids that a row can keep")
        return codes.astype(np.int64)

    def _column(self, name: str, start: int, stop: int) -> Codes:
        return self.codes("row", start, stop, name)

    def _optional(self, name: str, start: int, stop: int) -> Codes | None:
        return self._column(name, start, stop) if name in self._column_numbers else None

    def _scalar(self, name: str, start: int, stop: int) -> Floats | None:
        return self._decoder.scalars(name, self._column(name, start, stop)) if name in self._column_numbers else None

    def _log_z(self, temperature: float, start: int, stop: int) -> Floats:
        name = log_z_column(temperature)
        return self._decoder.scalars(name, self._column(name, start, stop))

    def _hidden(self, start: int, stop: int) -> dict[int, Floats]:
        vectors = self._manifest.hidden.rows
        return split_vectors(self.codes("hidden", start, stop), vectors) if vectors else {}

    def _state(self, start: int, stop: int) -> Floats | None:
        keep = self._manifest.targets.keep
        if not isinstance(keep, State):
            return None
        return dequantise_vectors(self.codes("state", start, stop), keep.width, keep.group)

    @property
    def array_names(self) -> tuple[str, ...]:
        """The arrays of the part."""
        return tuple(self._grids)

    def numbers(self, array: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows of an array in the shape that zarr gives them."""
        if array != "row":
            return self.codes(array, start, stop)
        return np.stack([self.codes(array, start, stop, name) for name in self._column_numbers], axis=1)

    def check_rest(self) -> Iterator[str]:
        """Decode what `rows` leaves out; sentences about what is wrong with it."""
        places, record = self.sequences, self.record
        n_documents = len(places.documents)
        for vector in places.pooled(0, n_documents).values():
            if not np.isfinite(vector).all():
                yield "a pooled state is not finite"
        for column in self._manifest.data.columns:
            places.column(column.name, 0, n_documents)
        for sequence in range(len(places)):
            self.token_bytes(sequence)
        if self._manifest.data.text:
            self.texts_between(0, n_documents)
        sizes = self.array("row").column_bytes()
        if dict(zip(self._column_numbers, sizes, strict=True)) != record.column_bytes:
            yield f"the columns take {sizes} bytes, part.json says otherwise"

    def token_bytes(self, sequence: int) -> npt.NDArray[np.int32]:
        """The byte length of each token of a sequence."""
        start, stop = self.sequences.row_starts[[sequence, sequence + 1]].tolist()
        return self._column("token_bytes", start, stop).astype(np.int32)

    def documents(self, sequence: int) -> tuple[int, int]:
        """The documents of a sequence, counted through the part."""
        return int(self.sequences.document_offsets[sequence]), int(self.sequences.document_offsets[sequence + 1])

    def texts(self, sequence: int) -> list[str]:
        """The texts of a sequence's documents."""
        return self.texts_between(*self.documents(sequence))

    def texts_between(self, start: int, stop: int) -> list[str]:
        """The texts of some documents, counted through the part."""
        if self._texts is None:
            n_documents = int(self.sequences.document_offsets[-1])
            with _Named(f"{layout.part_dir(self.number)}/{layout.TEXT}"):
                self._texts = Texts(self._whole(layout.TEXT), self.record.n_text_frames, n_documents, layout.TEXT)
        return self._texts.get(start, stop)


class _Named:
    """Puts the place before a refusal, once: the innermost name wins."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CacheDamaged) and error.hint is None:
            raise CacheDamaged(f"{self._place}: {error.message}", hint=REFETCH) from error
