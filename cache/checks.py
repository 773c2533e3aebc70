"""What a sequence and its targets must be before they are written: whoever makes them wrong is told at once.

In: a `Sequence` and its `Block`. Out: nothing, or a `CacheWriteError` that names the row.
Before it: `rows.py`, `entries.py`. After it: `encode.py`.
"""

import numbers
import re

import numpy as np
import numpy.typing as npt

from kdpipe.cache.entries import Bools, Ragged
from kdpipe.cache.rows import Block, Sequence
from kdpipe.schemas.arrays import LinearLaw, LogOddsLaw
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import State, Vector

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# How far log(exact mass) may lie from log(1 - tail): with half a step of the law, still within what the reader accepts.
MASS_TOLERANCE_NATS = 1 / 64


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
        values = sequence.columns.get(column.name, ())
        if len(values) != len(starts):
            raise CacheWriteError(f"the source column {column.name} needs one value a document")
        for value in values:
            if not _fits(value, column.type):
                raise CacheWriteError(f"the source column {column.name} holds {value!r}, which is no {column.type}")
    if (sequence.texts is not None) != manifest.data.text or len(sequence.texts or starts) != len(starts):
        raise CacheWriteError("texts must be given, one a document, exactly when the cache keeps text")
    _check_vectors(manifest.hidden.pooled, sequence.pooled, len(starts), "pooled")


def _fits(value: object, kind: str) -> bool:
    """Whether a source column of a type can hold a value; None says that the source has none."""
    if value is None:
        return True
    if kind == "string":
        return isinstance(value, str) and not _LONE_SURROGATE.search(value)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "int64":
        return isinstance(value, numbers.Integral) and -(1 << 63) <= int(value) < 1 << 63
    return isinstance(value, numbers.Real)


def _check_vectors(vectors: tuple[Vector, ...], given: "object", n: int, what: str) -> None:
    for vector in vectors:
        rows = given.get(vector.layer) if hasattr(given, "get") else None
        if rows is None or rows.shape != (n, vector.width):
            raise CacheWriteError(f"{what} needs [{n}, {vector.width}] numbers for layer {vector.layer}")


def check_block(sequence: Sequence, block: Block, manifest: Manifest) -> Ragged:
    """Refuse targets that break the format's rules, before they become bytes; how the entries lie, when they pass."""
    n, targets = len(sequence.tokens), manifest.targets
    ragged = Ragged.of(block.n_exact, block.n_draws)
    counts, mask = ragged.counts, np.asarray(sequence.loss_mask)
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
        _check_entries(mask, block, ragged, manifest)
    _check_scalars(n, block, manifest)
    _check_vectors(manifest.hidden.rows, block.hidden, n, "hidden")
    if isinstance(targets.keep, State) and (block.state is None or block.state.shape != (n, targets.keep.width)):
        raise CacheWriteError(f"state needs [{n}, {targets.keep.width}] numbers")
    return ragged


def _check_entries(mask: Bools, block: Block, ragged: Ragged, manifest: Manifest) -> None:
    targets, n_exact, counts = manifest.targets, ragged.n_exact, ragged.counts
    if (n_exact[mask] < 1).any() or (counts > targets.max_entries).any():
        raise CacheWriteError(
            f"a row keeps {int(counts.max())} ids: 1 to {targets.max_entries} are due, the most probable one exactly"
        )
    if len(block.ids) and (np.min(block.ids) < 0 or np.max(block.ids) >= manifest.vocabulary_size):
        raise CacheWriteError(f"a target id lies outside the vocabulary of {manifest.vocabulary_size:,}")
    if not targets.has_draws and np.any(block.n_draws):
        raise CacheWriteError(f"targets of kind {targets.keep.kind} have no draws")
    is_draw = ragged.is_draw
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
        _check_mass(mask, block, ragged, exact)


def _check_mass(mask: Bools, block: Block, ragged: Ragged, exact: npt.NDArray[np.float64]) -> None:
    """Exact probabilities and tail must sum to 1: whoever gets this wrong has shifted a row or lost a term."""
    if block.log_tail is None or len(block.log_tail) != len(mask):
        raise CacheWriteError("log_tail must be given, one a row")
    sums = np.bincount(np.repeat(np.arange(len(mask)), ragged.n_exact), np.exp(exact), minlength=len(mask))[mask]
    tail = np.minimum(np.asarray(block.log_tail, np.float64)[mask], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong = ~(np.abs(np.log(sums) - np.log(-np.expm1(tail))) <= MASS_TOLERANCE_NATS)
    if wrong.any():
        row, total = int(np.flatnonzero(mask)[wrong.argmax()]), (sums + np.exp(tail))[wrong.argmax()]
        raise CacheWriteError(f"exact mass and tail of row {row} sum to {total:.6f} instead of 1")


def _check_scalars(n: int, block: Block, manifest: Manifest) -> None:
    for column in manifest.arrays.row.columns:
        if isinstance(column.law, LinearLaw | LogOddsLaw):
            name, _, temperature = column.name.partition("@")
            values = block.log_z.get(float(temperature)) if temperature else getattr(block, name)
            if values is None or len(values) != n:
                raise CacheWriteError(f"{column.name} must be given, one a row")
