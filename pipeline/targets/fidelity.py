"""`FidelityMeter`: distance of stored targets to the full distributions, measured while the logits exist.

In: logits of a sample of positions, their reduced rows, the states behind them. Out: the part's `Fidelity`. The
gradient of a student's output head is G = sum of (q - t) h^T over rows, t its target and h its state. The student here
is a stand-in: q = 0.7 p + 0.3 of the corpus's unigram, h the teacher's own state, projected by random signs.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdpipe.cache.format.quantizers import complement_table, to_codes, value_table
from kdpipe.pipeline.targets.hidden_states import Projector
from kdpipe.pipeline.targets.reduce import ReducedRows
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas.arrays import LinearQuantizer, LogOddsQuantizer, default_arrays, log_z_column
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.targets import HiddenSpec, RandomProjection, TargetSpec, Vector, WholeState

TEACHER_SHARE = 0.7
HEAD_WIDTH = 64
# Avoids division by zero.
TINY = 1e-30
# Numbers of dense distributions that are collected for one matrix product.
WAITING_NUMBERS = 1 << 22
# Ids whose gradients are in memory at a time.
GRADIENT_IDS = 1 << 13
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ComparedRows:
    """Rows on the device: the reduced rows, the true p of their exact ids and tail, and inputs of the gradients.

    `share` is the mass of the teacher's tail over that of the student's there, `states` are projected.
    """

    reduced: ReducedRows
    p_SK: Tensor
    tail_S: Tensor
    share_S: Tensor | None = None
    states_SW: Tensor | None = None


class Sample:
    """The compared rows of one batch; added to the meter once its result is taken."""

    def __init__(self, meter: "FidelityMeter") -> None:
        self._meter = meter
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.compared: list[_ComparedRows] = []
        self.dense: Tensor | None = None
        self.bucket: Tensor | None = None

    def add(self, logits_SV: Tensor, reduced: ReducedRows, states_SH: Tensor | None) -> None:
        """Compare some positions; on a GPU this returns before the work is done."""
        meter = self._meter
        p_SV = torch.softmax(logits_SV[:, : meter.vocabulary_size].float() / meter.targets.target_temperature, dim=1)
        ids_SK = reduced.ids_RK.long()
        is_exact_SK = torch.arange(ids_SK.shape[1], device=ids_SK.device) < reduced.n_exact_R[:, None]
        p_SK = p_SV.gather(1, ids_SK).masked_fill(~is_exact_SK, 0.0)
        p_SV.scatter_add_(1, ids_SK, -p_SK)
        tail_S = p_SV.sum(dim=1)
        p_SV.scatter_add_(1, ids_SK, p_SK)
        states_SW = share_S = None
        if states_SH is not None and meter.projector is not None and meter.unigram_V is not None:
            states_SW = meter.projector.project(0, states_SH)
            others_S = (1 - (meter.unigram_V[ids_SK] * is_exact_SK).sum(dim=1)).clamp_min(0)
            # Where every id is kept there is no tail, and its share does not matter.
            share_S = tail_S / (TEACHER_SHARE * tail_S + (1 - TEACHER_SHARE) * others_S).clamp_min(TINY)
            self._waiting.append((p_SV, states_SW, share_S))
            if sum(p.numel() for p, _, _ in self._waiting) >= WAITING_NUMBERS:
                self.flush()
        self.compared.append(
            _ComparedRows(reduced=reduced, p_SK=p_SK, tail_S=tail_S, share_S=share_S, states_SW=states_SW)
        )

    def flush(self) -> None:
        """Multiply the collected rows."""
        if not self._waiting:
            return
        p_SV, states_SW, share_S = (torch.cat(tensors) for tensors in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.dense = _added(self.dense, p_SV, states_SW)
        if not self._meter.targets.has_draws:
            self.bucket = _added(self.bucket, p_SV, states_SW * (1 - share_S[:, None]))


def _added(sum_VW: Tensor | None, p_SV: Tensor, states_SW: Tensor) -> Tensor:
    return p_SV.T @ states_SW if sum_VW is None else sum_VW.addmm_(p_SV.T, states_SW)


class FidelityMeter:
    """Adds up samples until `result` is called, which resets it."""

    def __init__(self, request: TargetRequest, hidden_width: int | None, device: torch.device) -> None:
        """Without a hidden width or a unigram no gradients are compared."""
        self.targets, self.vocabulary_size = request.targets, request.vocabulary_size
        arrays = default_arrays(request.targets, HiddenSpec(), request.vocabulary_size)
        self._quantizers: dict[str, LinearQuantizer | LogOddsQuantizer] = {
            column.name: column.quantizer
            for column in arrays.row.columns
            if isinstance(column.quantizer, LinearQuantizer | LogOddsQuantizer)
        }
        if arrays.logprob is not None:
            self._quantizers["logprob"] = arrays.logprob.quantizer
        self.unigram_V: Tensor | None = None
        self.projector: Projector | None = None
        if hidden_width is not None and request.unigram is not None:
            self.unigram_V = torch.from_numpy(request.unigram).float().to(device)
            self.projector = Projector([_head_vector(hidden_width, request.seed)], (hidden_width,), device)
        self._begin()

    def _begin(self) -> None:
        self._n_rows = 0
        self._sums = np.zeros(2)
        self._kept: dict[float, float] = dict.fromkeys((1.0, *self.targets.temperatures), 0.0)
        self._dense: Tensor | None = None
        self._bucket: Tensor | None = None
        self._states_2W = torch.zeros(2, 0, dtype=torch.float64)
        self._sparse: Tensor | None = None

    def sample(self) -> Sample:
        """Start the sample of a batch."""
        return Sample(self)

    def count(self, sample: Sample) -> None:
        """Add a sample to the sums; this waits for the device."""
        sample.flush()
        for compared in sample.compared:
            if self.targets.has_entries:
                self._compare(compared)
        for name in ("dense", "bucket"):
            more, own = getattr(sample, name), f"_{name}"
            if more is not None:
                setattr(self, own, more if getattr(self, own) is None else getattr(self, own).add_(more))

    def result(self) -> Fidelity | None:
        """The fidelity of the rows since the last call; None when there were none."""
        n = self._n_rows
        fidelity = None
        if n:
            fidelity = Fidelity(
                n_rows=n,
                kl_nats=float(self._sums[0]) / n,
                total_variation=float(self._sums[1]) / n,
                kept_mass=tuple((temperature, mass / n) for temperature, mass in self._kept.items()),
                gradient_angle_degrees=self._angle(),
            )
        self._begin()
        return fidelity

    def _compare(self, compared: _ComparedRows) -> None:
        rows = compared.reduced.to("cpu")
        slots = np.arange(rows.ids_RK.shape[1])
        n_exact, n_draws = rows.n_exact_R.numpy()[:, None], rows.n_draws_R.numpy()[:, None]
        is_exact, is_entry = slots < n_exact, slots < n_exact + n_draws
        weights_SK, left_S = stored_weights(rows, self.targets, self._quantizers, is_exact, is_entry)
        p_SK, tail_S = (tensor.cpu().double().numpy() for tensor in (compared.p_SK, compared.tail_S))
        stored_SB = np.column_stack([np.where(is_exact, weights_SK, 0), left_S])
        true_SB = np.column_stack([p_SK, tail_S])
        self._n_rows += len(p_SK)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(true_SB > 0, true_SB * np.log(true_SB / np.maximum(stored_SB, 1e-300)), 0.0)
        self._sums += terms.sum(), np.abs(true_SB - stored_SB).sum() / 2
        logprobs = rows.logprobs_RK.double().numpy()
        for temperature in self._kept:
            log_z = 0.0 if temperature == 1 else rows.scalars[log_z_column(temperature)].double().numpy()[:, None]
            self._kept[temperature] += float(np.exp(logprobs / temperature - log_z)[is_exact].sum())
        if compared.states_SW is not None:
            self._add_gradient(compared, np.where(is_entry, weights_SK, 0), is_exact)

    def _add_gradient(self, compared: _ComparedRows, weights_SK: Doubles, is_exact: npt.NDArray[np.bool_]) -> None:
        """Subtract the entries of some rows from the gradient; the rest of it is dense.

        Without draws the student's own distribution represents the tail, as in a loss with one bucket: t = q times the
        share of the tails' masses there, which is subtracted at the exact ids.
        """
        assert compared.states_SW is not None and self.unigram_V is not None
        states_SW, ids_SK = compared.states_SW.cpu().double(), compared.reduced.ids_RK.cpu().long()
        values_SK = torch.from_numpy(weights_SK)
        n_dense = torch.ones(len(states_SW), dtype=torch.float64)
        if not self.targets.has_draws:
            assert compared.share_S is not None
            share_S = compared.share_S.cpu().double()
            unigram_SK = self.unigram_V.cpu().double()[ids_SK] * torch.from_numpy(is_exact)
            q_SK = TEACHER_SHARE * compared.p_SK.cpu().double() + (1 - TEACHER_SHARE) * unigram_SK
            values_SK, n_dense = values_SK - share_S[:, None] * q_SK, 1 - share_S
        if self._sparse is None:
            self._sparse = torch.zeros(self.vocabulary_size, states_SW.shape[1], dtype=torch.float64)
            self._states_2W = torch.zeros(2, states_SW.shape[1], dtype=torch.float64)
        pulls = (values_SK[:, :, None] * states_SW[:, None, :]).flatten(0, 1)
        self._sparse.index_add_(0, ids_SK.flatten(), pulls)
        self._states_2W += torch.stack([states_SW.sum(dim=0), (n_dense[:, None] * states_SW).sum(dim=0)])

    def _angle(self) -> float | None:
        """The angle between the gradients of dense and of stored targets."""
        squares = [(float(wanted.square().sum()), float(stored.square().sum())) for wanted, stored in self._gradients()]
        one, other = (math.sqrt(sum(column)) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
        if not one or not other:
            return None
        # Not the arc cosine, which loses all digits at small angles.
        apart = together = 0.0
        for wanted, stored in self._gradients():
            apart += float((wanted / one - stored / other).square().sum())
            together += float((wanted / one + stored / other).square().sum())
        return math.degrees(2 * math.atan2(math.sqrt(apart), math.sqrt(together)))

    def _gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The gradients of dense and of stored targets, some ids at a time, in float64 on the CPU."""
        if self._sparse is None or self._dense is None or self.unigram_V is None:
            return
        for first in range(0, self.vocabulary_size, GRADIENT_IDS):
            ids = slice(first, first + GRADIENT_IDS)
            dense = self._dense[ids].cpu().double()
            bucket = dense if self._bucket is None else self._bucket[ids].cpu().double()
            unigram = (1 - TEACHER_SHARE) * self.unigram_V[ids, None].cpu().double()
            wanted = unigram * self._states_2W[0] - (1 - TEACHER_SHARE) * dense
            yield wanted, unigram * self._states_2W[1] + TEACHER_SHARE * bucket - self._sparse[ids]


def _head_vector(hidden_width: int, seed: int) -> Vector:
    width = min(HEAD_WIDTH, hidden_width)
    projection = WholeState() if hidden_width <= HEAD_WIDTH else RandomProjection(seed=seed)
    return Vector(layer=0, width=width, group=width, projection=projection)


def stored_weights(
    rows: ReducedRows,
    targets: TargetSpec,
    quantizers: Mapping[str, LinearQuantizer | LogOddsQuantizer],
    is_exact: npt.NDArray[np.bool_],
    is_entry: npt.NDArray[np.bool_],
) -> tuple[Doubles, Doubles]:
    """Steps 4 to 8 of Decoding in docs/cache-format.md, of rows side by side: weights, and the mass of the tail."""

    def codes(name: str, values: Tensor) -> npt.NDArray[np.uint32]:
        return to_codes(quantizers[name], values.numpy(), name)

    def masses(name: str) -> tuple[Doubles, Doubles]:
        """Log of the complement of a tail, and the tail."""
        quantizer = quantizers[name]
        assert isinstance(quantizer, LogOddsQuantizer)
        scalar_codes = codes(name, rows.scalars[name])
        return complement_table(quantizer)[scalar_codes].astype(np.float64), np.exp(
            value_table(quantizer)[scalar_codes].astype(np.float64)
        )

    coded = codes("logprob", torch.where(torch.from_numpy(is_exact), rows.logprobs_RK, -torch.inf))
    logprobs = value_table(quantizers["logprob"])[coded].astype(np.float64)
    kept, tail = masses("log_tail")
    logprobs += (kept - np.log(np.exp(logprobs).sum(axis=1)))[:, None]
    weights = np.exp(logprobs)
    temperature = targets.target_temperature
    if temperature != 1:
        kept, tail = masses("drawn_log_tail")
        name = log_z_column(temperature)
        log_z = value_table(quantizers[name])[codes(name, rows.scalars[name])].astype(np.float64)
        weights = np.exp(logprobs / temperature - log_z[:, None])
        weights *= (np.exp(kept) / weights.sum(axis=1))[:, None]
    is_draw = is_entry & ~is_exact
    times = is_draw * (1.0 if rows.times_RK is None else rows.times_RK.double().numpy())
    shares = times / np.maximum(times.sum(axis=1), 1)[:, None]
    return np.where(is_draw, shares * tail[:, None], weights), tail
