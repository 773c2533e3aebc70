"""`Cache`: reads a cache from a folder or URL, in any number of processes at once.

In: a store. Out: sequences by number, blocks of neighboring sequences, dense targets. Opening reads the manifest and
index; the files of a part are checked when the part is first read. Reading never writes, locks or creates files.
"""

import operator
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_index, load_manifest
from kdpipe.cache.format.data_frame import rows_frame
from kdpipe.cache.format.decode import Decoder
from kdpipe.cache.format.dense import dense_rows
from kdpipe.cache.format.quantizers import Floats
from kdpipe.cache.format.rows import Ints, Rows, TokenRows
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.parts.tables import read_table
from kdpipe.cache.parts.tokenizer_content import TokenizerContent
from kdpipe.cache.parts.tokenizer_files import load_tokenizer_files, read_tokenizer
from kdpipe.cache.stores.addresses import MirrorSettings
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas import display
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, nearest_name
from kdpipe.schemas.manifest import FileRecord, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_OPEN_PARTS = 32
Result = TypeVar("Result")
_caches: "weakref.WeakSet[Cache]" = weakref.WeakSet()


class ReaderOptions(NamedTuple):
    """How a cache was opened."""

    allow_partial: bool
    max_open_parts: int
    mirror: MirrorSettings | None = None
    retry_policy: RetryPolicy | None = None


Reopen = Callable[[str, SplitName | None, ReaderOptions], "Cache"]


class HeldPart(Protocol):
    """A part that is not removed from the mirror until `release`."""

    def release(self) -> None: ...


class PartProvider(Protocol):
    """Downloads parts into a local mirror for a reader."""

    def hold(self, number: int) -> HeldPart:
        """Download a part if necessary, and keep it until its lease is released."""

    def expect(self, numbers: Sequence[int]) -> None:
        """The parts that will be read next, in this order."""

    def join(self, reader: "Cache") -> None:
        """Register a reader that closes parts when space is needed."""

    def repair(self, number: int) -> None:
        """Download damaged files of a mirrored part again."""

    def located(self, number: int, error: CacheDamaged) -> CacheDamaged:
        """An error in a mirrored part, with the part's folder."""


class CacheContents(NamedTuple):
    """What opening reads: shared by a cache and its splits."""

    manifest: Manifest
    rows: list[IndexRow]
    cache_id: str | None


@final
class Cache:
    """A cache, or one split of it, as a sequence of sequences. Safe across fork, spawn and threads."""

    def __init__(
        self,
        store: Store,
        split: SplitName | None,
        options: ReaderOptions,
        reopen: Reopen,
        provider: PartProvider | None = None,
        contents: CacheContents | None = None,
    ) -> None:
        self.url, self.store, self.split_name = store.url, store, split
        self._options, self._reopen, self._provider = options, reopen, provider
        self._contents = contents or _read_contents(store, options.allow_partial)
        self.manifest, rows, self.cache_id = self._contents
        if split is not None and split not in self.split_names:
            names = self.split_names
            raise ConfigError(
                f"{store.url} has no split {split!r}",
                hint=f"its splits are {', '.join(names)}",
                nearest=nearest_name(split, names, cutoff=0.3),
            )
        self.parts = [row for row in rows if split in (None, row.split)]
        self._starts = np.concatenate([[0], np.cumsum([row.n_sequences for row in self.parts], dtype=np.int64)])
        self._lock = threading.Lock()
        self._open: OrderedDict[int, PartReader] = OrderedDict()
        self._tables: dict[str, npt.NDArray[Any]] = {}
        self._table_records: Mapping[str, FileRecord] | None = None
        self._decoder: Decoder | None = None
        self._tokenizer: PreTrainedTokenizerFast | None = None
        _caches.add(self)
        if provider is not None:
            provider.join(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reopen in another process: mapped files cannot be pickled."""
        return (self._reopen, (self.url, self.split_name, self._options))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        name = f"{self.url} ({self.split_name})" if self.split_name else self.url
        return f"<kdpipe cache {name}: {len(self):,} sequences, {self.n_positions:,} positions>"

    def _repr_html_(self) -> str:
        teacher = self.manifest.teacher
        facts = {
            "cache": self.url,
            "cache_id": self.cache_id,
            "teacher": teacher.name if teacher else None,
            "targets": self.manifest.targets.keep.kind,
            "splits": [self.split_name] if self.split_name else self.split_names,
            "parts": len(self.parts),
            "sequences": len(self),
            "positions": self.n_positions,
        }
        return display.html_table("Cache", facts)

    def __getitem__(self, i: int) -> Rows:
        return self.rows(i)

    def __iter__(self) -> Iterator[Rows]:
        return (self[i] for i in range(len(self)))

    @property
    def split_names(self) -> list[SplitName]:
        """The splits of the whole cache."""
        return [planned.name for planned in self.manifest.plan.splits]

    def split(self, name: SplitName | None) -> "Cache":
        """One split of this cache, or with None all of them; nothing is read again."""
        return Cache(self.store, name, self._options, self._reopen, self._provider, self._contents)

    @property
    def retry_policy(self) -> RetryPolicy | None:
        """The retry policy of its store; None for the default."""
        return self._options.retry_policy

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The stored tokenizer, loaded by transformers on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer_files(self.url, self.tokenizer_files())
        return self._tokenizer

    def tokenizer_content(self) -> tuple[dict[str, bytes], TokenizerContent | None]:
        """The stored tokenizer's files and their content, which takes seconds to compute for a large tokenizer."""
        return read_tokenizer(self.store, self.manifest)

    def tokenizer_files(self) -> dict[str, bytes]:
        """The stored tokenizer's files, checked; empty where the cache stores none."""
        return self.tokenizer_content()[0]

    def decode(self, tokens: Ints) -> str:
        """The text of token ids, special tokens included."""
        return str(self.tokenizer.decode(tokens.tolist()))

    @property
    def n_positions(self) -> int:
        """Rows with loss_mask true."""
        return sum(row.n_positions for row in self.parts)

    @property
    def sequences_by_part(self) -> list[int]:
        """How many sequences each part has, in order."""
        return [row.n_sequences for row in self.parts]

    def scan(self, max_rows: int = 1 << 14) -> Iterator[Rows]:
        """All sequences in stored order, in blocks of about max_rows rows."""
        for place in range(len(self.parts)):
            part = self._read(place, _identity)
            starts = part.sequences.row_starts
            first = 0
            while first < len(part.sequences):
                end = max(first + 1, int(np.searchsorted(starts, starts[first] + max_rows, side="right")) - 1)
                yield self._read(place, partial(_rows, first=first, end=end, hidden=True))
                first = end

    def locate(self, i: int) -> tuple[PartReader, int]:
        """The part that holds a sequence, and the sequence's number in it."""
        place, number = self._located(i)
        return self._read(place, _identity), number

    def _located(self, i: int) -> tuple[int, int]:
        """The index of a sequence's part in `parts`, and the sequence's number in it."""
        index = operator.index(i)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no sequence {index}: {self!r}")
        index %= len(self)
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return place, index - int(self._starts[place])

    def rows(self, i: int, *, hidden: bool = True) -> Rows:
        """Like `self[i]`; without `hidden` the hidden states of rows are not decoded."""
        place, number = self._located(i)
        rows = self._read(place, partial(_rows, first=number, end=number + 1, hidden=hidden))
        return replace(rows, decode=self.decode)

    def tokens(self, i: int) -> TokenRows:
        """A sequence without its targets, which are not decoded."""
        place, number = self._located(i)
        return self._read(place, lambda part: part.tokens(number))

    def lengths(self) -> npt.NDArray[np.int64]:
        """How many rows each sequence has, in stored order."""
        lengths = [np.diff(self._read(place, _identity).sequences.row_starts) for place in range(len(self.parts))]
        return np.concatenate([np.zeros(0, np.int64), *lengths])

    def token_bytes(self, i: int) -> npt.NDArray[np.int32]:
        """The byte length of each token of a sequence."""
        place, number = self._located(i)
        return self._read(place, lambda part: part.token_bytes(number))

    def columns(self, i: int) -> dict[str, list[Any]]:
        """The source columns of a sequence's documents."""
        place, number = self._located(i)
        names = [column.name for column in self.manifest.data.columns]
        return self._read(
            place, lambda part: {name: part.sequences.column(name, *part.documents(number)) for name in names}
        )

    def digests(self, i: int) -> list[bytes]:
        """The digests of a sequence's documents."""
        place, number = self._located(i)
        return self._read(
            place, lambda part: [bytes(digest) for digest in part.sequences.digests()[slice(*part.documents(number))]]
        )

    def pooled(self, i: int) -> dict[int, Floats]:
        """The pooled states of a sequence's documents, by layer."""
        place, number = self._located(i)
        return self._read(place, lambda part: part.sequences.pooled(*part.documents(number)))

    def texts(self, i: int) -> list[str]:
        """The texts of a sequence's documents."""
        if not self.manifest.data.text:
            raise ConfigError(f"{self.url} stores no text", hint="create the cache with --for-other-tokenizers")
        place, number = self._located(i)
        return self._read(place, lambda part: part.texts(number))

    def to_pandas(
        self, columns: Sequence[str] | None = None, *, split: SplitName | None = None, limit: int | None = 1000
    ) -> Any:
        """The first `limit` rows as a pandas DataFrame: tokens with their text, and the teacher's predictions.

        `columns` are by default all that the cache stores, except hidden states.
        """
        cache = self.split(split) if split is not None else self
        return rows_frame(cache, columns, limit, cache.decode if self.manifest.tokenizer.files else None)

    def dense(self, i: int) -> Floats:
        """The target over the whole vocabulary, float32 [T, V] log-probabilities: the slow twin of `c[i]`."""
        return dense_rows(self[i], self.manifest, self.table)

    def table(self, name: str) -> npt.NDArray[Any]:
        """A table shared by all parts, checked against the digest in their records."""
        if not self.parts:
            raise CacheIncomplete(f"{self.url} has no parts yet, so its tables cannot be checked")
        return self._repaired(self.parts[0].part, lambda: self._locked_table(name))

    def _locked_table(self, name: str) -> npt.NDArray[Any]:
        with self._lock:
            return self._load_table(name)

    def _load_table(self, name: str) -> npt.NDArray[Any]:
        if name not in self._tables:
            if self._table_records is None:
                record, _ = read_part_record(self.store, self.manifest, self.parts[0].part, self.parts[0])
                self._table_records = record.tables
            self._tables[name] = read_table(self.store, self.manifest.table(name), self._table_records)
        return self._tables[name]

    def expect(self, sequences: Iterable[int]) -> None:
        """Announce the sequences that will be read next, so that a mirror can download their parts ahead."""
        if self._provider is not None:
            places = np.searchsorted(self._starts, np.fromiter(sequences, np.int64), side="right") - 1
            self._provider.expect([self.parts[place].part for place in dict.fromkeys(places.tolist())])

    def close_parts(self) -> None:
        """Close all open parts; one that is being read stays open until that is done."""
        with self._lock:
            self._open.clear()

    def part(self, number: int) -> PartReader:
        """The part with this number in the plan."""
        for place, row in enumerate(self.parts):
            if row.part == number:
                return self._read(place, _identity)
        raise CacheIncomplete(f"{self.url} has no part {number}")

    def _read(self, place: int, read: Callable[[PartReader], Result]) -> Result:
        return self._repaired(self.parts[place].part, lambda: read(self._part(place)))

    def _repaired(self, number: int, read: Callable[[], Result]) -> Result:
        """Read a part; if its mirror is damaged, repair it and read once more."""
        try:
            return read()
        except CacheDamaged:
            if self._provider is None:
                raise
        with self._lock:
            self._open.pop(number, None)
        try:
            self._provider.repair(number)
            return read()
        except CacheDamaged as error:
            raise self._provider.located(number, error) from error

    def _part(self, place: int) -> PartReader:
        row = self.parts[place]
        with self._lock:
            part = self._open.get(row.part)
            if part is not None:
                self._open.move_to_end(row.part)
                return part
        # A download may take long: readers of other parts do not wait for it.
        lease = None if self._provider is None else self._provider.hold(row.part)
        try:
            with self._lock:
                part = self._open.get(row.part) or self._opened(row)
                self._open.move_to_end(row.part)
                while len(self._open) > self._options.max_open_parts:
                    self._open.popitem(last=False)
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        if lease is not None:
            weakref.finalize(part, lease.release)
        return part

    def _opened(self, row: IndexRow) -> PartReader:
        if self._decoder is None:
            self._decoder = Decoder(self.manifest, self._load_table("ids_by_rank"))
        part = PartReader(self.store, self.manifest, self._decoder, row.part, row)
        if part.record.tables != self._table_records:
            raise CacheDamaged(f"{layout.part_dir(row.part)}/{layout.PART_RECORD}: tables differ from the first part's")
        self._open[row.part] = part
        return part


def _read_contents(store: Store, allow_partial: bool) -> CacheContents:
    manifest = load_manifest(store)
    return CacheContents(manifest, *load_index(store, manifest, allow_partial))


def _identity(part: PartReader) -> PartReader:
    return part


def _rows(part: PartReader, *, first: int, end: int, hidden: bool) -> Rows:
    return part.rows(first, end, hidden=hidden)


def _renew_locks() -> None:
    """In the child of a fork no thread is left that could release a lock; the guarded data is valid at every step."""
    for cache in list(_caches):
        cache._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
