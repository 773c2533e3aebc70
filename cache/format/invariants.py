"""The invariants of rows, checked by the writer on its input and by verification on what is read.

In: a block of rows and the manifest. Out: a message about the first row that breaks each rule. Bounds are those of
docs/cache-format.md.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.ragged import draw_mask, row_starts
from kdpipe.cache.format.rows import Bools, Rows
from kdpipe.schemas.arrays import LinearQuantizer
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import Sampled, TopK

# A float32 teacher's own rounding, over a vocabulary of any size.
ROUNDING = 1e-3
MAX_TOKEN_BYTES = 1 << 16


def broken_rules(rows: Rows, manifest: Manifest) -> Iterator[str]:
    """A message for each broken rule."""
    yield from _rules_of_documents(rows)
    yield from _rules_of_scalars(rows, manifest)
    for name, values in (
        ("hidden", list(rows.hidden.values())),
        ("state", [rows.state] if rows.state is not None else []),
    ):
        if not all(np.isfinite(value).all() for value in values):
            yield f"{name} has non-finite numbers"
    if manifest.targets.has_entries:
        has = rows.count > 0
        yield from _first(rows.loss_mask & (rows.n_exact < 1), "its most probable id is not exact")
        if has.any():
            yield from _rules_of_entries(rows, manifest, has)


def wrong_scalars(rows: Rows, manifest: Manifest) -> Iterator[str]:
    """The rules for a writer before rounding: scalars, and their consistency with the exact ids."""
    yield from _rules_of_scalars(rows, manifest)
    if manifest.targets.has_entries:
        yield from _first(
            rows.loss_mask & (rows.count < least_entries(manifest)), "it has fewer ids than its kind requires"
        )
        row_of = np.repeat(np.arange(len(rows)), rows.count)
        exact = ~draw_mask(rows.n_exact.astype(np.int64), (rows.count - rows.n_exact).astype(np.int64))
        yield from _rules_of_exact(rows, manifest, exact, row_of)


def least_entries(manifest: Manifest) -> int:
    """The minimum number of ids of a position."""
    keep = manifest.targets.keep
    return min(keep.k, manifest.vocabulary_size) if isinstance(keep, TopK) else 1


def _first(broken: Bools, what: str) -> Iterator[str]:
    """A message about the first row of the block that breaks a rule."""
    if broken.any():
        yield f"row {int(broken.argmax())} of its block: {what}"


def _rules_of_documents(rows: Rows) -> Iterator[str]:
    last = np.append(rows.document_starts[1:], len(rows)) - 1
    broken = np.zeros(len(rows), bool)
    broken[last] = rows.loss_mask[last]
    yield from _first(broken, "loss_mask is true at the last row of a document")


def _rules_of_scalars(rows: Rows, manifest: Manifest) -> Iterator[str]:
    """Scalars are numbers exactly where loss_mask is true, and within the bounds of the vocabulary."""
    most = math.log(manifest.vocabulary_size) + ROUNDING
    scalars = {"log_tail": rows.log_tail, "entropy": rows.entropy, "label_logprob": rows.label_logprob}
    scalars |= {"boundary_logprob": rows.boundary_logprob} | {f"log_z@{t}": z for t, z in rows.log_z.items()}
    teacher = manifest.teacher
    may_lack_labels = not manifest.targets.keep.labels_known or (teacher is not None and not teacher.full_distribution)
    for name, values in scalars.items():
        if values is not None:
            wrong = np.isnan(values) == rows.loss_mask
            if name == "label_logprob" and may_lack_labels:
                wrong &= ~rows.loss_mask
            yield from _first(wrong, f"{name} is a number where loss_mask is false, or NaN where it is true")
            if name in ("log_tail", "label_logprob", "boundary_logprob"):
                yield from _first(values > ROUNDING, f"{name} is above 0")
    if rows.entropy is not None:
        yield from _first((rows.entropy < -ROUNDING) | (rows.entropy > most), "entropy is outside 0 to log V")
    for temperature, values in rows.log_z.items():
        bound = (1 - 1 / temperature) * most
        low, high = min(0.0, bound) - ROUNDING, max(0.0, bound) + ROUNDING
        yield from _first((values < low) | (values > high), f"log_z at {temperature} is outside 0 to (1 - 1/T) log V")


def _rules_of_entries(rows: Rows, manifest: Manifest, has: Bools) -> Iterator[str]:
    """Ids are distinct, exact ones descend, masses agree with the scalars."""
    row_of = np.repeat(np.arange(len(rows)), rows.count)
    keys = np.sort(row_of.astype(np.int64) * manifest.vocabulary_size + rows.ids)
    twice = np.zeros(len(rows), bool)
    twice[(keys[1:] // manifest.vocabulary_size)[keys[1:] == keys[:-1]]] = True
    yield from _first(twice, "duplicate id")
    starts = (np.cumsum(rows.count, dtype=np.int64) - rows.count)[has]
    rank = np.arange(len(rows.ids)) - np.repeat(starts, rows.count[has])
    exact = rank < np.repeat(rows.n_exact, rows.count)
    values = rows.logprobs
    yield from _first(
        _any_row(row_of, exact & ~(values <= ROUNDING), rows), "the log p of an exact id is above 0 or NaN"
    )
    rising = np.zeros(len(values), bool)
    rising[1:] = (values[1:] > values[:-1] + ROUNDING) & exact[1:] & exact[:-1] & (row_of[1:] == row_of[:-1])
    yield from _first(_any_row(row_of, rising, rows), "exact ids do not descend in probability")
    yield from _first(
        rows.loss_mask & (rows.count < least_entries(manifest)), "it has fewer ids than its kind requires"
    )
    if manifest.targets.has_draws:
        yield from _rules_of_draws(rows, manifest, exact)
    if rows.log_tail is not None:
        yield from _rules_of_mass(rows, manifest, has, starts)
    yield from _rules_of_exact(rows, manifest, exact, row_of)


def _any_row(row_of: npt.NDArray[np.int64], broken: Bools, rows: Rows) -> Bools:
    result = np.zeros(len(rows), bool)
    result[row_of[broken]] = True
    return result


def _rules_of_draws(rows: Rows, manifest: Manifest, exact: Bools) -> Iterator[str]:
    """A row with a tail has draws."""
    n_draws = rows.count - rows.n_exact
    assert rows.log_tail is not None
    yield from _first(rows.loss_mask & (n_draws > 0) & np.isneginf(rows.log_tail), "it has draws, but no tail")
    keep = manifest.targets.keep
    if isinstance(keep, Sampled) and rows.times is not None:
        totals = np.zeros(len(rows), np.int64)
        np.add.at(totals, np.repeat(np.arange(len(rows)), n_draws), rows.times)
        yield from _first((n_draws > 0) & (totals != keep.draws), f"its draws do not add up to {keep.draws}")
    if manifest.targets.draw_values:
        yield from _first(np.array([bool(np.isnan(rows.logprobs[~exact]).any())]), "a draw has no log p")


def _rules_of_mass(rows: Rows, manifest: Manifest, has: Bools, starts: npt.NDArray[np.int64]) -> Iterator[str]:
    """Weights sum to 1 with draws, to the kept mass without."""
    totals = np.zeros(len(rows))
    totals[has] = np.add.reduceat(rows.weights.astype(np.float64), starts)
    expected = np.ones(len(rows))
    n_draws = rows.count - rows.n_exact
    tail = rows.log_tail
    if not manifest.targets.has_draws and manifest.targets.target_temperature == 1.0 and tail is not None:
        expected = 1 - np.exp(tail.astype(np.float64))
    elif not manifest.targets.has_draws:
        expected = totals
    elif tail is not None:
        yield from _first(rows.loss_mask & (n_draws == 0) & (tail > math.log(ROUNDING)), "it has a tail, but no draws")
    yield from _first(has & ~(np.abs(totals - expected) <= ROUNDING), "its weights do not sum to the expected mass")


def _rules_of_exact(rows: Rows, manifest: Manifest, exact: Bools, row_of: npt.NDArray[np.int64]) -> Iterator[str]:
    """log_z, entropy and the next token's log p agree with the exact ids, within half a step of each quantizer."""
    array = manifest.arrays.logprob
    assert array is not None
    quantizers = {column.name: column.quantizer for column in manifest.arrays.row.columns}
    quantizer = quantizers["label_logprob"]
    assert isinstance(quantizer, LinearQuantizer)
    slack = array.quantizer.step + quantizer.step + ROUNDING
    values = np.where(exact, rows.logprobs, -np.inf).astype(np.float64)
    for temperature, log_z in rows.log_z.items():
        mass = np.bincount(row_of, np.exp(values / temperature), minlength=len(rows))
        with np.errstate(divide="ignore"):
            least = np.log(mass)
        yield from _first(
            rows.loss_mask & (log_z < least - slack / temperature),
            f"log_z at {temperature} is below the sum over its exact ids",
        )
    if rows.label_logprob is None:
        return
    following = np.append(rows.tokens[1:], -1)
    is_label = exact & (rows.ids == following[row_of])
    label = rows.label_logprob.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = (
            is_label & ~(np.abs(values - label[row_of]) <= slack) & ~(np.isneginf(values) & np.isneginf(label[row_of]))
        )
        yield from _first(
            _any_row(row_of, off, rows), "label_logprob is not that of the next token among the exact ids"
        )
        best = np.full(len(rows), -np.inf)
        has = rows.count > 0
        best[has] = (
            np.maximum.reduceat(values, row_starts(rows.count.astype(np.int64)[has])) if has.any() else best[has]
        )
        yield from _first(
            rows.loss_mask & (label > best + slack), "the next token is more probable than the most probable id"
        )
