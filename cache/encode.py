"""From targets in memory to codes: the checks that refuse early, the order of entries, the differences.

In: a `Sequence` and its `Block`. Out: the codes of every column and every stream of entries of these rows.
Before it: `rows.py`, `laws.py`. After it: `part_writer.py` cuts the codes into chunks. Its inverse is `decode.py`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.laws import Codes, quantise_vectors, to_codes
from kdpipe.cache.rows import Block, Sequence
from kdpipe.schemas.arrays import LinearLaw, LogOddsLaw
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import State, Vector

# float32 teachers sum their exact probabilities to 1 within about V * 1e-7; bfloat16 logits stay within 1e-2.
MASS_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedRows:
    """The codes of some rows: `columns` [rows, columns], and the streams that the cache has."""

    columns: Codes
    ids: Codes
    times: Codes
    logprobs: Codes
    vectors: dict[str, npt.NDArray[np.uint8]]


def encode(sequence: Sequence, block: Block, manifest: Manifest, rank_of_id: Codes) -> CodedRows:
    """Check a sequence and its targets, and turn them into codes."""
    check_sequence(sequence, manifest)
    check_block(sequence, block, manifest)
    ids, order = _order_ids(block, rank_of_id)
    times = block.times
    if times is not None:
        is_draw = draw_mask(block.n_exact, block.n_draws)
        places = np.cumsum(is_draw) - 1
        times = np.asarray(times)[places[order][is_draw]]
    empty = np.zeros(0, np.uint32)
    return CodedRows(
        columns=_columns(sequence, block, manifest, rank_of_id),
        ids=ids,
        times=empty if times is None else times.astype(np.uint32) - 1,
        logprobs=_value_codes(block, order, manifest),
        vectors=_vectors(block, manifest),
    )


def draw_mask(n_exact: npt.NDArray[np.integer], n_draws: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Which of the flat entries are draws."""
    runs = np.empty(2 * len(n_exact), np.int64)
    runs[0::2], runs[1::2] = n_exact, n_draws
    kinds = np.zeros(len(runs), bool)
    kinds[1::2] = True
    return np.repeat(kinds, runs)


def row_starts(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Where each row begins in a flat array."""
    return np.cumsum(counts, dtype=np.int64) - counts


def differences(codes: Codes, counts: npt.NDArray[np.integer]) -> Codes:
    """Each code less the one before it in its row; the first of a row stays. Wraps around in 32 bits."""
    result = codes.copy()
    result[1:] -= codes[:-1]
    starts = row_starts(counts)[np.asarray(counts) > 0]
    result[starts] = codes[starts]
    return result


def _order_ids(block: Block, rank_of_id: Codes) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Put exact ids in descending log p (ties by id) and draws in ascending rank; the streamed codes and the order."""
    counts = np.asarray(block.n_exact) + block.n_draws
    ids, n = np.asarray(block.ids, np.int64), len(block.ids)
    is_draw = draw_mask(block.n_exact, block.n_draws)
    ranks = rank_of_id[ids]
    rows = np.repeat(np.arange(len(counts)), counts)
    falling = np.where(is_draw, 0.0, -np.asarray(block.logprobs, np.float64))
    tie = np.where(is_draw, ranks, ids)
    same_kind = (rows[1:] == rows[:-1]) & (is_draw[1:] == is_draw[:-1])
    sorted_already = (falling[1:] > falling[:-1]) | ((falling[1:] == falling[:-1]) & (tie[1:] > tie[:-1]))
    order = np.arange(n)
    if not (sorted_already | ~same_kind).all():
        order = np.lexsort((tie, falling, is_draw, rows))
    keys = np.sort(rows * (int(ranks.max(initial=0)) + 1) + ranks)
    if (keys[1:] == keys[:-1]).any():
        row = int(keys[1:][keys[1:] == keys[:-1]][0] // (int(ranks.max()) + 1))
        raise CacheWriteError(f"an id stands twice in the targets of row {row}")
    codes = ranks[order]
    codes[is_draw] = differences(codes[is_draw], np.asarray(block.n_draws))
    return codes, order


def _value_codes(block: Block, order: npt.NDArray[np.int64], manifest: Manifest) -> Codes:
    """Codes of log p: the exact ids of a row as differences, then its draws plain when they carry values."""
    if manifest.arrays.logprob is None:
        return np.zeros(0, np.uint32)
    is_draw = draw_mask(block.n_exact, block.n_draws)
    values = np.asarray(block.logprobs, np.float32)[order]
    law = manifest.arrays.logprob.law
    exact = to_codes(law, values[~is_draw], "logprobs")
    exact = differences(exact, np.asarray(block.n_exact))
    if not manifest.targets.draw_values:
        return exact
    codes = np.empty(len(values), np.uint32)
    codes[~is_draw] = exact
    codes[is_draw] = to_codes(law, values[is_draw], "logprobs of draws")
    return codes


def _columns(sequence: Sequence, block: Block, manifest: Manifest, rank_of_id: Codes) -> Codes:
    columns = manifest.arrays.row.columns
    codes = np.empty((len(sequence.tokens), len(columns)), np.uint32)
    for number, column in enumerate(columns):
        if isinstance(column.law, LinearLaw | LogOddsLaw):
            name, _, temperature = column.name.partition("@")
            values = block.log_z[float(temperature)] if temperature else getattr(block, name)
            codes[:, number] = to_codes(
                column.law, np.where(sequence.loss_mask, values, np.float32(np.nan)), column.name
            )
        elif column.name == "token":
            codes[:, number] = rank_of_id[sequence.tokens]
        else:
            source = block if column.name in ("n_exact", "n_draws") else sequence
            codes[:, number] = getattr(source, column.name)
    return codes


def _vectors(block: Block, manifest: Manifest) -> dict[str, npt.NDArray[np.uint8]]:
    found = {}
    if manifest.hidden.rows:
        coded = [
            _quantised(block.hidden[v.layer], v.width, v.group, f"hidden[{v.layer}]") for v in manifest.hidden.rows
        ]
        found["hidden"] = np.concatenate(coded, axis=1)
    keep = manifest.targets.keep
    if isinstance(keep, State) and block.state is not None:
        found["state"] = _quantised(block.state, keep.width, keep.group, "state")
    return found


def _quantised(vectors: npt.NDArray[np.float32], width: int, group: int, what: str) -> npt.NDArray[np.uint8]:
    if vectors.shape[1] != width or not np.isfinite(vectors).all():
        raise CacheWriteError(
            f"{what} must be finite rows of {width} numbers, these are {vectors.shape[1]} wide or not finite"
        )
    return quantise_vectors(np.asarray(vectors, np.float32), group)


def check_sequence(sequence: Sequence, manifest: Manifest) -> None:
    """Refuse a sequence that the format cannot say."""
    n, starts = len(sequence.tokens), np.asarray(sequence.document_starts, np.int64)
    if not 1 <= n <= manifest.plan.sequence_length or len(sequence.loss_mask) != n or len(sequence.token_bytes) != n:
        raise CacheWriteError(
            f"a sequence has {n} tokens, {len(sequence.loss_mask)} mask bits and {len(sequence.token_bytes)} lengths"
        )
    if np.min(sequence.tokens) < 0 or np.max(sequence.tokens) >= manifest.vocabulary_size:
        raise CacheWriteError(f"a token id lies outside the vocabulary of {manifest.vocabulary_size:,}")
    if len(starts) == 0 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise CacheWriteError("document_starts must ascend from 0 and lie inside their sequence")
    last_rows = np.append(starts[1:], n) - 1
    if np.asarray(sequence.loss_mask)[last_rows].any():
        raise CacheWriteError("loss_mask is true at the last row of a document, where no next token exists")
    if len(sequence.documents) != len(starts) or sequence.digests.shape != (len(starts), 16):
        raise CacheWriteError(
            f"{len(starts)} documents begin in a sequence, {len(sequence.documents)} have numbers "
            f"and {len(sequence.digests)} digests"
        )
    for column in manifest.data.columns:
        if len(sequence.columns.get(column.name, ())) != len(starts):
            raise CacheWriteError(f"the source column {column.name} needs one value a document")
    if (sequence.texts is not None) != manifest.data.text or len(sequence.texts or starts) != len(starts):
        raise CacheWriteError("texts must be given, one a document, exactly when the cache keeps text")
    _check_vectors(manifest.hidden.pooled, sequence.pooled, len(starts), "pooled")


def _check_vectors(vectors: tuple[Vector, ...], given: "object", n: int, what: str) -> None:
    for vector in vectors:
        rows = given.get(vector.layer) if hasattr(given, "get") else None
        if rows is None or rows.shape != (n, vector.width):
            raise CacheWriteError(f"{what} needs [{n}, {vector.width}] numbers for layer {vector.layer}")


def check_block(sequence: Sequence, block: Block, manifest: Manifest) -> None:
    """Refuse targets that break the rules of DESIGN 3, before they become bytes."""
    n, targets = len(sequence.tokens), manifest.targets
    counts = np.asarray(block.n_exact, np.int64) + block.n_draws
    mask = np.asarray(sequence.loss_mask)
    if counts.shape != (n,) or counts.sum() != len(block.ids) or len(block.logprobs) != len(block.ids):
        raise CacheWriteError(
            f"counts of {len(counts)} rows add up to {int(counts.sum())}, there are {len(block.ids)} ids for {n} tokens"
        )
    if counts[~mask].any():
        raise CacheWriteError("a row with loss_mask false has targets")
    if not targets.has_entries:
        if counts.any():
            raise CacheWriteError(f"targets of kind {targets.keep.kind} keep no ids")
    else:
        _check_entries(mask, block, manifest)
    _check_scalars(n, block, manifest)
    _check_vectors(manifest.hidden.rows, block.hidden, n, "hidden")
    if isinstance(targets.keep, State) and (block.state is None or block.state.shape != (n, targets.keep.width)):
        raise CacheWriteError(f"state needs [{n}, {targets.keep.width}] numbers")


def _check_entries(mask: npt.NDArray[np.bool_], block: Block, manifest: Manifest) -> None:
    targets, n_exact = manifest.targets, np.asarray(block.n_exact, np.int64)
    counts = n_exact + block.n_draws
    if (n_exact[mask] < 1).any() or (counts > targets.max_entries).any():
        raise CacheWriteError(
            f"a row keeps {int(counts.max())} ids: 1 to {targets.max_entries} are due, the most probable one exactly"
        )
    if len(block.ids) and (np.min(block.ids) < 0 or np.max(block.ids) >= manifest.vocabulary_size):
        raise CacheWriteError(f"a target id lies outside the vocabulary of {manifest.vocabulary_size:,}")
    if not targets.has_draws and np.any(block.n_draws):
        raise CacheWriteError(f"targets of kind {targets.keep.kind} have no draws")
    is_draw = draw_mask(n_exact, block.n_draws)
    exact = np.asarray(block.logprobs, np.float64)[~is_draw]
    if np.isnan(exact).any() or (exact > 1e-4).any():
        raise CacheWriteError("the log p of an exact id is NaN or above 0")
    if targets.keep.kind == "sampled" and (
        block.times is None or len(block.times) != is_draw.sum() or np.min(block.times, initial=1) < 1
    ):
        raise CacheWriteError("sampled targets need a number of times, at least 1, for every draw")
    if targets.draw_values and np.isnan(np.asarray(block.logprobs)[is_draw]).any():
        raise CacheWriteError("the log p of a draw is missing, and draw_values asks for it")
    if targets.tail_known:
        _check_mass(mask, block, exact)


def _check_mass(mask: npt.NDArray[np.bool_], block: Block, exact: npt.NDArray[np.float64]) -> None:
    """Exact probabilities and tail must sum to 1: whoever gets this wrong has shifted a row or lost a term."""
    if block.log_tail is None or len(block.log_tail) != len(mask):
        raise CacheWriteError("log_tail must be given, one a row")
    sums = np.zeros(len(mask))
    np.add.at(sums, np.repeat(np.arange(len(mask)), block.n_exact), np.exp(exact))
    total = (sums + np.exp(np.asarray(block.log_tail, np.float64)))[mask]
    wrong = ~(np.abs(total - 1) <= MASS_TOLERANCE)
    if wrong.any():
        row = int(np.flatnonzero(mask)[wrong.argmax()])
        raise CacheWriteError(f"exact mass and tail of row {row} sum to {total[wrong.argmax()]:.4f} instead of 1")


def _check_scalars(n: int, block: Block, manifest: Manifest) -> None:
    for column in manifest.arrays.row.columns:
        if isinstance(column.law, LinearLaw | LogOddsLaw):
            name, _, temperature = column.name.partition("@")
            values = block.log_z.get(float(temperature)) if temperature else getattr(block, name)
            if values is None or len(values) != n:
                raise CacheWriteError(f"{column.name} must be given, one a row")
