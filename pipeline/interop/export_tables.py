"""The columns and rows of each export format, and what a format cannot represent.

In: rows of a cache and its manifest. Out: table rows of numpy arrays. `parquet` has one sequence per row and can be
imported with `kdpipe cache import --from topk`; `axolotl` has one document per row, list t predicts token t + 1, and
the last list is empty.
"""

from collections.abc import Iterator
from typing import Any, assert_never

import numpy as np

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.cache.format.rows import Rows
from kdpipe.pipeline.interop.axolotl import IDS, IGNORED_LABEL, VALUES
from kdpipe.schemas.choices import ExportFormat
from kdpipe.schemas.manifest import Manifest

Row = dict[str, Any]
Types = dict[str, tuple[str, int]]
SCALARS = ("log_tail", "entropy", "label_logprob", "boundary_logprob")
AXOLOTL: Types = {
    "input_ids": ("int32", 1),
    "attention_mask": ("int8", 1),
    "labels": ("int32", 1),
    IDS: ("int32", 2),
    VALUES: ("float32", 2),
    "target_mask": ("int8", 2),
}


def column_types(form: ExportFormat, manifest: Manifest) -> Types:
    """The columns of a format: numpy dtype and nesting depth of the lists."""
    match form:
        case "axolotl":
            return AXOLOTL
        case "parquet":
            return _parquet_types(manifest)
        case _:
            assert_never(form)


def _parquet_types(manifest: Manifest) -> Types:
    types: Types = {"tokens": ("int32", 1), "loss_mask": ("bool", 1), "document_starts": ("int32", 1)}
    if manifest.targets.has_entries:
        types |= {"ids": ("int32", 2), "logprobs": ("float32", 2), "weights": ("float32", 2)}
    if manifest.targets.has_draws:
        types |= {"n_exact": ("int32", 1)}
    return types | dict.fromkeys(_scalars(manifest), ("float32", 1))


def _scalars(manifest: Manifest) -> list[str]:
    """The scalar columns by their names in tables, where `log_z@2.0` is `log_z_2.0`."""
    names = [column.name for column in manifest.arrays.row.columns]
    return [name for name in SCALARS if name in names] + [f"log_z_{t!r}" for t in manifest.targets.temperatures]


def table_rows(form: ExportFormat, rows: Rows, manifest: Manifest) -> Iterator[Row]:
    """The table rows of one sequence."""
    match form:
        case "axolotl":
            return _documents(rows)
        case "parquet":
            return iter([_sequence(rows, manifest)])
        case _:
            assert_never(form)


def _sequence(rows: Rows, manifest: Manifest) -> Row:
    row: Row = {"tokens": rows.tokens, "loss_mask": rows.loss_mask, "document_starts": rows.document_starts}
    counts = rows.count.astype(np.int64)
    for name, values in (("ids", rows.ids), ("logprobs", rows.logprobs), ("weights", rows.weights)):
        row[name] = NumberLists(values, counts)
    row["n_exact"] = rows.n_exact
    for name in _scalars(manifest):
        row[name] = rows.log_z[float(name[6:])] if name.startswith("log_z_") else getattr(rows, name)
    return {name: row[name] for name in _parquet_types(manifest)}


def _documents(rows: Rows) -> Iterator[Row]:
    """One row per document, exact ids only; token t has a label if row t - 1 is trained on."""
    count, n_exact = rows.count.astype(np.int64), rows.n_exact.astype(np.int64)
    is_exact = np.arange(len(rows.ids)) - np.repeat(np.cumsum(count) - count, count) < np.repeat(n_exact, count)
    ids, values = rows.ids[is_exact], rows.logprobs[is_exact]
    places = np.concatenate([[0], np.cumsum(n_exact)])
    ends = np.append(rows.document_starts[1:], len(rows))
    for start, end in zip(rows.document_starts.tolist(), ends.tolist(), strict=True):
        here, counts = slice(places[start], places[end]), n_exact[start:end]
        tokens = rows.tokens[start:end]
        trained = np.append(False, rows.loss_mask[start : end - 1])
        yield {
            "input_ids": tokens,
            "attention_mask": np.ones(len(tokens), np.int8),
            "labels": np.where(trained, tokens, IGNORED_LABEL),
            IDS: NumberLists(ids[here], counts),
            VALUES: NumberLists(values[here], counts),
            "target_mask": NumberLists(np.ones(int(counts.sum()), np.int8), counts),
        }


def left_out(form: ExportFormat, manifest: Manifest) -> tuple[str, ...]:
    """What the cache has and the format cannot represent."""
    targets, data = manifest.targets, manifest.data
    names = []
    if form == "axolotl":
        names += ["draws (samples of the tail)" if targets.has_draws else ""]
        names += ["tail mass" if targets.tail_known else ""]
        names += ["normalizers at other temperatures" if targets.temperatures else ""]
        names += ["entropy" if targets.entropy else "", "log p of next tokens that are not stored"]
    names += ["draw counts" if targets.keep.draws_repeat else ""]
    names += ["hidden states" if manifest.hidden.pooled or manifest.hidden.rows else ""]
    names += ["text" if data.text else "", "document columns" if data.columns else ""]
    return (*filter(None, names), "teacher, tokenizer and checksums")
