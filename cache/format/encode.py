"""From targets in memory to codes: the order of entries, the quantizers, the differences.

In: a `Sequence` and its `Block`, after the checks of `input_checks.py`. Out: the codes of every column and every stream
of entries. Its inverse is `decode.py`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.input_checks import check_block, check_sequence
from kdpipe.cache.format.quantizers import Codes, quantize_vectors, to_codes
from kdpipe.cache.format.ragged import Bools, Longs, Ragged, differences, next_tokens
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.schemas.arrays import MISSING, LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import State


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedRows:
    """The codes of rows: `columns` [rows, columns], and the streams of entries."""

    columns: Codes
    ids: Codes
    times: Codes
    logprobs: Codes
    vectors: dict[str, npt.NDArray[np.uint8]]


def encode(sequence: Sequence, block: Block, manifest: Manifest, rank_of_id: Codes) -> CodedRows:
    """Check and encode a sequence and its targets."""
    check_sequence(sequence, manifest)
    ragged = check_block(sequence, block, manifest)
    order = _order_ids(block, ragged, rank_of_id, manifest.vocabulary_size)
    empty = np.zeros(0, np.uint32)
    return CodedRows(
        columns=_columns(sequence, block, ragged, manifest, rank_of_id),
        ids=order.ids,
        times=empty if block.times is None else _reordered(block.times.astype(np.uint32), order.draws) - np.uint32(1),
        logprobs=_value_codes(block, ragged, order, manifest),
        vectors=_vectors(block, manifest),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """Ids in stored order, and the source of each exact id and draw (None: same order)."""

    ids: Codes
    exact: Longs | None
    draws: Longs | None


def _order_ids(block: Block, ragged: Ragged, rank_of_id: Codes, vocabulary_size: int) -> _Order:
    """Put exact ids in descending log p (ties by id) and draws in ascending rank."""
    ranks = rank_of_id[block.ids]
    rows = np.repeat(np.arange(len(ragged.counts)) * vocabulary_size, ragged.counts)
    keys = rows + ranks
    _refuse_duplicates(keys, vocabulary_size)
    is_draw, is_exact = ragged.is_draw, ~ragged.is_draw
    exact = _exact_order(block, is_exact, rows)
    draw_keys, draws = keys[is_draw], None
    if (draw_keys[1:] < draw_keys[:-1]).any():
        if block.times is None and np.isnan(block.logprobs[is_draw]).all():
            draw_keys = np.sort(draw_keys)
        else:
            draws = np.argsort(draw_keys)
            draw_keys = draw_keys[draws]
    if exact is not None:
        ranks[is_exact] = ranks[is_exact][exact]
    ranks[is_draw] = differences((draw_keys - rows[is_draw]).astype(np.uint32), ragged.n_draws)
    return _Order(ids=ranks, exact=exact, draws=draws)


def _refuse_duplicates(keys: Longs, vocabulary_size: int) -> None:
    ordered = np.sort(keys)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        row = int(ordered[1:][twice][0] // vocabulary_size)
        raise CacheWriteError(f"duplicate id in the targets of row {row}")


def _exact_order(block: Block, is_exact: Bools, rows: Longs) -> Longs | None:
    """The order of exact ids, None if they are sorted already."""
    rows, ids = rows[is_exact], np.asarray(block.ids)[is_exact]
    rising = -np.asarray(block.logprobs, np.float32)[is_exact]
    right = (rising[1:] > rising[:-1]) | ((rising[1:] == rising[:-1]) & (ids[1:] > ids[:-1])) | (rows[1:] != rows[:-1])
    return None if right.all() else np.lexsort((ids, rising, rows))


def _value_codes(block: Block, ragged: Ragged, order: _Order, manifest: Manifest) -> Codes:
    """Codes of log p: the exact ids of a row as differences, then its draws plain, if they have values."""
    if manifest.arrays.logprob is None:
        return np.zeros(0, np.uint32)
    values, is_exact = np.asarray(block.logprobs, np.float32), ~ragged.is_draw
    quantizer = manifest.arrays.logprob.quantizer
    exact = differences(to_codes(quantizer, _reordered(values[is_exact], order.exact), "logprobs"), ragged.n_exact)
    if not manifest.targets.draw_values:
        return exact
    codes = np.empty(len(values), np.uint32)
    codes[is_exact] = exact
    codes[ragged.is_draw] = to_codes(quantizer, _reordered(values[ragged.is_draw], order.draws), "logprobs of draws")
    return codes


def _reordered(values: npt.NDArray[Any], order: Longs | None) -> npt.NDArray[Any]:
    return values if order is None else values[order]


def _columns(sequence: Sequence, block: Block, ragged: Ragged, manifest: Manifest, rank_of_id: Codes) -> Codes:
    columns = manifest.arrays.row.columns
    codes = np.empty((len(sequence.tokens), len(columns)), np.uint32)
    # The label_logprob of a row is not stored if the next token is an exact id.
    known, _ = next_tokens(sequence.tokens, block.ids, ragged.n_exact, ragged.n_draws)
    for number, column in enumerate(columns):
        if isinstance(column.quantizer, LinearQuantizer | LogOddsQuantizer):
            name, _, temperature = column.name.partition("@")
            values = block.log_z[float(temperature)] if temperature else getattr(block, name)
            codes[:, number] = to_codes(
                column.quantizer, np.where(sequence.loss_mask, values, np.float32(np.nan)), column.name
            )
            if column.name == "label_logprob":
                codes[known, number] = MISSING
        elif column.name == "token":
            codes[:, number] = rank_of_id[sequence.tokens]
        else:
            source = block if column.name in ("n_exact", "n_draws") else sequence
            codes[:, number] = getattr(source, column.name)
    return codes


def _vectors(block: Block, manifest: Manifest) -> dict[str, npt.NDArray[np.uint8]]:
    vectors = {}
    if manifest.hidden.rows:
        coded = [quantize_vectors(np.asarray(block.hidden[v.layer], np.float32), v.group) for v in manifest.hidden.rows]
        vectors["hidden"] = np.concatenate(coded, axis=1)
    keep = manifest.targets.keep
    if isinstance(keep, State) and block.state is not None:
        vectors["state"] = quantize_vectors(np.asarray(block.state, np.float32), keep.group)
    return vectors
