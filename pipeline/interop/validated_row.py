"""A source row, checked and converted to the form of a cache.

In: tokens, which of them are trained on, and ids with their log-probabilities (`SourceRow`). Out: `ValidatedRow`, or a
`BadRow` that names the token and the problem. Padding and other entries that a cache cannot store are dropped and
counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.interop.fields import Bools, Floats, Longs
from kdpipe.schemas.cache_plan import MAX_SEQUENCE_ROWS
from kdpipe.schemas.target_kinds import MAX_ENTRIES

# Smallest log p of a cache (65,533 steps of 1/16 nat); padding is -1e9 or minus infinity.
MIN_LOGPROB = -4095.0
# Rounding of a float32 log-probability near 0, as allowed by the cache writer.
ROUNDING_NATS = 1e-4
# Largest sum of probabilities with rounding; DistillKit's recommended setting gives at most 1.028 in 1,536 rows.
MAX_MASS = 1.05
# Larger sums than this are more than float32 rounding, and are counted.
ROUNDED_MASS = 1.001
# Largest difference of exact mass and stated tail from 1 that the cache writer allows.
TAIL_TOLERANCE_NATS = 1 / 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A source row, aligned as in a cache: row t of `trained`, `ids` and `values` predicts token t + 1.

    `values` are log p of the ids; `starts` are the first rows of documents (None: one document). `is_fitted` marks
    values that a lossy codec approximates, which may be above 0; probabilities may add up to `max_mass`.
    """

    tokens: Longs
    trained: Bools
    ids: NumberLists
    values: NumberLists
    log_tail: Floats | None = None
    starts: Longs | None = None
    is_fitted: Bools | None = None
    max_mass: float = MAX_MASS


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedRow:
    """T rows with their entries. `n_padding` counts dropped entries, `n_without_targets` the rows that had no others;
    `excess` has the excess over 1 of each row that was scaled to 1.
    """

    tokens: npt.NDArray[np.int32]
    loss_mask: Bools
    starts: Longs
    counts: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    log_tail: npt.NDArray[np.float32] | None
    n_padding: int
    n_without_targets: int
    excess: Floats


def validate_row(raw: SourceRow, vocabulary_size: int, *, rest_is_tail: bool) -> ValidatedRow:
    """Check a row; with `rest_is_tail` its tail is 1 minus the mass of its ids."""
    n = len(raw.tokens)
    starts = _starts(raw, n)
    _check_tokens(raw.tokens, vocabulary_size)
    row_of = np.repeat(np.arange(n), raw.ids.counts)
    is_entry = _is_entry(raw, row_of)
    counts = np.bincount(row_of[is_entry], minlength=n)
    trained = raw.trained.copy()
    trained[np.append(starts[1:], n) - 1] = False
    mask = trained & (counts > 0)
    keep = is_entry & mask[row_of]
    ids, values, row_of = raw.ids.values[keep], raw.values.values[keep], row_of[keep]
    counts = np.where(mask, counts, 0)
    _check_entries(ids, values, row_of, vocabulary_size)
    if counts.max(initial=0) > MAX_ENTRIES:
        raise BadRow(f"{counts.max():,} ids for token {counts.argmax()}, at most {MAX_ENTRIES:,} can be stored")
    values, excess = _scaled(values, row_of, n, raw.max_mass)
    return ValidatedRow(
        tokens=raw.tokens.astype(np.int32),
        loss_mask=mask,
        starts=starts,
        counts=counts.astype(np.int32),
        ids=ids.astype(np.int32),
        logprobs=values.astype(np.float32),
        log_tail=_log_tail(raw, values, row_of, mask, rest_is_tail),
        n_padding=int(np.count_nonzero(~is_entry & trained[np.repeat(np.arange(n), raw.ids.counts)])),
        n_without_targets=int(np.count_nonzero(trained & ~mask)),
        excess=excess,
    )


def _starts(raw: SourceRow, n: int) -> Longs:
    if n == 0:
        raise BadRow("no tokens")
    if n > MAX_SEQUENCE_ROWS:
        raise BadRow(f"{n:,} tokens, at most {MAX_SEQUENCE_ROWS:,} fit into a sequence")
    for name, length in (("lists of ids", len(raw.ids.counts)), ("loss mask values", len(raw.trained))):
        if length != n:
            raise BadRow(f"{length:,} {name} for {n:,} tokens")
    starts = np.zeros(1, np.int64) if raw.starts is None else raw.starts
    if len(starts) == 0 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise BadRow(f"document starts must ascend from 0 and be below {n:,}")
    return starts


def _check_tokens(tokens: Longs, vocabulary_size: int) -> None:
    outside = (tokens < 0) | (tokens >= vocabulary_size)
    if outside.any():
        place = int(outside.argmax())
        raise BadRow(f"token {place} is {tokens[place]}, {_outside(vocabulary_size)}")


def _is_entry(raw: SourceRow, row_of: Longs) -> Bools:
    """Which entries are not padding; values that are not log-probabilities are refused."""
    values = raw.values.values
    _refuse(np.isnan(values), row_of, values, "a log-probability is {}")
    above = values > ROUNDING_NATS
    if raw.is_fitted is not None:
        above &= ~raw.is_fitted
    _refuse(above, row_of, values, "a log-probability is {}, expected at most 0")
    is_entry: Bools = values >= MIN_LOGPROB
    return is_entry


def _check_entries(ids: Longs, values: Floats, row_of: Longs, vocabulary_size: int) -> None:
    outside = (ids < 0) | (ids >= vocabulary_size)
    _refuse(outside, row_of, ids, f"the id {{}} is {_outside(vocabulary_size)}")
    keys = np.sort(row_of * vocabulary_size + ids)
    duplicates = np.flatnonzero(keys[1:] == keys[:-1])
    if len(duplicates):
        row, i = divmod(int(keys[duplicates[0]]), vocabulary_size)
        raise BadRow(f"after token {row}, duplicate id {i}")


def _outside(vocabulary_size: int) -> str:
    return f"outside the tokenizer's vocabulary of {vocabulary_size:,}; check that --tokenizer is the teacher's"


def _refuse(wrong: Bools, row_of: Longs, values: npt.NDArray[Any], what: str) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(f"after token {row_of[place]}, {what.format(values[place])}")


def _scaled(values: Floats, row_of: Longs, n: int, most: float) -> tuple[Floats, Floats]:
    """Log p with rows above a sum of 1 scaled to 1, and the excess of each scaled row."""
    with np.errstate(over="ignore"):
        mass = np.bincount(row_of, np.exp(values), minlength=n)
    if mass.max(initial=0.0) > most:
        row = int(mass.argmax())
        raise BadRow(f"after token {row}, probabilities add up to {mass[row]:.4g}: not log-probabilities")
    scaled = np.minimum(values - np.log(np.maximum(mass, 1.0))[row_of], 0.0)
    return scaled, (mass[mass > ROUNDED_MASS] - 1.0).astype(np.float64)


def _log_tail(
    raw: SourceRow, values: Floats, row_of: Longs, mask: Bools, rest_is_tail: bool
) -> npt.NDArray[np.float32] | None:
    """Log of the tail mass: as stated by the source, or 1 minus the mass of the ids."""
    if raw.log_tail is None and not rest_is_tail:
        return None
    kept = np.bincount(row_of, np.exp(values), minlength=len(mask))
    with np.errstate(divide="ignore"):
        # A row that was scaled to 1 may differ from it in the last bit.
        rest = np.where(kept < 1 - 1e-12, np.log1p(-np.minimum(kept, 1.0)), -np.inf)
        if raw.log_tail is None:
            return np.where(mask, rest, np.nan).astype(np.float32)
        if len(raw.log_tail) != len(mask):
            raise BadRow(f"{len(raw.log_tail):,} tails for {len(mask):,} tokens")
        stated = np.minimum(raw.log_tail, 0.0)
        expected = np.log(-np.expm1(stated))
        wrong = mask & ~(np.abs(np.log(np.maximum(kept, 1e-300)) - expected) <= TAIL_TOLERANCE_NATS)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadRow(
            f"after token {row}, ids have a mass of {kept[row]:.4g} and the tail exp({raw.log_tail[row]:.4g}):"
            " they do not add up to 1"
        )
    return np.where(mask, stated, np.nan).astype(np.float32)


def aligned(lists: NumberLists, n_tokens: int, own: bool) -> NumberLists:
    """Lists that predict token t + 1 in row t, from n or n - 1 lists; with `own`, list t predicts token t."""
    n = len(lists.counts)
    if n == n_tokens - 1:
        return NumberLists(lists.values, np.append(lists.counts, 0))
    if n != n_tokens:
        raise BadRow(f"targets for {n:,} of {n_tokens:,} tokens, expected as many or one less")
    if not own:
        return lists
    return NumberLists(lists.values[int(lists.counts[0]) :], np.append(lists.counts[1:], 0))
