"""`ValidatedRow`: what a source row says, as a cache keeps it, once everything about it has been checked.

In: tokens, which are learnt, and ids with their log-probabilities (`SourceRow`). Out: `ValidatedRow`, or a `BadRow`
that says what is wrong at which token. Row t is about token t + 1, whatever the source had; what cannot be kept is
dropped here and counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.interop.fields import Bools, Floats, Longs
from kdpipe.schemas.cache_plan import MAX_SEQUENCE_ROWS
from kdpipe.schemas.targets import MAX_ENTRIES

# Below this a cache knows no difference from nothing: 65,533 steps of 1/16 nat. Padding is -1e9 or minus infinity.
NOTHING_NATS = -4095.0
# What float32 rounds of a log-probability of 0, as the writer allows it.
ROUNDING_NATS = 1e-4
# What rounding of stored values adds; DistillKit's recommended setting gives 1.028 at most in 1,536 rows.
MOST_MASS = 1.05
# Beyond what a float32 teacher rounds; from here on a row that holds more than 1 is counted.
ROUNDED_MASS = 1.001
# As far as the writer lets the exact mass and a stated tail be from 1.
TAIL_TOLERANCE_NATS = 1 / 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A source row aligned as a cache is: row t of `trained`, `ids` and `values` is about token t + 1.

    `values` are log p of the ids; `log_tail` is given where the source has it; `starts` are rows where documents begin.
    `is_fitted` marks values that a codec approximates, which may be above 0; a row may add up to `most_mass`.
    """

    tokens: Longs
    trained: Bools
    ids: NumberLists
    values: NumberLists
    log_tail: Floats | None = None
    starts: Longs | None = None
    is_fitted: Bools | None = None
    most_mass: float = MOST_MASS


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedRow:
    """T rows with their entries; `n_padding` entries were nothing, `n_without_targets` rows had none left, rows that
    held more than 1 were scaled to 1: `excess` is by how much each of them did.
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

    @property
    def n_scaled(self) -> int:
        """How many rows were scaled."""
        return len(self.excess)


def validate_row(raw: SourceRow, vocabulary_size: int, *, rest_is_tail: bool) -> ValidatedRow:
    """Check a row; with `rest_is_tail` what its ids leave of 1 is the tail."""
    n = len(raw.tokens)
    starts = _starts(raw, n)
    _check_tokens(raw.tokens, vocabulary_size)
    row_of = np.repeat(np.arange(n), raw.ids.counts)
    there = _present(raw, row_of)
    counts = np.bincount(row_of[there], minlength=n)
    due = raw.trained.copy()
    due[np.append(starts[1:], n) - 1] = False
    mask = due & (counts > 0)
    keep = there & mask[row_of]
    ids, values, row_of = raw.ids.values[keep], raw.values.values[keep], row_of[keep]
    counts = np.where(mask, counts, 0)
    _check_entries(ids, values, row_of, vocabulary_size)
    if counts.max(initial=0) > MAX_ENTRIES:
        raise BadRow(f"token {counts.argmax()} has {counts.max():,} ids, at most {MAX_ENTRIES:,} can be kept")
    values, excess = _scaled(values, row_of, n, raw.most_mass)
    return ValidatedRow(
        tokens=raw.tokens.astype(np.int32),
        loss_mask=mask,
        starts=starts,
        counts=counts.astype(np.int32),
        ids=ids.astype(np.int32),
        logprobs=values.astype(np.float32),
        log_tail=_log_tail(raw, values, row_of, mask, rest_is_tail),
        n_padding=int(np.count_nonzero(~there & due[np.repeat(np.arange(n), raw.ids.counts)])),
        n_without_targets=int(np.count_nonzero(due & ~mask)),
        excess=excess,
    )


def _starts(raw: SourceRow, n: int) -> Longs:
    if n == 0:
        raise BadRow("it has no tokens")
    if n > MAX_SEQUENCE_ROWS:
        raise BadRow(f"it has {n:,} tokens, at most {MAX_SEQUENCE_ROWS:,} can be kept together")
    for name, length in (("rows", len(raw.ids.counts)), ("truth values", len(raw.trained))):
        if length != n:
            raise BadRow(f"it has {length:,} {name} for {n:,} tokens")
    starts = np.zeros(1, np.int64) if raw.starts is None else raw.starts
    if len(starts) == 0 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise BadRow(f"the starts of its documents must ascend from 0 and lie below {n:,}")
    return starts


def _check_tokens(tokens: Longs, vocabulary_size: int) -> None:
    outside = (tokens < 0) | (tokens >= vocabulary_size)
    if outside.any():
        place = int(outside.argmax())
        raise BadRow(f"token {place} is {tokens[place]}, {_outside(vocabulary_size)}")


def _present(raw: SourceRow, row_of: Longs) -> Bools:
    """Which entries are more than padding; what is no log-probability at all is refused."""
    values = raw.values.values
    _refuse(np.isnan(values), row_of, values, "a log-probability is {}")
    above = values > ROUNDING_NATS
    if raw.is_fitted is not None:
        above &= ~raw.is_fitted
    _refuse(above, row_of, values, "a log-probability is {}, at most 0 was expected")
    found: Bools = values >= NOTHING_NATS
    return found


def _check_entries(ids: Longs, values: Floats, row_of: Longs, vocabulary_size: int) -> None:
    outside = (ids < 0) | (ids >= vocabulary_size)
    _refuse(outside, row_of, ids, f"the id {{}} lies {_outside(vocabulary_size)}")
    keys = np.sort(row_of * vocabulary_size + ids)
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        row, i = divmod(int(keys[twice[0]]), vocabulary_size)
        raise BadRow(f"after token {row}, the id {i} stands twice")


def _outside(vocabulary_size: int) -> str:
    return f"outside the tokenizer's vocabulary of {vocabulary_size:,}: is it the teacher's tokenizer?"


def _refuse(wrong: Bools, row_of: Longs, values: npt.NDArray[Any], what: str) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(f"after token {row_of[place]}, {what.format(values[place])}")


def _scaled(values: Floats, row_of: Longs, n: int, most: float) -> tuple[Floats, Floats]:
    """Rows that hold more than 1 made to hold 1, and how much more each of them held."""
    with np.errstate(over="ignore"):
        mass = np.bincount(row_of, np.exp(values), minlength=n)
    if mass.max(initial=0.0) > most:
        row = int(mass.argmax())
        raise BadRow(f"after token {row}, the probabilities add up to {mass[row]:.4g}: these are no log-probabilities")
    scaled = np.minimum(values - np.log(np.maximum(mass, 1.0))[row_of], 0.0)
    return scaled, (mass[mass > ROUNDED_MASS] - 1.0).astype(np.float64)


def _log_tail(
    raw: SourceRow, values: Floats, row_of: Longs, mask: Bools, rest_is_tail: bool
) -> npt.NDArray[np.float32] | None:
    """Log of the mass that is left: as the source states it, or what is left of 1."""
    if raw.log_tail is None and not rest_is_tail:
        return None
    kept = np.bincount(row_of, np.exp(values), minlength=len(mask))
    with np.errstate(divide="ignore"):
        # A row that was scaled to 1 adds up to it but for the last bit.
        rest = np.where(kept < 1 - 1e-12, np.log1p(-np.minimum(kept, 1.0)), -np.inf)
        if raw.log_tail is None:
            return np.where(mask, rest, np.nan).astype(np.float32)
        if len(raw.log_tail) != len(mask):
            raise BadRow(f"it has {len(raw.log_tail):,} tails for {len(mask):,} tokens")
        stated = np.minimum(raw.log_tail, 0.0)
        due = np.log(-np.expm1(stated))
        wrong = mask & ~(np.abs(np.log(np.maximum(kept, 1e-300)) - due) <= TAIL_TOLERANCE_NATS)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadRow(f"after token {row}, ids hold {kept[row]:.4g} and the tail is exp({raw.log_tail[row]:.4g}): not 1")
    return np.where(mask, stated, np.nan).astype(np.float32)


def aligned(lists: NumberLists, n_tokens: int, own: bool) -> NumberLists:
    """Lists about token t + 1 in row t, from as many as tokens or one less; `own`: list t is about token t."""
    n = len(lists.counts)
    if n == n_tokens - 1:
        return NumberLists(lists.values, np.append(lists.counts, 0))
    if n != n_tokens:
        raise BadRow(f"it has targets for {n:,} tokens of {n_tokens:,}: as many or one less were expected")
    if not own:
        return lists
    return NumberLists(lists.values[int(lists.counts[0]) :], np.append(lists.counts[1:], 0))
