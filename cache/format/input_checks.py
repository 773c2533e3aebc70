"""Checks of a sequence and its targets before they are written.

In: a `Sequence` and its `Block`. Out: nothing, or a `CacheWriteError` that names the row.
"""

import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES, wrong_scalars
from kdpipe.cache.format.quantizers import LARGEST_SCALE
from kdpipe.cache.format.ragged import Bools, Ragged
from kdpipe.cache.format.rows import Block, Floats, Rows, Sequence
from kdpipe.schemas.arrays import LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import Sampled, State
from kdpipe.schemas.targets import TargetSpec, Vector

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Allowed distance of log(exact mass) from log(1 - tail); with half a step of the quantizer, readers still accept it.
MASS_TOLERANCE_NATS = 1 / 64
# A smaller tail needs no draws, see docs/cache-format.md.
LARGEST_LOST_TAIL = 1e-3


def check_sequence(sequence: Sequence, manifest: Manifest) -> None:
    """Refuse a sequence that the format cannot represent."""
    n, starts = len(sequence.tokens), np.asarray(sequence.document_starts, np.int64)
    _check_kinds(sequence, ("tokens", "token_bytes", "document_starts", "documents"))
    if np.asarray(sequence.loss_mask).dtype != bool:
        raise CacheWriteError(f"loss_mask must be boolean, found {np.asarray(sequence.loss_mask).dtype}")
    if not 1 <= n <= manifest.plan.sequence_length or len(sequence.loss_mask) != n or len(sequence.token_bytes) != n:
        raise CacheWriteError(
            f"a sequence has {n} tokens, {len(sequence.loss_mask)} mask bits and {len(sequence.token_bytes)} lengths"
        )
    if np.min(sequence.tokens) < 0 or np.max(sequence.tokens) >= manifest.vocabulary_size:
        raise CacheWriteError(f"a token id is outside the vocabulary of {manifest.vocabulary_size:,}")
    if np.max(sequence.token_bytes) > MAX_TOKEN_BYTES:
        raise CacheWriteError(
            f"a token of {int(np.max(sequence.token_bytes)):,} bytes is longer than {MAX_TOKEN_BYTES:,}"
        )
    if len(starts) == 0 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise CacheWriteError("document_starts must ascend from 0 and be inside the sequence")
    last_rows = np.append(starts[1:], n) - 1
    if np.asarray(sequence.loss_mask)[last_rows].any():
        raise CacheWriteError("loss_mask is true at the last row of a document, where no next token exists")
    if len(sequence.documents) != len(starts) or sequence.digests.shape != (len(starts), 16):
        raise CacheWriteError(
            f"a sequence has {len(starts)} document_starts, {len(sequence.documents)} documents "
            f"and {len(sequence.digests)} digests"
        )
    for column in manifest.data.columns:
        values = sequence.columns.get(column.name, ())
        if len(values) != len(starts):
            raise CacheWriteError(f"the source column {column.name} needs one value per document")
        for value in values:
            if not _fits(value, column.type):
                raise CacheWriteError(f"the source column {column.name} has {value!r}, expected {column.type}")
    if (sequence.texts is not None) != manifest.data.text or len(sequence.texts or starts) != len(starts):
        raise CacheWriteError("texts must be given, one per document, exactly if the cache stores text")
    _check_names(sequence.columns, {column.name for column in manifest.data.columns}, "source column")
    _check_vectors(manifest.hidden.pooled, sequence.pooled, len(starts), "pooled")


def _check_kinds(given: Sequence | Block, names: tuple[str, ...]) -> None:
    """Refuse other types than integers, and negative ones."""
    for name in names:
        values = np.asarray(getattr(given, name))
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise CacheWriteError(
                f"{name} must be one-dimensional integers, found {values.ndim}-dimensional {values.dtype}"
            )
        if np.min(values, initial=0) < 0:
            raise CacheWriteError(f"{name} has a negative number: {int(np.min(values))}")


def _fits(value: object, kind: str) -> bool:
    """Whether a value has the type of a source column; None is a missing value."""
    if value is None:
        return True
    if kind == "string":
        return isinstance(value, str) and not _LONE_SURROGATE.search(value)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "int64":
        return isinstance(value, numbers.Integral) and -(1 << 63) <= int(value) < 1 << 63
    return isinstance(value, numbers.Real)


def _check_names(given: Mapping[Any, object], known: set[Any], what: str) -> None:
    """Refuse values that the cache would drop silently."""
    unknown = sorted(set(given) - known)
    if unknown:
        raise CacheWriteError(f"unexpected {what} {unknown[0]!r}: the manifest has {sorted(known) or 'none'}")


def _check_vectors(vectors: tuple[Vector, ...], given: Mapping[int, Floats], n: int, what: str) -> None:
    _check_names(given, {vector.layer for vector in vectors}, f"{what} layer")
    for vector in vectors:
        rows = given.get(vector.layer)
        if rows is None or rows.shape != (n, vector.width):
            raise CacheWriteError(f"{what} needs [{n}, {vector.width}] numbers for layer {vector.layer}")
        if not (np.abs(rows) <= LARGEST_SCALE * 127).all():
            raise CacheWriteError(f"{what} of layer {vector.layer} has non-finite numbers")


def check_block(sequence: Sequence, block: Block, manifest: Manifest) -> Ragged:
    """Refuse targets that break the rules of the format; the layout of their entries otherwise."""
    n, targets = len(sequence.tokens), manifest.targets
    _check_kinds(block, ("n_exact", "n_draws", "ids"))
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
            raise CacheWriteError(f"targets of kind {targets.keep.kind} have no ids")
    else:
        _check_entries(mask, block, ragged, manifest)
    _check_scalars(n, block, manifest)
    if targets.tail_known:
        _check_masses(mask, block, ragged, targets)
    _check_vectors(manifest.hidden.rows, block.hidden, n, "hidden")
    for what in wrong_scalars(_as_rows(sequence, block, ragged, manifest), manifest):
        raise CacheWriteError(f"the targets of a sequence break a rule: {what}")
    if isinstance(targets.keep, State) and (block.state is None or block.state.shape != (n, targets.keep.width)):
        raise CacheWriteError(f"state needs [{n}, {targets.keep.width}] numbers")
    if block.state is not None and not (np.abs(block.state) <= LARGEST_SCALE * 127).all():
        raise CacheWriteError("state has non-finite numbers")
    return ragged


def _as_rows(sequence: Sequence, block: Block, ragged: Ragged, manifest: Manifest) -> Rows:
    """The rows as a reader would return them, without weights."""
    mask = np.asarray(sequence.loss_mask)
    names = {column.name for column in manifest.arrays.row.columns}

    def scalar(name: str) -> Floats | None:
        values = getattr(block, name)
        return np.where(mask, values, np.float32(np.nan)).astype(np.float32) if name in names else None

    nothing = np.zeros(0, np.float32)
    return Rows(
        tokens=np.asarray(sequence.tokens, np.int32),
        loss_mask=mask,
        document_starts=np.asarray(sequence.document_starts, np.int64),
        documents=np.asarray(sequence.documents, np.int64),
        count=ragged.counts.astype(np.int32),
        n_exact=ragged.n_exact.astype(np.int32),
        ids=np.asarray(block.ids, np.int32),
        logprobs=np.asarray(block.logprobs, np.float32),
        weights=nothing,
        log_tail=scalar("log_tail"),
        entropy=scalar("entropy"),
        label_logprob=scalar("label_logprob"),
        log_z={t: np.where(mask, block.log_z[t], np.float32(np.nan)) for t in manifest.targets.temperatures},
        boundary_logprob=scalar("boundary_logprob"),
        times=None,
        hidden={},
        state=None,
    )


def _check_entries(mask: Bools, block: Block, ragged: Ragged, manifest: Manifest) -> None:
    targets, n_exact, counts = manifest.targets, ragged.n_exact, ragged.counts
    if (n_exact[mask] < 1).any() or (counts > targets.max_entries).any():
        raise CacheWriteError(
            f"a row has {int(counts.max())} ids: expected 1 to {targets.max_entries}, the most probable one exact"
        )
    if len(block.ids) and (np.min(block.ids) < 0 or np.max(block.ids) >= manifest.vocabulary_size):
        raise CacheWriteError(f"a target id is outside the vocabulary of {manifest.vocabulary_size:,}")
    if not targets.has_draws and np.any(block.n_draws):
        raise CacheWriteError(f"targets of kind {targets.keep.kind} have no draws")
    is_draw = ragged.is_draw
    exact = np.asarray(block.logprobs, np.float64)[~is_draw]
    if np.isnan(exact).any() or (exact > 1e-4).any():
        raise CacheWriteError("the log p of an exact id is NaN or above 0")
    if targets.keep.draws_repeat and (
        block.times is None or len(block.times) != is_draw.sum() or np.min(block.times, initial=1) < 1
    ):
        raise CacheWriteError("sampled targets need `times`, at least 1, for every draw")
    if targets.draw_values and np.isnan(np.asarray(block.logprobs)[is_draw]).any():
        raise CacheWriteError("the log p of a draw is missing, but draw_values is set")
    if isinstance(targets.keep, Sampled):
        _check_times(block, ragged, targets.keep.draws)


def _check_times(block: Block, ragged: Ragged, draws: int) -> None:
    """The times of a row's draws must add up to `draws`."""
    rows = np.repeat(np.arange(len(ragged.counts)), ragged.n_draws)
    totals = np.bincount(rows, block.times, minlength=len(ragged.counts))
    wrong = (ragged.n_draws > 0) & (totals != draws)
    if wrong.any():
        row = int(wrong.argmax())
        raise CacheWriteError(f"the draws of row {row} add up to {int(totals[row])} times, expected {draws}")


def _check_masses(mask: Bools, block: Block, ragged: Ragged, targets: TargetSpec) -> None:
    """Exact probabilities and tail must sum to 1, at T=1 and at the target temperature."""
    exact = np.asarray(block.logprobs, np.float64)[~ragged.is_draw]
    rows = np.repeat(np.arange(len(mask)), ragged.n_exact)
    _check_mass(
        mask, np.bincount(rows, np.exp(exact), minlength=len(mask)).astype(np.float64), block.log_tail, "log_tail"
    )
    tail, temperature = block.log_tail, targets.target_temperature
    if temperature != 1.0:
        at_temperature = np.exp(exact / temperature - np.asarray(block.log_z[temperature], np.float64)[rows])
        sums = np.bincount(rows, at_temperature, minlength=len(mask)).astype(np.float64)
        _check_mass(mask, sums, block.drawn_log_tail, f"drawn_log_tail at temperature {temperature}")
        tail = block.drawn_log_tail
    if targets.has_draws:
        left = np.exp(np.asarray(tail, np.float64))
        if (mask & (ragged.n_draws == 0) & (left > LARGEST_LOST_TAIL)).any():
            raise CacheWriteError("a row has a tail, but no draws")
        if (mask & (ragged.n_draws > 0) & (left == 0)).any():
            raise CacheWriteError("a row has draws, but no tail")


def _check_mass(mask: Bools, exact: npt.NDArray[np.float64], log_tail: Floats | None, what: str) -> None:
    """A mismatch means that rows are shifted or a term is missing."""
    tail = np.minimum(np.asarray(log_tail, np.float64), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        actual, expected = np.log(exact), np.log(-np.expm1(tail))
        wrong = mask & ~(np.abs(actual - expected) <= MASS_TOLERANCE_NATS)
    if wrong.any():
        row = int(wrong.argmax())
        raise CacheWriteError(
            f"exact mass and tail of row {row} do not sum to 1: the log of the exact mass is {actual[row]:.6g}, "
            f"expected {expected[row]:.6g} from {what}"
        )


def _check_scalars(n: int, block: Block, manifest: Manifest) -> None:
    _check_names(block.log_z, set(manifest.targets.temperatures), "log_z at temperature")
    for column in manifest.arrays.row.columns:
        if isinstance(column.quantizer, LinearQuantizer | LogOddsQuantizer):
            name, _, temperature = column.name.partition("@")
            values = block.log_z.get(float(temperature)) if temperature else getattr(block, name)
            if values is None or len(values) != n:
                raise CacheWriteError(f"{column.name} must have one value per row")
