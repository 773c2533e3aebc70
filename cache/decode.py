"""From codes to numbers: ids, log-probabilities and the training weights of many rows at once.

In: the codes of a range of rows, as the chunks hold them. Out: flat arrays, a row's exact ids first.
Before it: `laws.py`. After it: `part_reader.py` feeds it. Its inverse is `encode.py`; `dense.py` is its slow twin.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.entries import draw_mask, row_starts, undo_differences
from kdpipe.cache.laws import Codes, Floats, complement_table, value_table
from kdpipe.schemas.arrays import CODE_LIMIT, LinearLaw, LogOddsLaw, log_z_column
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCodes:
    """The codes of a range of rows: streams of entries, and the columns that weigh them."""

    n_exact: npt.NDArray[np.int64]
    n_draws: npt.NDArray[np.int64]
    ids: Codes
    times: Codes | None
    logprobs: Codes
    log_tail: Codes | None
    drawn_log_tail: Codes | None
    log_z: Codes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The flat entries of a range of rows."""

    is_draw: npt.NDArray[np.bool_]
    ids: Int32s
    logprobs: Floats
    weights: Floats
    times: Int32s | None


class Decoder:
    """The laws of one cache as tables, ready to be looked up."""

    def __init__(self, manifest: Manifest, ids_by_rank: Codes) -> None:
        self._targets = manifest.targets
        self._vocabulary_size = manifest.vocabulary_size
        self._ids_by_rank = ids_by_rank.astype(np.int32)
        laws = {column.name: column.law for column in manifest.arrays.row.columns}
        self._laws = {name: law for name, law in laws.items() if isinstance(law, LinearLaw | LogOddsLaw)}
        self._temperature = manifest.targets.target_temperature
        if manifest.arrays.logprob is not None:
            self._step = manifest.arrays.logprob.law.step
            self._logprob = value_table(manifest.arrays.logprob.law)
            self._probability = np.exp(self._logprob)

    def scalars(self, name: str, codes: Codes) -> Floats:
        """The numbers of a column."""
        if int(codes.max(initial=0)) >= CODE_LIMIT:
            raise CacheDamaged(f"a code of {name} lies outside its law")
        return np.take(value_table(self._laws[name]), codes)

    def tokens(self, codes: Codes) -> Int32s:
        """Token ids from ranks."""
        return self._to_ids(codes)

    def entries(self, codes: EntryCodes) -> Entries:
        """Ids, log p and weights of every entry."""
        is_draw = draw_mask(codes.n_exact, codes.n_draws)
        ranks = self._ranks(codes, is_draw)
        exact, weights, draw_values = self._exact(codes, is_draw)
        if not self._targets.has_draws:
            return Entries(is_draw=is_draw, ids=self._to_ids(ranks), logprobs=exact, weights=weights, times=None)
        all_logprobs = np.empty(len(ranks), np.float32)
        all_weights = np.empty(len(ranks), np.float32)
        is_exact = ~is_draw
        all_logprobs[is_exact], all_weights[is_exact] = exact, weights
        all_logprobs[is_draw] = np.float32(np.nan) if draw_values is None else draw_values
        times = None if codes.times is None else codes.times.astype(np.int32) + 1
        all_weights[is_draw] = self._draw_weights(codes, times)
        return Entries(
            is_draw=is_draw, ids=self._to_ids(ranks), logprobs=all_logprobs, weights=all_weights, times=times
        )

    def _to_ids(self, ranks: Codes) -> Int32s:
        if int(ranks.max(initial=0)) >= self._vocabulary_size:
            raise CacheDamaged("the rank of an id lies outside the vocabulary")
        return np.take(self._ids_by_rank, ranks)

    def _ranks(self, codes: EntryCodes, is_draw: npt.NDArray[np.bool_]) -> Codes:
        if not self._targets.has_draws:
            return codes.ids
        ranks = codes.ids.copy()
        ranks[is_draw] = undo_differences(codes.ids[is_draw], codes.n_draws)
        return ranks

    def _exact(self, codes: EntryCodes, is_draw: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats | None]:
        """Log p at T=1 and weights of the exact ids, and the log p of draws where they carry one."""
        values, draw_values = codes.logprobs, None
        if self._targets.draw_values:
            draw_values, values = self._lookup(values[is_draw]), values[~is_draw]
        values = undo_differences(values, codes.n_exact)
        logprobs = self._lookup(values)
        if codes.log_tail is None:
            return logprobs, np.take(self._probability, values), draw_values
        has = codes.n_exact > 0
        counts = codes.n_exact[has]
        law = self._laws["log_tail"]
        assert isinstance(law, LogOddsLaw)
        with np.errstate(divide="ignore", invalid="ignore"):
            sums = (
                np.add.reduceat(np.take(self._probability, values), row_starts(counts))
                if len(counts)
                else np.zeros(0, np.float32)
            )
            correction = np.take(complement_table(law), codes.log_tail[has]) - np.log(sums)
        if not (np.abs(correction) <= self._step).all():
            raise CacheDamaged("exact mass and tail of a row do not sum to 1")
        logprobs += np.repeat(correction, counts)
        return logprobs, self._weigh(logprobs, codes, has, counts), draw_values

    def _weigh(
        self, logprobs: Floats, codes: EntryCodes, has: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]
    ) -> Floats:
        """exp(log p), or at another target temperature p^(1/T)/Z, made to sum to what the draws leave."""
        if self._temperature == 1.0:
            return np.exp(logprobs)
        law = self._laws["drawn_log_tail"]
        assert isinstance(law, LogOddsLaw) and codes.drawn_log_tail is not None and codes.log_z is not None
        log_z = self.scalars(log_z_column(self._temperature), codes.log_z[has])
        weights: Floats = np.exp(logprobs / np.float32(self._temperature) - np.repeat(log_z, counts))
        mass = np.exp(np.take(complement_table(law), codes.drawn_log_tail[has]))
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = mass / np.add.reduceat(weights, row_starts(counts)) if len(counts) else mass
        if not np.isfinite(factor).all():
            raise CacheDamaged("the weights of a row at the target temperature do not sum to a number")
        weights *= np.repeat(factor, counts)
        return weights

    def _draw_weights(self, codes: EntryCodes, times: Int32s | None) -> Floats:
        """A row's draws share its tail evenly, or by how often each was drawn."""
        name = "log_tail" if self._temperature == 1.0 else "drawn_log_tail"
        tail = codes.log_tail if name == "log_tail" else codes.drawn_log_tail
        assert tail is not None
        mass = np.exp(self.scalars(name, tail))
        if times is None:
            return np.repeat(mass / np.maximum(codes.n_draws, 1).astype(np.float32), codes.n_draws)
        has = codes.n_draws > 0
        totals = np.add.reduceat(times, row_starts(codes.n_draws[has])) if has.any() else np.zeros(0, np.int64)
        return np.repeat((mass[has] / totals).astype(np.float32), codes.n_draws[has]) * times.astype(np.float32)

    def _lookup(self, values: Codes) -> Floats:
        if int(values.max(initial=0)) >= CODE_LIMIT:
            raise CacheDamaged("the code of a log-probability lies outside its law")
        return np.take(self._logprob, values)
