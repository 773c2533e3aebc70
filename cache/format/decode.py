"""From codes to numbers: ids, log-probabilities and the training weights of many rows at once.

In: the codes of a range of rows, as stored in chunks. Out: flat arrays, a row's exact ids first. Its inverse is
`encode.py`; `dense.py` is its slow twin.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.quantizers import Codes, Floats, complement_table, value_table
from kdpipe.cache.format.ragged import (
    Longs,
    Runs,
    exact_places,
    row_starts,
    undo_differences,
    undo_differences_of_draws,
)
from kdpipe.schemas.arrays import LinearQuantizer, LogOddsQuantizer, log_z_column
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import MAX_ENTRIES

Int32s = npt.NDArray[np.int32]
# Replaces an exact mass of 0, whose logarithm is then far outside every bound.
LEAST_MASS = np.float32(1e-37)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCodes:
    """The codes of a range of rows: streams of entries, and the columns for their weights."""

    n_exact: Longs
    n_draws: Longs
    ids: Codes
    times: Codes | None
    logprobs: Codes
    log_tail: Codes | None
    drawn_log_tail: Codes | None
    log_z: Codes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatEntries:
    """The flat entries of a range of rows."""

    ids: Int32s
    logprobs: Floats
    weights: Floats
    times: Int32s | None


class Decoder:
    """The quantizers of one cache as lookup tables."""

    def __init__(self, manifest: Manifest, ids_by_rank: Codes) -> None:
        self._targets = manifest.targets
        self._ids_by_rank = ids_by_rank.astype(np.int32)
        quantizers = {column.name: column.quantizer for column in manifest.arrays.row.columns}
        self._tables = {
            name: value_table(quantizer)
            for name, quantizer in quantizers.items()
            if isinstance(quantizer, LinearQuantizer | LogOddsQuantizer)
        }
        self._complement = {
            name: complement_table(quantizer)
            for name, quantizer in quantizers.items()
            if isinstance(quantizer, LogOddsQuantizer)
        }
        self._temperature = manifest.targets.target_temperature
        if manifest.arrays.logprob is not None:
            self._step = manifest.arrays.logprob.quantizer.step
            self._logprob = value_table(manifest.arrays.logprob.quantizer)

    def scalars(self, columns: dict[str, Codes]) -> dict[str, Floats]:
        """The numbers of every column that has a quantizer."""
        try:
            return {name: table.take(columns[name]) for name, table in self._tables.items()}
        except IndexError:
            raise CacheDamaged("a stored scalar code is out of range") from None

    def to_ids(self, ranks: Codes) -> Int32s:
        """Ids from frequency ranks."""
        try:
            return self._ids_by_rank.take(ranks)
        except IndexError:
            raise CacheDamaged("a stored id rank is outside the vocabulary") from None

    def entries(self, codes: EntryCodes) -> FlatEntries:
        """Ids, log p and weights of every entry."""
        exact = Runs.of(codes.n_exact)
        if not self._targets.has_draws:
            logprobs, weights = self._exact(codes, codes.logprobs, exact)
            return FlatEntries(ids=self.to_ids(codes.ids), logprobs=logprobs, weights=weights, times=None)
        places = exact_places(exact, codes.n_draws)
        ranks = undo_differences_of_draws(codes.ids, codes.n_exact, codes.n_draws)
        ranks[places] = codes.ids.take(places)
        times = self._times(codes)
        weights = self._draw_weights(codes, times, places)
        values = codes.logprobs.take(places) if self._targets.draw_values else codes.logprobs
        logprobs = self._draw_logprobs(codes, places)
        logprobs[places], weights[places] = self._exact(codes, values, exact)
        return FlatEntries(ids=self.to_ids(ranks), logprobs=logprobs, weights=weights, times=times)

    def _exact(self, codes: EntryCodes, values: Codes, exact: Runs) -> tuple[Floats, Floats]:
        """Log p at T=1 and weights of the exact ids, corrected so that a row's mass is 1 minus its tail."""
        logprobs = self._lookup(self._logprob, undo_differences(values, exact))
        probabilities: Floats = np.exp(logprobs)
        if codes.log_tail is None or not len(probabilities):
            return logprobs, probabilities
        sums = np.add.reduceat(probabilities, exact.starts)
        left = self._lookup(self._complement["log_tail"], codes.log_tail.take(exact.rows))
        correction = left - np.log(np.maximum(sums, LEAST_MASS))
        if not (np.abs(correction) <= self._step).all():
            raise CacheDamaged("exact mass and tail of a row do not sum to 1")
        logprobs += correction.take(exact.number)
        if self._temperature == 1.0:
            return logprobs, np.exp(logprobs, out=probabilities)
        return logprobs, self._training_weights(logprobs, codes, exact)

    def _training_weights(self, logprobs: Floats, codes: EntryCodes, exact: Runs) -> Floats:
        """At another target temperature p^(1/T)/Z, scaled to 1 minus the tail of the draws."""
        assert codes.drawn_log_tail is not None and codes.log_z is not None
        log_z = self._lookup(self._tables[log_z_column(self._temperature)], codes.log_z.take(exact.rows))
        weights: Floats = np.exp(logprobs / np.float32(self._temperature) - log_z.take(exact.number))
        mass = np.exp(self._lookup(self._complement["drawn_log_tail"], codes.drawn_log_tail.take(exact.rows)))
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = mass / np.add.reduceat(weights, exact.starts)
            off = np.abs(np.log(factor))
        if not (off <= 2 * self._step * max(1.0, 1.0 / self._temperature)).all():
            raise CacheDamaged("exact mass and tail of a row do not sum to 1 at the target temperature")
        weights *= factor.take(exact.number)
        return weights

    def _draw_logprobs(self, codes: EntryCodes, places: Longs) -> Floats:
        """Log p of draws that have one, for all entries; values of exact ids are set later."""
        if not self._targets.draw_values:
            return np.full(len(codes.ids), np.nan, np.float32)
        values = codes.logprobs.copy()
        # Differences, which may be out of range.
        values[places] = 0
        return self._lookup(self._logprob, values)

    def _times(self, codes: EntryCodes) -> Int32s | None:
        """How often each draw was drawn."""
        if codes.times is None:
            return None
        if int(codes.times.max(initial=0)) >= MAX_ENTRIES:
            raise CacheDamaged("an id was drawn more often than a row has draws")
        return codes.times.astype(np.int32) + np.int32(1)

    def _draw_weights(self, codes: EntryCodes, times: Int32s | None, places: Longs) -> Floats:
        """A row's draws share its tail evenly, or by how often each was drawn; values of exact ids are set later."""
        name = "log_tail" if self._temperature == 1.0 else "drawn_log_tail"
        tail = codes.log_tail if name == "log_tail" else codes.drawn_log_tail
        assert tail is not None
        mass: Floats = np.exp(self._lookup(self._tables[name], tail))
        counts = codes.n_exact + codes.n_draws
        if times is None:
            mass /= np.maximum(codes.n_draws, 1).astype(np.float32)
            return mass.repeat(counts)
        has = codes.n_draws > 0
        if has.any():
            mass[has] /= np.add.reduceat(times, row_starts(codes.n_draws[has]))
        weights: Floats = mass.repeat(counts)
        is_draw = np.ones(len(weights), bool)
        is_draw[places] = False
        weights[is_draw] *= times
        return weights

    def _lookup(self, table: Floats, codes: Codes) -> Floats:
        try:
            return table.take(codes)
        except IndexError:
            raise CacheDamaged("a stored log-probability code is out of range") from None
