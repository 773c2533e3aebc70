"""Sums over the rows of a part: the `statistics` object of part.json, for `cache inspect` and subsets."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.encode import CodedRows
from kdpipe.cache.format.quantizers import Codes, Floats, value_table
from kdpipe.cache.format.ragged import Longs, Runs, draw_mask, exact_places, next_tokens, row_starts, undo_differences
from kdpipe.cache.format.rows import Block, Rows, Sequence
from kdpipe.schemas.arrays import LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord, Statistics

# Below this a stored label_logprob is minus infinity; such rows are left out of the sum.
LEAST_LABEL = -255.0
NO_RANK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """The number of rows with loss_mask true, and of their entries."""

    n_positions: int
    n_exact: int
    n_draws: int


class StatisticsSum:
    """Sums over sequences, in float64 and in order of arrival."""

    def __init__(self, manifest: Manifest) -> None:
        self._targets = manifest.targets
        self._columns = manifest.arrays.row.columns
        logprob = manifest.arrays.logprob
        self._logprob_quantizer = None if logprob is None else logprob.quantizer
        self._has_entropy = any(column.name == "entropy" for column in manifest.arrays.row.columns)
        self._entropy = self._label = self._tail = 0.0
        self._n = 0
        self._label_is_top1 = 0
        self._entries = np.zeros(manifest.targets.max_entries + 1, np.int64)

    def add(self, sequence: Sequence, block: Block) -> None:
        """Add the rows of a sequence as it is written."""
        counts = np.asarray(block.n_exact, np.int64) + block.n_draws
        self._add(np.asarray(sequence.loss_mask, bool), counts, block)
        if self._targets.has_entries:
            self._label_is_top1 += _count_top1(block, counts, np.asarray(sequence.loss_mask, bool))

    def add_rows(self, rows: Rows) -> None:
        """Add rows as they are read, without `label_is_top1`, which is lost in rounding."""
        self._add(rows.loss_mask, rows.count.astype(np.int64), rows)

    def add_coded(self, coded: CodedRows) -> RowCounts:
        """Add coded rows; the next token is the most probable if it is the first exact id."""
        columns = {column.name: coded.columns[:, n] for n, column in enumerate(self._columns)}
        none = np.zeros(len(coded.columns), np.int64)
        n_exact, n_draws = (columns.get(name, none).astype(np.int64) for name in ("n_exact", "n_draws"))
        mask, counts, nothing = columns["loss_mask"] == 1, n_exact + n_draws, np.zeros(0, np.float32)
        scalars = self._scalars(columns)
        if "label_logprob" in scalars:
            rows, values = self._known_labels(coded, columns, n_exact, n_draws)
            scalars["label_logprob"][rows] = values
        block = Block(
            n_exact=n_exact,
            n_draws=n_draws,
            ids=none,
            logprobs=nothing,
            log_tail=scalars.get("log_tail"),
            entropy=scalars.get("entropy"),
            label_logprob=scalars.get("label_logprob"),
        )
        self._add(mask, counts, block)
        if self._targets.has_entries:
            rows = np.flatnonzero(mask & (n_exact > 0))
            following = np.append(columns["token"][1:], np.uint32(NO_RANK))[rows]
            self._label_is_top1 += int(np.count_nonzero(following == coded.ids[row_starts(counts)[rows]]))
        total = int(np.count_nonzero(mask))
        return RowCounts(n_positions=total, n_exact=int(n_exact.sum()), n_draws=int(n_draws.sum()))

    def _known_labels(
        self, coded: CodedRows, columns: dict[str, Codes], n_exact: Longs, n_draws: Longs
    ) -> tuple[Longs, Floats]:
        """The rows whose next token is an exact id, and its decoded log p."""
        quantizer = self._logprob_quantizer
        if quantizer is None:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing.astype(np.float32)
        exact = Runs.of(n_exact)
        places = exact_places(exact, n_draws)
        codes = coded.logprobs.take(places) if self._targets.draw_values else coded.logprobs
        values = np.empty(len(coded.ids), np.float32)
        values[places] = value_table(quantizer).take(undo_differences(codes, exact), mode="clip")
        rows, entries = next_tokens(columns["token"], coded.ids, n_exact, n_draws)
        return rows, values[entries]

    def _scalars(self, columns: dict[str, Codes]) -> dict[str, Floats]:
        try:
            return {
                column.name: value_table(column.quantizer).take(columns[column.name])
                for column in self._columns
                if isinstance(column.quantizer, LinearQuantizer | LogOddsQuantizer)
                and column.name in ("entropy", "label_logprob", "log_tail")
            }
        except IndexError:
            raise CacheDamaged("a stored scalar code is out of range") from None

    def _add(self, mask: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64], source: Block | Rows) -> None:
        if self._has_entropy and source.entropy is not None:
            self._entropy += _sum(source.entropy[mask])
        if source.label_logprob is not None:
            labels = np.asarray(source.label_logprob[mask], np.float64)
            self._label -= float(np.sum(labels, where=labels > LEAST_LABEL))
        if self._targets.has_entries:
            self._entries += np.bincount(counts[mask], minlength=len(self._entries))
        if self._targets.tail_known and source.log_tail is not None:
            self._tail += _sum(np.exp(np.asarray(source.log_tail[mask], np.float64)))
        self._n += int(np.count_nonzero(mask))

    def disagreements(self, record: PartRecord) -> Iterator[str]:
        """Messages about sums that differ from those in part.json by more than rounding."""
        own, stated = self.record(), record.statistics
        if own.entries != stated.entries:
            yield "statistics.entries in part.json differ from the rows"
        if (stated.label_is_top1 is None) != (own.label_is_top1 is None) or (stated.label_is_top1 or 0) > self._n:
            yield f"statistics.label_is_top1 in part.json is {stated.label_is_top1}, of {self._n:,} rows"
        for name, column in (("entropy_nats", "entropy"), ("label_nats", "label_logprob"), ("tail_mass", "log_tail")):
            a, b = getattr(own, name), getattr(stated, name)
            if (a is None) != (b is None) or (a is not None and abs(a - b) > self._n * self._step(column) + 1e-6):
                yield f"statistics.{name} in part.json is {b}, the rows add up to {a}"

    def _step(self, name: str) -> float:
        """An upper bound of the rounding error of a column's quantizer."""
        quantizer = {column.name: column.quantizer for column in self._columns}.get(name)
        if isinstance(quantizer, LinearQuantizer):
            # A next token that is an exact id has its log p from there.
            other = (
                self._logprob_quantizer.step if name == "label_logprob" and self._logprob_quantizer is not None else 0.0
            )
            return 2 * max(quantizer.step, other)
        return quantizer.step if isinstance(quantizer, LogOddsQuantizer) else 0.0

    def record(self) -> Statistics:
        """The sums so far."""
        targets = self._targets
        if not targets.keep.has_teacher:
            return Statistics()
        return Statistics(
            entropy_nats=self._entropy if self._has_entropy else None,
            label_nats=self._label,
            label_is_top1=self._label_is_top1 if targets.has_entries else None,
            tail_mass=self._tail if targets.tail_known else None,
            entries=tuple((n, int(self._entries[n])) for n in np.flatnonzero(self._entries).tolist())
            if targets.has_entries
            else (),
        )


def _sum(values: npt.NDArray[Any]) -> float:
    """The sum without NaN, which `verify` reports by another rule."""
    return float(np.sum(np.where(np.isnan(values), values.dtype.type(0), values), dtype=np.float64))


def _count_top1(block: Block, counts: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> int:
    """The number of rows in which no stored id is more probable than the next token."""
    rows = mask & (counts > 0)
    if not rows.any() or block.label_logprob is None:
        return 0
    exact = np.where(draw_mask(np.asarray(block.n_exact), np.asarray(block.n_draws)), -np.inf, block.logprobs)
    best = np.maximum.reduceat(exact, row_starts(counts)[rows])
    return int(np.count_nonzero(np.asarray(block.label_logprob)[rows] >= best))


def entry_quantiles(statistics: Iterable[Statistics]) -> dict[str, float]:
    """Mean, median and 95th percentile of ids per position, over many parts."""
    counts: dict[int, int] = {}
    for part in statistics:
        for n, times in part.entries:
            counts[n] = counts.get(n, 0) + times
    values, weights = np.array(sorted(counts), np.int64), np.array([counts[n] for n in sorted(counts)], np.int64)
    if not len(values):
        return {"mean": 0.0, "p50": 0.0, "p95": 0.0}
    reached = np.cumsum(weights) / weights.sum()
    quantile = {name: float(values[np.searchsorted(reached, q)]) for name, q in (("p50", 0.5), ("p95", 0.95))}
    return {"mean": float((values * weights).sum() / weights.sum()), **quantile}
