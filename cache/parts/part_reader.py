"""One committed part, mapped: any range of its sequences, decoded into arrays.

In: a store, the manifest, the part's checked record. Out: `Rows` of neighboring sequences. Nothing here writes or
locks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.format.decode import Decoder, EntryCodes, FlatEntries
from kdpipe.cache.format.part_arrays import PartArray
from kdpipe.cache.format.quantizers import Codes, Floats, dequantize_vectors
from kdpipe.cache.format.ragged import next_tokens
from kdpipe.cache.format.rows import Rows, TokenRows
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.parts.part_files import REFETCH, examine_part, part_grids
from kdpipe.cache.parts.sequences import Sequences, split_vectors
from kdpipe.cache.parts.text import Texts
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.arrays import log_z_column
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.target_kinds import State

Longs = npt.NDArray[np.int64]
TOKEN_COLUMNS = ("token", "loss_mask")


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
        folder = layout.part_dir(number)
        self._named = {name: _PlaceInErrors(f"{folder}/{layout.array_shard(name)}") for name in self._grids}
        self._named_part = _PlaceInErrors(folder)
        self._column_numbers = {column.name: n for n, column in enumerate(manifest.arrays.row.columns)}
        self._hot_names = tuple(name for name in self._column_numbers if name != "token_bytes")
        self._texts: Texts | None = None
        with _PlaceInErrors(f"{folder}/{layout.SEQUENCES}"):
            self.sequences = Sequences(self._checked_file(layout.SEQUENCES), manifest, record, layout.SEQUENCES)

    def _view(self, file: str) -> memoryview:
        return self._store.view(f"{layout.part_dir(self.number)}/{file}", self.record.files[file].bytes)

    def _checked_file(self, file: str) -> memoryview:
        """A file without checksums inside: small, and checked as a whole."""
        data = self._view(file)
        if sha256_hex(data) != self.record.files[file].sha256:
            raise CacheDamaged("its bytes are not those that were written (sha256 differs)")
        return data

    def array(self, name: str) -> PartArray:
        """An array, mapped on first use."""
        if name not in self._arrays:
            grid = self._grids[name]
            shard = layout.array_shard(name)
            data = self._view(shard) if grid.n_chunks else memoryview(b"")
            self._arrays[name] = PartArray(data, grid, self.record.indexes.get(name, ""))
        return self._arrays[name]

    def codes(self, array: str, start: int, stop: int, column: str = "") -> npt.NDArray[Any]:
        """Codes of an array, or of a column of the array `row`; a refusal names the file."""
        with self._named[array]:
            return self.array(array).get(start, stop, self._column_numbers[column] if column else 0)

    def rows(self, first: int, end: int, *, hidden: bool = True) -> Rows:
        """The rows of sequences first to end, as if they were one: document starts count from the first row.

        Without `hidden` the states of rows stay undecoded.
        """
        places = self.sequences
        start, stop = int(places.row_starts[first]), int(places.row_starts[end])
        with self._named_part:
            columns = self._columns(start, stop, self._hot_names)
            mask = _mask(columns["loss_mask"])
            n_exact, n_draws = self._counts(columns, "n_exact"), self._counts(columns, "n_draws")
            entries = self._entries(first, end, columns, n_exact, n_draws)
            counts = n_exact + n_draws
            if (counts.astype(bool) > mask).any():
                raise CacheDamaged("a row with loss_mask false has targets")
            scalars, tokens = self._decoder.scalars(columns), self._decoder.to_ids(columns["token"])
            if "label_logprob" in scalars:
                known, at = next_tokens(tokens, entries.ids, n_exact, n_draws)
                if not np.isnan(scalars["label_logprob"][known]).all():
                    raise CacheDamaged("the log p of a next token that is an exact id is stored twice")
                scalars["label_logprob"][known] = entries.logprobs[at]
            return Rows(
                tokens=tokens,
                loss_mask=mask,
                document_starts=self._document_starts(first, end) - start,
                documents=self._document_numbers(first, end),
                count=counts.astype(np.int32),
                n_exact=n_exact.astype(np.int32),
                ids=entries.ids,
                logprobs=entries.logprobs,
                weights=entries.weights,
                log_tail=scalars.get("log_tail"),
                entropy=scalars.get("entropy"),
                label_logprob=scalars.get("label_logprob"),
                log_z={t: scalars[log_z_column(t)] for t in self._manifest.targets.temperatures},
                boundary_logprob=scalars.get("boundary_logprob"),
                times=entries.times,
                hidden=self._hidden(start, stop) if hidden else {},
                state=self._state(start, stop),
            )

    def tokens(self, sequence: int) -> TokenRows:
        """The rows of a sequence without their targets, of which nothing is decoded."""
        start, stop = self.sequences.row_starts[[sequence, sequence + 1]].tolist()
        with self._named_part:
            columns = self._columns(start, stop, TOKEN_COLUMNS)
            return TokenRows(
                tokens=self._decoder.to_ids(columns["token"]),
                loss_mask=_mask(columns["loss_mask"]),
                document_starts=self._document_starts(sequence, sequence + 1) - start,
                documents=self._document_numbers(sequence, sequence + 1),
            )

    def _document_numbers(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """The split's numbers of the documents in sequences [first, end)."""
        offsets = self.sequences.document_offsets
        return self.sequences.documents[int(offsets[first]) : int(offsets[end])].copy()

    def _columns(self, start: int, stop: int, names: tuple[str, ...]) -> dict[str, Codes]:
        """The codes of some columns."""
        numbers = tuple(self._column_numbers[name] for name in names)
        with self._named["row"]:
            matrix = self.array("row").get_columns(start, stop, numbers)
        return dict(zip(names, matrix, strict=True))

    def _document_starts(self, first: int, end: int) -> Longs:
        """Rows of the part at which documents begin."""
        places = self.sequences
        offsets = places.document_offsets
        if end == first + 1:
            return places.document_starts[offsets[first] : offsets[end]] + int(places.row_starts[first])
        starts = places.document_starts[offsets[first] : offsets[end]]
        return starts + np.repeat(places.row_starts[first:end], np.diff(offsets[first : end + 1]))

    def _counts(self, columns: dict[str, Codes], name: str) -> Longs:
        if name not in columns:
            return np.zeros(len(columns["token"]), np.int64)
        if int(columns[name].max(initial=0)) > self._manifest.targets.max_entries:
            raise CacheDamaged(f"{name} is above the {self._manifest.targets.max_entries} ids that a row can keep")
        return columns[name].astype(np.int64)

    def _entries(self, first: int, end: int, columns: dict[str, Codes], n_exact: Longs, n_draws: Longs) -> FlatEntries:
        places, manifest = self.sequences, self._manifest
        exact, exact_end = int(places.exact_starts[first]), int(places.exact_starts[end])
        draws, draws_end = int(places.draw_starts[first]), int(places.draw_starts[end])
        if int(n_exact.sum()) != exact_end - exact or int(n_draws.sum()) != draws_end - draws:
            raise CacheDamaged("the counts of entries do not agree with sequences.arrow")
        if not manifest.targets.has_entries:
            nothing = np.zeros(0, np.float32)
            return FlatEntries(ids=np.zeros(0, np.int32), logprobs=nothing, weights=nothing, times=None)
        with_values = manifest.targets.draw_values
        codes = EntryCodes(
            n_exact=n_exact,
            n_draws=n_draws,
            ids=self.codes("id", exact + draws, exact_end + draws_end),
            times=self.codes("times", draws, draws_end) if manifest.arrays.times else None,
            logprobs=self.codes("logprob", exact + draws * with_values, exact_end + draws_end * with_values),
            log_tail=columns.get("log_tail"),
            drawn_log_tail=columns.get("drawn_log_tail"),
            log_z=columns.get(log_z_column(manifest.targets.target_temperature)),
        )
        return self._decoder.entries(codes)

    def _hidden(self, start: int, stop: int) -> dict[int, Floats]:
        vectors = self._manifest.hidden.rows
        return split_vectors(self.codes("hidden", start, stop), vectors) if vectors else {}

    def _state(self, start: int, stop: int) -> Floats | None:
        keep = self._manifest.targets.keep
        if not isinstance(keep, State):
            return None
        return dequantize_vectors(self.codes("state", start, stop), keep.width, keep.group)

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
            yield f"the columns take {sizes} bytes, part.json has other sizes"

    def token_bytes(self, sequence: int) -> npt.NDArray[np.int32]:
        """The byte length of each token of a sequence."""
        start, stop = self.sequences.row_starts[[sequence, sequence + 1]].tolist()
        return self.codes("row", start, stop, "token_bytes").astype(np.int32)

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
            with _PlaceInErrors(f"{layout.part_dir(self.number)}/{layout.TEXT}"):
                self._texts = Texts(
                    self._checked_file(layout.TEXT), self.record.n_text_frames, n_documents, layout.TEXT
                )
        return self._texts.get(start, stop)


def _mask(codes: Codes) -> npt.NDArray[np.bool_]:
    if int(codes.max(initial=0)) > 1:
        raise CacheDamaged("loss_mask holds something else than 0 and 1")
    return codes.astype(bool)


class _PlaceInErrors:
    """Puts the place before a refusal, once: the innermost name wins."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CacheDamaged) and error.hint is None:
            raise CacheDamaged(f"{self._place}: {error.message}", hint=REFETCH) from error
