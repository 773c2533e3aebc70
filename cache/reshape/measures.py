"""Measures of documents: a mean over the trained positions of each.

In: a part and the name of a measure. Out: a mean for every document, NaN where no position has a value. docs/reshape.md
has the definitions.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.quantizers import value_table
from kdpipe.cache.format.ragged import row_starts
from kdpipe.cache.format.rows import Rows
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.reshape.sources import StoredDocuments
from kdpipe.schemas.arrays import LinearQuantizer
from kdpipe.schemas.choices import DocumentMeasure
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest

Doubles = npt.NDArray[np.float64]
BLOCK_ROWS = 1 << 14
# What a cache must store for a measure: a column, or ids.
NEEDS: Mapping[DocumentMeasure, str] = {
    "teacher-entropy": "entropy",
    "likelihood": "label_logprob",
    "confident-wrong": "n_exact",
}


def check_measure(by: DocumentMeasure, manifest: Manifest) -> None:
    """Refuse a measure that the cache cannot give."""
    need = NEEDS[by]
    if need not in {column.name for column in manifest.arrays.row.columns}:
        what = (
            f"targets of kind {manifest.targets.keep.kind} store no ids"
            if need == "n_exact"
            else f"it stores no {need}"
        )
        raise ConfigError(f"--by {by} is not available: {what}", hint="use another measure")


def measured(by: DocumentMeasure, part: PartReader, manifest: Manifest) -> Doubles:
    """The mean over the trained positions of every document of a part."""
    make: Mapping[DocumentMeasure, Callable[[PartReader, Manifest], Doubles]] = {
        "teacher-entropy": _entropy,
        "likelihood": _likelihood,
        "confident-wrong": _confident_wrong,
    }
    values = make[by](part, manifest)
    documents = StoredDocuments.of(part)
    of_row = np.repeat(documents.numbers, documents.lengths)
    counts = part.codes("row", 0, len(values), "loss_mask").astype(bool) & ~np.isnan(values)
    n = part.record.n_documents
    totals = np.bincount(of_row[counts], values[counts], minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Doubles = totals / np.bincount(of_row[counts], minlength=n)
    return means


def _entropy(part: PartReader, manifest: Manifest) -> Doubles:
    return _column(part, manifest, "entropy")


def _likelihood(part: PartReader, manifest: Manifest) -> Doubles:
    if not manifest.targets.has_entries:
        return _column(part, manifest, "label_logprob")
    return _by_blocks(part, _labels)


def _labels(rows: Rows) -> Doubles:
    assert rows.label_logprob is not None
    return rows.label_logprob.astype(np.float64)


def _column(part: PartReader, manifest: Manifest, name: str) -> Doubles:
    quantizer = next(column.quantizer for column in manifest.arrays.row.columns if column.name == name)
    assert isinstance(quantizer, LinearQuantizer)
    codes = part.codes("row", 0, part.record.n_rows, name)
    return value_table(quantizer).take(codes, mode="clip").astype(np.float64)


def _confident_wrong(part: PartReader, _manifest: Manifest) -> Doubles:
    """The probability of the most probable id where it is not the next token, 0 where it is."""
    return _by_blocks(part, _wrong_tops)


def _wrong_tops(rows: Rows) -> Doubles:
    values = np.zeros(len(rows))
    has = np.flatnonzero(rows.n_exact > 0)
    tops = row_starts(rows.count.astype(np.int64))[has]
    is_wrong = np.append(rows.tokens[1:], -1)[has] != rows.ids[tops]
    values[has] = np.where(is_wrong, np.exp(rows.logprobs[tops].astype(np.float64)), 0.0)
    return values


def _by_blocks(part: PartReader, measure: Callable[[Rows], Doubles]) -> Doubles:
    """A number for every row of a part, decoded in blocks of sequences."""
    measures, first = [np.zeros(0)], 0
    starts = part.sequences.row_starts
    while first < len(part.sequences):
        end = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK_ROWS, side="right")) - 1)
        measures.append(measure(part.rows(first, end, hidden=False)))
        first = end
    return np.concatenate(measures)
