"""Requantize coded rows: entries that stay keep their codes, so nothing is rounded twice.

In: a stored sequence, its decoded rows, and one random key per row. Out: the codes under the new manifest. Only counts
and tail masses are encoded again: an id that is no longer exact adds its weight to the tail.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.cache.format.encode import CodedRows
from kdpipe.cache.format.quantizers import Codes, to_codes, value_table
from kdpipe.cache.format.ragged import Runs, differences, draw_mask, next_tokens, row_starts, undo_differences
from kdpipe.cache.format.rows import Rows
from kdpipe.cache.reshape.coded_sequences import EntryCounts
from kdpipe.cache.reshape.recode import open_ranks
from kdpipe.pipeline.targets import resampler
from kdpipe.pipeline.targets.draws import GOLDEN, key_of, mixed
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries
from kdpipe.schemas.arrays import MISSING, LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.manifest import Manifest

# Entries processed at a time, counting `max_entries` for each row.
BLOCK_ENTRIES = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class _FlatEntries:
    """All entries of some rows; `values` are codes of log p (0 for draws without one)."""

    counts: EntryCounts
    is_draw: npt.NDArray[np.bool_]
    ranks: Codes
    values: Codes
    weights: npt.NDArray[np.float64]
    p: npt.NDArray[np.float64]
    times: Codes


@final
class RowRequantizer:
    """Requantizes the rows of one cache."""

    def __init__(self, source: Manifest, manifest: Manifest) -> None:
        self._source, self._manifest = source, manifest
        self._is_resampled = source.targets.keep != manifest.targets.keep
        names = [column.name for column in source.arrays.row.columns]
        self._columns = [names.index(column.name) for column in manifest.arrays.row.columns]
        self._places = {column.name: n for n, column in enumerate(manifest.arrays.row.columns)}

    def rows(self, coded: CodedRows, rows: Rows, keys_R: Longs) -> CodedRows:
        """The same rows under the new manifest."""
        flat = self._flat(coded, rows)
        vectors = {
            name: vector for name, vector in coded.vectors.items() if name != "hidden" or self._manifest.hidden.rows
        }
        columns = coded.columns[:, self._columns]
        if not self._is_resampled:
            return replace(coded, columns=columns, vectors=vectors, logprobs=self._values(flat.values, flat.counts))
        places, times, counts = self._kept_entries(flat, keys_R)
        return CodedRows(
            columns=self._with_labels(self._with_masses(columns, flat, counts), rows, places, counts),
            ids=_with_differences(flat.ranks[places], counts),
            times=times,
            logprobs=self._values(flat.values[places], counts),
            vectors=vectors,
        )

    def _flat(self, coded: CodedRows, rows: Rows) -> _FlatEntries:
        counts = EntryCounts.of(coded.columns, self._source)
        is_draw = draw_mask(counts.exact, counts.draws)
        exact = coded.logprobs[~is_draw] if self._source.targets.draw_values else coded.logprobs
        values = np.zeros(len(is_draw), np.uint32)
        if self._source.targets.draw_values:
            values[is_draw] = coded.logprobs[is_draw]
        values[~is_draw] = undo_differences(exact, Runs.of(counts.exact))
        return _FlatEntries(
            counts=counts,
            is_draw=is_draw,
            ranks=open_ranks(coded.ids, counts),
            values=values,
            weights=rows.weights.astype(np.float64),
            p=np.where(is_draw, 0.0, np.exp(rows.logprobs.astype(np.float64))),
            times=coded.times,
        )

    def _kept_entries(self, flat: _FlatEntries, keys_R: Longs) -> tuple[Longs, Codes, EntryCounts]:
        """The entries that stay, in their new order; the times of each draw; the counts of each row."""
        choose = resampler(self._manifest.targets.keep).resample
        starts = row_starts(flat.counts.exact + flat.counts.draws)
        places, times, n_exact, n_draws = [], [], [], []
        n_rows = max(1, BLOCK_ENTRIES // self._source.targets.max_entries)
        for first in range(0, len(starts), n_rows):
            block = slice(first, first + n_rows)
            choice = choose(_padded(flat, block), keys_R[block])
            is_entry, is_draw = _is_entry(choice)
            places.append((starts[block, None] + choice.slots_RK)[is_entry])
            times.append(choice.times_RK[is_draw])
            n_exact.append(choice.n_exact_R)
            n_draws.append(choice.n_draws_R)
        exact, draws = np.concatenate(n_exact), np.concatenate(n_draws)
        values = exact + draws if self._manifest.targets.draw_values else exact
        repeats = np.concatenate(times) - 1 if self._manifest.arrays.times is not None else np.zeros(0)
        return np.concatenate(places), repeats.astype(np.uint32), EntryCounts(exact=exact, draws=draws, values=values)

    def _values(self, values: Codes, counts: EntryCounts) -> Codes:
        """Codes of log p as stored: differences for exact ids, plain values for draws."""
        is_draw = draw_mask(counts.exact, counts.draws)
        exact = differences(values[~is_draw], counts.exact)
        if not self._manifest.targets.draw_values:
            return exact
        codes = values.copy()
        codes[~is_draw] = exact
        return codes

    def _with_masses(self, columns: Codes, old: _FlatEntries, counts: EntryCounts) -> Codes:
        """The columns with new counts; the mass of ids that are no longer exact is added to the tail."""
        columns = columns.copy()
        for name, number in (("n_exact", counts.exact), ("n_draws", counts.draws)):
            if name in self._places:
                columns[:, self._places[name]] = number
        changed = np.flatnonzero(counts.exact != old.counts.exact)
        for name, weights in (("log_tail", old.p), ("drawn_log_tail", old.weights)):
            if name in self._places:
                place = self._places[name]
                quantizer = self._manifest.arrays.row.columns[place].quantizer
                assert isinstance(quantizer, LogOddsQuantizer)
                tails = np.exp(value_table(quantizer)[columns[changed, place]].astype(np.float64))
                tails += _lost_weight(weights, old, counts.exact)[changed]
                with np.errstate(divide="ignore"):
                    columns[changed, place] = to_codes(quantizer, np.minimum(np.log(tails), 0.0), name)
        return columns

    def _with_labels(self, columns: Codes, rows: Rows, places: Longs, counts: EntryCounts) -> Codes:
        """The columns with the log p of next tokens that are no longer exact ids."""
        place = self._places["label_logprob"]
        quantizer = self._manifest.arrays.row.columns[place].quantizer
        assert isinstance(quantizer, LinearQuantizer) and rows.label_logprob is not None
        known, _ = next_tokens(rows.tokens, rows.ids[places], counts.exact, counts.draws)
        codes = np.where(
            columns[:, place] == MISSING, to_codes(quantizer, rows.label_logprob, "label_logprob"), columns[:, place]
        )
        codes[known] = MISSING
        columns[:, place] = codes
        return columns


def _with_differences(ranks: Codes, counts: EntryCounts) -> Codes:
    """Ranks as stored: those of draws as differences."""
    is_draw = draw_mask(counts.exact, counts.draws)
    ranks = ranks.copy()
    ranks[is_draw] = differences(ranks[is_draw], counts.draws)
    return ranks


def _lost_weight(weights: npt.NDArray[np.float64], old: _FlatEntries, n_exact: Longs) -> npt.NDArray[np.float64]:
    """The weight of each row's formerly exact ids beyond its first `n_exact`."""
    counts = old.counts.exact + old.counts.draws
    row_of = np.repeat(np.arange(len(counts)), counts)
    slots = np.arange(len(row_of)) - row_starts(counts)[row_of]
    lost = ~old.is_draw & (slots >= n_exact[row_of])
    return np.bincount(row_of[lost], weights[lost], minlength=len(counts)).astype(np.float64)


def _padded(flat: _FlatEntries, block: slice) -> PaddedEntries:
    """The entries of some rows, padded to equal length."""
    exact, draws = flat.counts.exact[block], flat.counts.draws[block]
    counts = flat.counts.exact + flat.counts.draws
    slots = np.arange(max(1, int(counts[block].max(initial=0))))
    places = np.minimum(row_starts(counts)[block, None] + slots, max(len(flat.ranks) - 1, 0))
    times = np.ones(places.shape, np.int64)
    if len(flat.times):
        among_draws = row_starts(flat.counts.draws)[block, None] + slots - exact[:, None]
        times = flat.times[np.clip(among_draws, 0, len(flat.times) - 1)].astype(np.int64) + 1
    if not len(flat.ranks):
        zeros = np.zeros(places.shape, np.int64)
        return PaddedEntries(n_exact_R=exact, n_draws_R=draws, weights_RK=zeros * 0.0, order_RK=zeros, times_RK=times)
    return PaddedEntries(
        n_exact_R=exact,
        n_draws_R=draws,
        weights_RK=flat.weights[places],
        order_RK=flat.ranks[places].astype(np.int64),
        times_RK=times,
    )


def _is_entry(choice: EntryChoice) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which slots of a choice are entries, and which are draws."""
    slots = np.arange(choice.slots_RK.shape[1])
    is_entry = slots < (choice.n_exact_R + choice.n_draws_R)[:, None]
    return is_entry, is_entry & (slots >= choice.n_exact_R[:, None])


def resample_keys(cache_id: str, seed: int, digests: npt.NDArray[np.uint8], lengths: Longs) -> Longs:
    """One random key per row of consecutive documents, from the source, the seed, token digests and positions.

    With the cache_id of the source, new draws are independent of the old ones: with equal keys, an id that was drawn
    once would be drawn again too often.
    """
    words = [int(cache_id[i : i + 15], 16) for i in range(0, 60, 15)]
    halves = torch.from_numpy(np.ascontiguousarray(digests).view("<i8").astype(np.int64).reshape(-1, 2))
    keys = mixed(mixed(key_of(seed, *words) + GOLDEN + halves[:, 0]) + GOLDEN + halves[:, 1])
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(int(lengths.sum())) - np.repeat(starts, lengths))
    keys_R: Longs = mixed(keys.repeat_interleave(torch.from_numpy(lengths)) + GOLDEN + positions).numpy()
    return keys_R
