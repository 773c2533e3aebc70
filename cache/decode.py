"""From codes to numbers: ids, log-probabilities and the training weights of many rows at once.

In: the codes of a range of rows, as the chunks hold them. Out: flat arrays, a row's exact ids first.
Before it: `laws.py`. After it: `part_reader.py` feeds it. Its inverse is `encode.py`; `dense.py` is its slow twin.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.entries import Bools, Longs, entry_places, row_starts, undo_differences
from kdpipe.cache.laws import Codes, Floats, complement_table, value_table
from kdpipe.schemas.arrays import LinearLaw, LogOddsLaw, log_z_column
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import MAX_ENTRIES

Int32s = npt.NDArray[np.int32]
# Stands for an exact mass of nothing, whose logarithm is then far outside every bound.
LEAST_MASS = np.float32(1e-37)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCodes:
    """The codes of a range of rows: streams of entries, and the columns that weigh them."""

    n_exact: Longs
    n_draws: Longs
    ids: Codes
    times: Codes | None
    logprobs: Codes
    log_tail: Codes | None
    drawn_log_tail: Codes | None
    log_z: Codes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The flat entries of a range of rows."""

    ids: Int32s
    logprobs: Floats
    weights: Floats
    times: Int32s | None


class Decoder:
    """The laws of one cache as tables, ready to be looked up."""

    def __init__(self, manifest: Manifest, ids_by_rank: Codes) -> None:
        self._targets = manifest.targets
        self._ids_by_rank = ids_by_rank.astype(np.int32)
        laws = {column.name: column.law for column in manifest.arrays.row.columns}
        self._tables = {name: value_table(law) for name, law in laws.items() if isinstance(law, LinearLaw | LogOddsLaw)}
        self._complement = {name: complement_table(law) for name, law in laws.items() if isinstance(law, LogOddsLaw)}
        self._temperature = manifest.targets.target_temperature
        if manifest.arrays.logprob is not None:
            self._step = manifest.arrays.logprob.law.step
            self._logprob = value_table(manifest.arrays.logprob.law)

    def scalars(self, columns: dict[str, Codes]) -> dict[str, Floats]:
        """The numbers of every column that has a law."""
        try:
            return {name: table.take(columns[name]) for name, table in self._tables.items()}
        except IndexError:
            raise CacheDamaged("the code of a scalar lies outside its law") from None

    def to_ids(self, ranks: Codes) -> Int32s:
        """Ids from frequency ranks."""
        try:
            return self._ids_by_rank.take(ranks)
        except IndexError:
            raise CacheDamaged("the rank of an id lies outside the vocabulary") from None

    def entries(self, codes: EntryCodes) -> Entries:
        """Ids, log p and weights of every entry."""
        if not self._targets.has_draws:
            logprobs, weights = self._exact(codes, codes.logprobs)
            return Entries(ids=self.to_ids(codes.ids), logprobs=logprobs, weights=weights, times=None)
        exact, draws = entry_places(codes.n_exact, codes.n_draws)
        ranks = codes.ids.copy()
        ranks[draws] = undo_differences(codes.ids.take(draws), codes.n_draws)
        with_values = self._targets.draw_values
        all_logprobs = np.full(len(ranks), np.float32(np.nan))
        all_weights = np.empty(len(ranks), np.float32)
        values = codes.logprobs.take(exact) if with_values else codes.logprobs
        all_logprobs[exact], all_weights[exact] = self._exact(codes, values)
        if with_values:
            all_logprobs[draws] = self._lookup(self._logprob, codes.logprobs.take(draws))
        if codes.times is not None and int(codes.times.max(initial=0)) >= MAX_ENTRIES:
            raise CacheDamaged("an id has more times than a row has draws")
        times = None if codes.times is None else codes.times.astype(np.int32) + np.int32(1)
        all_weights[draws] = self._draw_weights(codes, times)
        return Entries(ids=self.to_ids(ranks), logprobs=all_logprobs, weights=all_weights, times=times)

    def _exact(self, codes: EntryCodes, values: Codes) -> tuple[Floats, Floats]:
        """Log p at T=1 and weights of the exact ids, corrected so that a row's mass is what its tail leaves."""
        values = undo_differences(values, codes.n_exact)
        logprobs = self._lookup(self._logprob, values)
        probabilities: Floats = np.exp(logprobs)
        if codes.log_tail is None:
            return logprobs, probabilities
        has = codes.n_exact > 0
        counts, tail = codes.n_exact[has], codes.log_tail[has]
        if not len(counts):
            return logprobs, probabilities
        sums = np.add.reduceat(probabilities, row_starts(counts))
        correction = self._lookup(self._complement["log_tail"], tail) - np.log(np.maximum(sums, LEAST_MASS))
        if not (np.abs(correction) <= self._step).all():
            raise CacheDamaged("exact mass and tail of a row do not sum to 1")
        logprobs += np.repeat(correction, counts)
        return logprobs, self._weigh(logprobs, codes, has, counts)

    def _weigh(self, logprobs: Floats, codes: EntryCodes, has: Bools, counts: Longs) -> Floats:
        """exp(log p), or at another target temperature p^(1/T)/Z, made to sum to what the draws leave."""
        if self._temperature == 1.0:
            return np.exp(logprobs)
        assert codes.drawn_log_tail is not None and codes.log_z is not None
        log_z = self._lookup(self._tables[log_z_column(self._temperature)], codes.log_z[has])
        weights: Floats = np.exp(logprobs / np.float32(self._temperature) - np.repeat(log_z, counts))
        mass = np.exp(self._lookup(self._complement["drawn_log_tail"], codes.drawn_log_tail[has]))
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = mass / np.add.reduceat(weights, row_starts(counts))
            off = np.abs(np.log(factor))
        if not (off <= 2 * self._step * max(1.0, 1.0 / self._temperature)).all():
            raise CacheDamaged("exact mass and tail of a row do not sum to 1 at the target temperature")
        weights *= np.repeat(factor, counts)
        return weights

    def _draw_weights(self, codes: EntryCodes, times: Int32s | None) -> Floats:
        """A row's draws share its tail evenly, or by how often each was drawn."""
        name = "log_tail" if self._temperature == 1.0 else "drawn_log_tail"
        tail = codes.log_tail if name == "log_tail" else codes.drawn_log_tail
        assert tail is not None
        mass = np.exp(self._lookup(self._tables[name], tail))
        if times is None:
            return np.repeat(mass / np.maximum(codes.n_draws, 1).astype(np.float32), codes.n_draws)
        has = codes.n_draws > 0
        totals = np.add.reduceat(times, row_starts(codes.n_draws[has])) if has.any() else np.zeros(0, np.int64)
        return np.repeat((mass[has] / totals).astype(np.float32), codes.n_draws[has]) * times.astype(np.float32)

    def _lookup(self, table: Floats, codes: Codes) -> Floats:
        try:
            return table.take(codes)
        except IndexError:
            raise CacheDamaged("the code of a log-probability lies outside its law") from None
