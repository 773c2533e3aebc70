"""`Reducer`: full distributions on any device to a few ids and scalars per row; `to_block` makes a block of them.

In: logits, labels and random keys of positions. Out: a `ReducedRows` of fixed shapes, so that no step waits for a
device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.format.rows import Block, Bools, Floats
from kdpipe.pipeline.targets import sampler
from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.lanes import Lanes
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas.arrays import log_z_column
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import TargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedRows:
    """R reduced positions: a row has `n_exact` exact ids, then `n_draws` draws; the remaining slots are undefined.

    `scalars` have the names of the cache's columns. `finite` is false where a logit is NaN or plus infinity, or all are
    minus infinity: the rest of such a row is undefined.
    """

    n_exact_R: Tensor
    n_draws_R: Tensor
    ids_RK: Tensor
    logprobs_RK: Tensor
    scalars: Mapping[str, Tensor]
    finite_R: Tensor
    times_RK: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ReducedRows":
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def take(self, rows: Tensor) -> "ReducedRows":
        """Some rows, by number."""
        return self._map_tensors(lambda tensor: tensor[rows])

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> "ReducedRows":
        return ReducedRows(
            n_exact_R=change(self.n_exact_R),
            n_draws_R=change(self.n_draws_R),
            ids_RK=change(self.ids_RK),
            logprobs_RK=change(self.logprobs_RK),
            scalars={name: change(values) for name, values in self.scalars.items()},
            finite_R=change(self.finite_R),
            times_RK=None if self.times_RK is None else change(self.times_RK),
        )

    @staticmethod
    def joined(pieces: Sequence["ReducedRows"]) -> "ReducedRows":
        """The rows of some pieces concatenated."""
        times = [piece.times_RK for piece in pieces if piece.times_RK is not None]
        return ReducedRows(
            n_exact_R=torch.cat([piece.n_exact_R for piece in pieces]),
            n_draws_R=torch.cat([piece.n_draws_R for piece in pieces]),
            ids_RK=torch.cat([piece.ids_RK for piece in pieces]),
            logprobs_RK=torch.cat([piece.logprobs_RK for piece in pieces]),
            scalars={name: torch.cat([piece.scalars[name] for piece in pieces]) for name in pieces[0].scalars},
            finite_R=torch.cat([piece.finite_R for piece in pieces]),
            times_RK=torch.cat(times) if times else None,
        )


class Reducer:
    """Reduces logits a chunk at a time, in float32, and float64 where there is one number per entry."""

    def __init__(self, request: TargetRequest, device: torch.device, starts_word: Tensor | None = None) -> None:
        """`starts_word` marks the ids that start a new word; the boundary scalar needs it."""
        targets = request.targets
        self._targets = targets
        self._sampler = sampler(targets.keep, request.vocabulary_size)
        self._lanes = Lanes(request.vocabulary_size, device)
        self._starts_P: Tensor | None = None
        if targets.boundary:
            if starts_word is None or len(starts_word) != request.vocabulary_size:
                raise ConfigError("boundary_logprob needs a mask of the ids that start a new word")
            self._starts_P = self._lanes.widened(starts_word.to(device))
        # From high to low, so that the next is a square; exact ids must be known at 1.
        self._temperatures = sorted({1.0, *targets.temperatures}, reverse=True)
        if targets.target_temperature < 1:
            self._temperatures.append(1.0)

    def reduce(self, logits_RV: Tensor, labels_R: Tensor, keys_R: Tensor) -> ReducedRows:
        """Reduce the first `vocabulary_size` logits of each row, given its next token and key."""
        pieces = self._lanes.map(self._reduce_chunk, logits_RV, labels_R, keys_R)
        return ReducedRows.joined(pieces)

    def _reduce_chunk(self, chunk: LogitChunk, logits_RV: Tensor, labels_R: Tensor, keys_R: Tensor) -> ReducedRows:
        n = len(logits_RV)
        finite_R = chunk.load(logits_RV[:, : chunk.vocabulary_size])
        keys_C = torch.nn.functional.pad(keys_R, (0, chunk.n_rows - n))
        scalars: dict[str, Tensor] = {}
        totals: dict[float, Tensor] = {}
        kept: KeptEntries | None = None
        for temperature in self._temperatures:
            chunk.at(temperature)
            totals[temperature] = chunk.total_C.double()
            if kept is None and temperature == self._targets.target_temperature and self._sampler is not None:
                kept = self._sampler.keep(chunk, keys_C)
            if kept is not None and temperature in (1.0, self._targets.target_temperature):
                name = "log_tail" if temperature == 1.0 else "drawn_log_tail"
                scalars[name] = (chunk.total_without(kept.ids_CK, _is_exact(kept)).double() / totals[temperature]).log()
            if temperature == 1.0:
                scalars |= self._scalars_at_one(chunk, totals[1.0])
        log_total_C = totals[1.0].log()
        for temperature in self._targets.temperatures:
            scalars[log_z_column(temperature)] = totals[temperature].log() - log_total_C / temperature
        labels_R1 = labels_R[:, None].long()
        scalars = {name: values[:n] for name, values in scalars.items()}
        scalars["label_logprob"] = _logprobs(chunk.shifted_CP[:n].gather(1, labels_R1), log_total_C[:n]).squeeze(1)
        return _reduced(chunk, kept, scalars, finite_R, log_total_C)

    def _scalars_at_one(self, chunk: LogitChunk, total_C: Tensor) -> dict[str, Tensor]:
        """Scalars that are computed from powers at T = 1."""
        scalars: dict[str, Tensor] = {}
        if self._targets.entropy:
            scalars["entropy"] = (total_C.log() - chunk.mean_shifted()).clamp(min=0)
        if self._starts_P is not None:
            scalars["boundary_logprob"] = (chunk.total_of(self._starts_P) / total_C).log().clamp(max=0)
        return scalars


def _is_exact(kept: KeptEntries) -> Tensor:
    return torch.arange(kept.ids_CK.shape[1], device=kept.ids_CK.device) < kept.n_exact_C[:, None]


def _logprobs(shifted: Tensor, log_total: Tensor) -> Tensor:
    """Log p at T=1; minus infinity where the logit was."""
    exact = (shifted.double() - log_total[:, None]).clamp(max=0)
    return exact.masked_fill(shifted < -1e29, -torch.inf)


def _reduced(
    chunk: LogitChunk, kept: KeptEntries | None, scalars: Mapping[str, Tensor], finite_R: Tensor, log_total_C: Tensor
) -> ReducedRows:
    n = len(finite_R)
    if kept is None:
        nothing = finite_R.new_zeros((n, 0), dtype=torch.int32)
        zeros = finite_R.new_zeros(n, dtype=torch.int32)
        kept_n, draws_n, ids, logprobs, times = zeros, zeros, nothing, nothing.float(), None
    else:
        kept_n, draws_n = kept.n_exact_C[:n].int(), kept.n_draws_C[:n].int()
        ids = kept.ids_CK[:n].int()
        logprobs = _logprobs(chunk.shifted_CP.gather(1, kept.ids_CK), log_total_C)[:n].float()
        times = None if kept.times_CK is None else kept.times_CK[:n].int()
    return ReducedRows(
        n_exact_R=kept_n,
        n_draws_R=draws_n,
        ids_RK=ids,
        logprobs_RK=logprobs,
        scalars={name: values.float() for name, values in scalars.items()},
        finite_R=finite_R,
        times_RK=times,
    )


def to_block(
    pieces: Sequence[ReducedRows],
    loss_mask: Bools,
    targets: TargetSpec,
    hidden: Mapping[int, Floats] | None = None,
    state: Floats | None = None,
) -> Block:
    """The rows of a batch as a block; the pieces, on the CPU, are its positions in order."""
    kept = ReducedRows.joined(pieces)
    places = np.flatnonzero(loss_mask)
    if len(places) != len(kept.n_exact_R):
        raise ValueError(f"{len(places)} positions are trained on, {len(kept.n_exact_R)} were reduced")
    n_exact, n_draws = kept.n_exact_R.numpy(), kept.n_draws_R.numpy()
    slots = np.arange(kept.ids_RK.shape[1])
    is_entry = slots < (n_exact + n_draws)[:, None]
    is_draw = is_entry & (slots >= n_exact[:, None])
    logprobs = kept.logprobs_RK.numpy()
    if not targets.draw_values:
        logprobs = np.where(is_draw, np.float32(np.nan), logprobs)

    def spread(values: Tensor) -> Floats:
        rows = np.full(len(loss_mask), np.nan, np.float32)
        rows[places] = values.numpy()
        return rows

    counts = np.zeros((2, len(loss_mask)), np.int32)
    counts[:, places] = n_exact, n_draws
    scalars = {name: spread(values) for name, values in kept.scalars.items() if "@" not in name}
    return Block(
        n_exact=counts[0],
        n_draws=counts[1],
        ids=kept.ids_RK.numpy()[is_entry],
        logprobs=logprobs[is_entry],
        log_z={t: spread(kept.scalars[log_z_column(t)]) for t in targets.temperatures},
        times=None if kept.times_RK is None else kept.times_RK.numpy()[is_draw],
        hidden=hidden or {},
        state=state,
        **scalars,
    )
