"""The corpus: indexed documents in two splits, and any range of them as segments for the teacher.

In: files of rows and their index. Out: `Corpus`.
"""

from collections import abc
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from glob import has_magic
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.reshape.digests import KnownDocuments
from kdpipe.pipeline.documents.columns import ColumnMapping, Document
from kdpipe.pipeline.documents.corpus_index import ADDED_TOKENS, Index
from kdpipe.pipeline.documents.document_duplicates import MAX_TOKENIZED_BYTES, n_repeated
from kdpipe.pipeline.documents.part_plan import make_plan
from kdpipe.pipeline.documents.render import Renderer
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.documents.tokenize import DocumentCounts, DocumentTokens, cut, marked, tokenize
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.cache_plan import MAX_PART_ROWS, CachePlan, PlannedPart
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.choices import SplitName, TrainOn
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import ConfigError, KdpipeError, Untrainable
from kdpipe.schemas.manifest import SourceColumn

# Rows used to detect column roles, and documents used to estimate tokens per byte.
DETECTION_ROWS = 100
SAMPLE = 64
# Documents tokenized together.
BATCH, BATCH_BYTES = 32, 1 << 18
SKIP_HINT = "or skip such documents with --set data.untrainable=skip (an interrupted run can resume with it)"
SPLITS: tuple[SplitName, ...] = ("train", "validation")
MAX_SOURCE = 2000


class Corpus:
    """Documents in two splits; `mappings` has one per file, `counts` covers the documents tokenized so far."""

    def __init__(
        self,
        files: Sequence[RowFile],
        index: Index,
        mappings: Sequence[ColumnMapping],
        renderer: Renderer,
        settings: DataSettings,
        tokenizer: LoadedTokenizer,
    ) -> None:
        self._files, self._index, self._renderer = files, index, renderer
        self._settings, self._tokenizer = settings, tokenizer
        self._documents = {split: index.documents(split) for split in SPLITS}
        self._tokens_per_byte: float | None = None
        self._before: abc.Mapping[SplitName, int] = {}
        self._known = KnownDocuments()
        self.mappings = mappings
        self.counts = DocumentCounts()

    def continuing(self, before: abc.Mapping[SplitName, int], known: KnownDocuments) -> "Corpus":
        """The same documents with numbers from `before` of each split on; known documents have no segments."""
        corpus = copy(self)
        corpus._before, corpus._known, corpus.counts = before, known, DocumentCounts()
        return corpus

    @property
    def splits(self) -> dict[SplitName, int]:
        """The number of documents per split."""
        return {split: len(numbers) for split, numbers in self._documents.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of the documents and everything else that their tokens depend on, except the tokenizer."""
        return self._index.fingerprint

    @property
    def columns(self) -> tuple[SourceColumn, ...]:
        return self._index.columns

    @property
    def source(self) -> str:
        """The names of the data, without local folders."""
        names = " + ".join(map(_name_of, filter(None, (self._settings.path, self._settings.val_path))))
        if not self.n_cut_rows:
            return names[:MAX_SOURCE]
        cut = f" ({counted(self.n_cut_rows, 'document')} in {counted(self._index.n_ranges, 'range')})"
        return names[: MAX_SOURCE - len(cut)] + cut

    @property
    def is_text(self) -> bool:
        """Whether all documents are plain texts."""
        return all(mapping.form == "text" for mapping in self.mappings)

    @property
    def n_cut_rows(self) -> int:
        """The number of long texts that are cut into ranges to hold out parts of them."""
        return self._index.n_cut_rows

    @property
    def n_rows(self) -> int:
        """The number of documents before long ones are cut into ranges."""
        return len(self._index.sizes) - self._index.n_ranges + self._index.n_cut_rows

    @property
    def n_bytes(self) -> int:
        """An upper bound of the bytes of all rendered documents."""
        return int(self._index.sizes.sum(dtype=np.int64))

    @property
    def train_on(self) -> TrainOn:
        return self._renderer.train_on

    @property
    def bad_rows(self) -> tuple[int, tuple[str, ...]]:
        """The number of unusable rows, and the first of them with their problems."""
        return self._index.n_bad_rows, self._index.bad_rows

    def place(self, split: SplitName, document: int) -> str:
        """The place of a document in the data, e.g. corpus.jsonl:17."""
        i = self._documents[split][document]
        return f"{self._files[self._index.files[i]].name}:{self._index.numbers[i]}"

    def segments(self, split: SplitName, first: int, n: int, sequence_length: int) -> Iterator[Segment]:
        """The segments of documents [first, first + n) of a split, in order, without known ones."""
        rows, before = 0, self._before.get(split, 0)
        numbers = np.arange(first, first + n) - before
        for document, columns, tokens in self._tokenized(split, numbers, self.counts):
            how = self._settings.long_documents
            if how == "refuse":
                self._check_length(split, document, tokens, sequence_length)
            known = {"split": split, "document": before + document, "columns": columns}
            for segment in self._unknown(cut(tokens, sequence_length, how, self.counts, **known)):
                rows += len(segment)
                if rows > MAX_PART_ROWS:
                    raise KdpipeError(
                        f"documents {first:,} to {first + n:,} of {split} have more than {MAX_PART_ROWS:,} tokens",
                        hint="the tokenizer produces more tokens than bytes: lower data.max_document_bytes",
                    )
                yield segment

    def _unknown(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """The segments of a document that are not known; known ones are counted."""
        n_known = n_new = 0
        for segment in segments:
            if self._known.has(segment.digest):
                n_known += 1
            else:
                n_new += 1
                yield segment
        self.counts.known_documents += n_known > 0 and not n_new
        self.counts.known_segments += n_known if n_new else 0

    def check_lengths(self, sequence_length: int) -> None:
        """If long documents are refused, find the first one before anything is written."""
        if self._settings.long_documents != "refuse":
            return
        for split in SPLITS:
            sizes = self._index.sizes[self._documents[split]].astype(np.int64)
            for document, _, tokens in self._tokenized(split, np.flatnonzero(sizes + ADDED_TOKENS > sequence_length)):
                self._check_length(split, document, tokens, sequence_length)

    def _check_length(self, split: SplitName, document: int, tokens: DocumentTokens, sequence_length: int) -> None:
        if len(tokens.ids) > sequence_length:
            raise ConfigError(
                f"{self.place(split, document)} has {len(tokens.ids):,} tokens, --seq-len allows {sequence_length:,}",
                hint="raise --seq-len, or --set data.long_documents=split (or truncate)",
            )

    def sample_segments(
        self, split: SplitName, most: int, sequence_length: int, counts: DocumentCounts | None = None
    ) -> Iterator[Segment]:
        """Segments of up to `most` evenly spaced documents, counted in `counts` only."""
        counts = counts or DocumentCounts()
        for document, columns, tokens in self._tokenized(split, self._spread(split, most)):
            known = {"split": split, "document": document, "columns": columns}
            yield from cut(tokens, sequence_length, self._settings.long_documents, counts, **known)

    def expected_tokens(
        self, split: SplitName, sequence_length: int, documents: slice = slice(None)
    ) -> npt.NDArray[np.float64]:
        """The estimated tokens of each document of a split, or of some of them."""
        tokens = self._index.sizes[self._documents[split][documents]] * self.tokens_per_byte()
        used: npt.NDArray[np.float64] = np.minimum(tokens, self._most_tokens(sequence_length) or np.inf)
        return used

    def _most_tokens(self, sequence_length: int) -> int | None:
        return sequence_length if self._settings.long_documents == "truncate" else None

    def expected_rows(self, part: PlannedPart, sequence_length: int) -> float:
        """The estimated tokens of a part."""
        first = part.first_document - self._before.get(part.split, 0)
        of_part = slice(first, first + part.n_documents)
        return float(self.expected_tokens(part.split, sequence_length, of_part).sum())

    def first_documents(self, split: SplitName, n_tokens: int, sequence_length: int) -> int:
        """The number of first documents with about `n_tokens` tokens, at least one."""
        filled = np.cumsum(self.expected_tokens(split, sequence_length))
        return min(int(np.searchsorted(filled, n_tokens)) + 1, len(filled))

    def plan(
        self, length: int, packed: bool = True, tokens_per_byte: float | None = None, part_rows: int | None = None
    ) -> CachePlan:
        """Plan the parts; deterministic in documents, tokenizer and settings."""
        sizes = {split: self._index.sizes[self._documents[split]] for split in SPLITS}
        density = tokens_per_byte or self.tokens_per_byte()
        counts = self._index.duplicates or self._duplicates(length)
        return make_plan(sizes, density, length, packed, part_rows, self._most_tokens(length), counts)

    def _duplicates(self, length: int) -> dict[SplitName, int] | None:
        """Documents per split with the tokens of an earlier one; None if that requires too much tokenizing."""
        if self.n_bytes > MAX_TOKENIZED_BYTES:
            return None
        whole = copy(self)
        whole._settings = self._settings.model_copy(update={"untrainable": "skip"})
        return {split: n_repeated(whole.sample_segments(split, n, length)) for split, n in self.splits.items()}

    def tokens_per_byte(self) -> float:
        """Tokens per byte, from evenly spaced documents."""
        if self._tokens_per_byte is None:
            n_tokens = n_bytes = 0
            for split in SPLITS:
                for number, _, tokens in self._tokenized(split, self._spread(split, SAMPLE)):
                    n_bytes += int(self._index.sizes[self._documents[split][number]])
                    n_tokens += len(tokens.ids)
            self._tokens_per_byte = n_tokens / max(n_bytes, 1)
        return self._tokens_per_byte

    def token_counts(self, vocabulary_size: int, limit_tokens: int = 2_000_000) -> npt.NDArray[np.int64]:
        """The frequency of each id in evenly spaced training documents."""
        counts = np.zeros(vocabulary_size, np.int64)
        sizes = self._index.sizes[self._documents["train"]]
        expected = float(sizes.sum()) * self.tokens_per_byte()
        most = max(1, int(len(sizes) * min(1.0, limit_tokens / max(expected, 1.0))))
        for _, _, tokens in self._tokenized("train", self._spread("train", most)):
            counts += np.bincount(tokens.ids, minlength=vocabulary_size)
        return counts

    def sample(self, document: int = 0, most: int = 300) -> tuple[str, list[tuple[str, bool]]]:
        """The first trainable document from `document` on: its place, and runs of trained and untrained text, the long
        ones shortened."""
        n = min(DETECTION_ROWS, len(self._documents["train"]) - document)
        numbers = (np.array([number]) for number in range(document, document + n))
        first = next((item for number in numbers for item in self._tokenized("train", number)), None)
        if first is None:
            raise ConfigError(
                f"none of the first {n:,} documents of {self.source} is trainable",
                hint="use data.untrainable=refuse to see the reason",
            )
        number, _, tokens = first
        runs = [(_shortened(text, most), trained) for text, trained in marked(tokens, self._tokenizer)]
        return self.place("train", number), runs

    def _spread(self, split: SplitName, most: int) -> npt.NDArray[np.int64]:
        """Up to `most` evenly spaced documents of a split."""
        n = len(self._documents[split])
        return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64))

    def _tokenized(
        self, split: SplitName, documents: npt.NDArray[np.int64], counts: DocumentCounts | None = None
    ) -> Iterator[tuple[int, dict[str, Any], DocumentTokens]]:
        """Tokenize some documents of a split, in ascending order; skipped ones are counted."""
        for batch in self._batches(split, documents):
            for number, document, tokens in self._tokens_of(split, batch, counts or DocumentCounts()):
                yield number, self._columns(document), tokens

    def _tokens_of(
        self, split: SplitName, batch: list[tuple[int, Document]], counts: DocumentCounts
    ) -> list[tuple[int, Document, DocumentTokens]]:
        """Documents with their tokens, as a batch, or one by one if the batch has an untrainable one."""
        places = [self.place(split, number) for number, _ in batch]
        try:
            rendered = [
                self._renderer.render(document, place) for (_, document), place in zip(batch, places, strict=True)
            ]
            tokens = tokenize(rendered, places, self._tokenizer)
        except Untrainable as error:
            if self._settings.untrainable == "refuse":
                raise Untrainable(error.message, hint=f"{error.hint}; {SKIP_HINT}") from None
            if len(batch) == 1:
                counts.skip(error.message)
                return []
            return [item for single in batch for item in self._tokens_of(split, [single], counts)]
        return [(number, document, ids) for (number, document), ids in zip(batch, tokens, strict=True)]

    def _batches(self, split: SplitName, documents: npt.NDArray[np.int64]) -> Iterator[list[tuple[int, Document]]]:
        """Group documents into small batches for the tokenizer."""
        batch: list[tuple[int, Document]] = []
        n_bytes = 0
        for number, document in self._read(split, documents):
            batch.append((number, document))
            n_bytes += document.n_bytes
            if len(batch) == BATCH or n_bytes > BATCH_BYTES:
                yield batch
                batch, n_bytes = [], 0
        if batch:
            yield batch

    def _read(self, split: SplitName, documents: npt.NDArray[np.int64]) -> Iterator[tuple[int, Document]]:
        index = self._index
        numbered = [(int(number), int(self._documents[split][number])) for number in documents]
        for file, group in groupby(numbered, key=lambda pair: int(index.files[pair[1]])):
            members = list(group)
            positions = list(dict.fromkeys(int(index.positions[i]) for _, i in members))
            by_row = groupby(members, key=lambda pair: int(index.positions[pair[1]]))
            for (_, of_row), row in zip(by_row, self._files[file].columns_at(positions), strict=True):
                whole = self.mappings[file].document(row)
                yield from ((number, index.of_row(i, whole)) for number, i in of_row)

    def _columns(self, document: Document) -> dict[str, Any]:
        """The kept columns, with integers in float columns converted."""
        values = document.columns
        return {
            column.name: float(value) if column.type == "float64" and value is not None else value
            for column in self.columns
            for value in [values.get(column.name)]
        }


def _name_of(data: str) -> str:
    """The last component of a path or glob; a Hub data set unchanged."""
    path = Path(data).expanduser()
    if path.exists():
        return path.resolve().name
    return path.name if has_magic(data) else data


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
