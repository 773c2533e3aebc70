"""`HeadLosses`: the student's output head and all logit losses in one pass, for the rows of one micro-batch.

In: last states of rows, labels, `Targets`, the active terms. Out: a scalar to differentiate, raw sums, statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.autograd_path import AutogradPass, logits_function
from kdpipe.pipeline.losses.dense_chunk import COPIES, DenseChunk, TeacherHead
from kdpipe.pipeline.losses.divergences import TargetRows, tail_scales
from kdpipe.pipeline.losses.fused import FusedPass, FusedRequest, FusedResult, attached
from kdpipe.pipeline.losses.row_statistics import RowStatistics as RowStatistics
from kdpipe.pipeline.losses.row_statistics import joined
from kdpipe.pipeline.losses.sparse_chunk import SparseChunk
from kdpipe.pipeline.losses.teacher_bins import check_targets
from kdpipe.pipeline.losses.terms import LogitName, LogitTerm, LossOptions
from kdpipe.pipeline.losses.workspace import Buffers
from kdpipe.pipeline.models.head import Head

# Bytes of a chunk of logits, and the fewest rows: products of fewer read the head's weights too often
# (benchmarks/losses.py).
CPU_BYTES, GPU_BYTES = 32 << 20, 256 << 20
FEWEST_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadResult:
    """`total` is the sum over terms of coefficient * sum over rows; `sums` are raw, before weight and factor, and so
    are `rows`, the summed values, kept only with `watch`."""

    total: Tensor
    sums: dict[LogitName, Tensor]
    rows: dict[LogitName, Tensor] = field(default_factory=dict)
    statistics: RowStatistics | None = None


class HeadLosses:
    """One head and its losses; a callable head maps states to logits over its whole vocabulary."""

    def __init__(
        self,
        head: Head | Callable[[Tensor], Tensor],
        options: LossOptions,
        teacher: TeacherHead | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        self._head, self._options, self._teacher, self._chunk_bytes = head, options, teacher, chunk_bytes
        self._vocabulary_size: int | None = None
        self._buffers = Buffers()

    @property
    def is_fused(self) -> bool:
        """Whether head and losses are one pass; otherwise logits are computed twice."""
        return isinstance(self._head, Head) and self._head.is_plain

    def __call__(
        self,
        states_NH: Tensor,
        labels_N: Tensor,
        targets: Targets | None,
        terms: Sequence[LogitTerm],
        *,
        sequence_N: Tensor | None = None,
        watch: bool = False,
    ) -> HeadResult:
        """The losses of some rows; `sequence_N` is needed for tail weights above 1, `watch` adds statistics."""
        check_targets(terms, targets, self._options, sequence_N)
        if not terms and not watch:
            return HeadResult(total=states_NH.new_zeros((), dtype=torch.float32), sums={})
        largest = max((abs(term.coefficient) for term in terms), default=0.0) or 1.0
        rows = self._rows(states_NH, labels_N, targets, terms, sequence_N)
        weights_TN, chosen_TN = _weights(terms, labels_N, largest)
        call = FusedRequest(
            rows=rows,
            chosen_TN=chosen_TN,
            weights_TN=weights_TN,
            n_chunk=self._rows_per_chunk(states_NH, rows),
            watch=watch,
        )
        total, result = (self._fused if self.is_fused else self._by_autograd)(states_NH, call, terms, largest)
        return HeadResult(
            total=total,
            sums={term.name: sum_ for term, sum_ in zip(terms, result.sums_T, strict=True)},
            rows=_rows_by_term(terms, result.rows_TC, labels_N) if watch else {},
            statistics=joined(result.watched, labels_N) if watch else None,
        )

    def statistics(self, states_NH: Tensor, labels_N: Tensor) -> RowStatistics:
        """Statistics of the student's own predictions, without losses and gradients."""
        with torch.no_grad():
            statistics = self(states_NH, labels_N, None, (), watch=True).statistics
        assert statistics is not None
        return statistics

    def _fused(
        self, states_NH: Tensor, call: FusedRequest, terms: Sequence[LogitTerm], largest: float
    ) -> tuple[Tensor, FusedResult]:
        assert isinstance(self._head, Head)
        module: Any = self._head.module
        tracks = torch.is_grad_enabled() and bool(terms)
        wanted = [
            tracks and tensor is not None and tensor.requires_grad for tensor in (states_NH, module.weight, module.bias)
        ]
        fused = FusedPass(self._head, self._buffers, (wanted[0], wanted[1], wanted[2]), self._options.clamp_logits)
        result = fused.run(states_NH, call, self._work(call, terms, slopes=any(wanted)))
        coefficients_T = result.sums_T.new_tensor([term.coefficient for term in terms])
        total = (coefficients_T * result.sums_T).sum().float()
        return (attached(total, result, largest, self._head, states_NH) if any(wanted) else total), result

    def _work(self, call: FusedRequest, terms: Sequence[LogitTerm], *, slopes: bool) -> SparseChunk | DenseChunk | None:
        if not terms:
            return None
        if call.rows.has_states and self._teacher is not None:
            return DenseChunk(terms, self._options, self._teacher, slopes=slopes)
        return SparseChunk(terms, self._options, self._buffers, slopes=slopes)

    def _by_autograd(
        self, states_NH: Tensor, call: FusedRequest, terms: Sequence[LogitTerm], largest: float
    ) -> tuple[Tensor, FusedResult]:
        head = logits_function(self._head) if isinstance(self._head, Head) else self._head
        total, result = AutogradPass(head, terms, self._options, self._teacher).run(states_NH, call)
        return (total * largest).float(), result

    def _rows(
        self,
        states_NH: Tensor,
        labels_N: Tensor,
        targets: Targets | None,
        terms: Sequence[LogitTerm],
        sequence_N: Tensor | None,
    ) -> TargetRows:
        if not any(term.needs_targets for term in terms):
            targets = None
        if targets is not None and targets.state_NH is not None:
            self._teacher = self._teacher_on(states_NH)
        scales_N = None if targets is None else tail_scales(targets, self._options, sequence_N)
        size = self._vocabulary_of(states_NH)
        return TargetRows(labels_N=labels_N, targets=targets, tail_scale_N=scales_N, vocabulary_size=size)

    def _teacher_on(self, states_NH: Tensor) -> TeacherHead:
        assert self._teacher is not None, "a cache of states includes the teacher's output head"
        return self._teacher.to(states_NH.device)

    def _vocabulary_of(self, states_NH: Tensor) -> int:
        """The number of logits per row; that of a function follows from an empty call."""
        if isinstance(self._head, Head):
            return self._head.vocabulary_size
        if self._vocabulary_size is None:
            with torch.no_grad():
                self._vocabulary_size = self._head(torch.zeros_like(states_NH[:0])).shape[-1]
        return self._vocabulary_size

    def _rows_per_chunk(self, states_NH: Tensor, rows: TargetRows) -> int:
        row_bytes = 4 * rows.vocabulary_size * (COPIES if rows.has_states else 1)
        if self._chunk_bytes is not None:
            most = max(1, self._chunk_bytes // row_bytes)
        else:
            most = max(FEWEST_ROWS, (CPU_BYTES if states_NH.device.type == "cpu" else GPU_BYTES) // row_bytes)
        n_chunks = max(1, -(-len(states_NH) // most))
        return max(1, -(-len(states_NH) // n_chunks))


def _rows_by_term(terms: Sequence[LogitTerm], pieces_TC: Sequence[Tensor], labels_N: Tensor) -> dict[LogitName, Tensor]:
    none_T0 = labels_N.new_zeros((len(terms), 0), dtype=torch.float32)
    rows_TN = torch.cat([none_T0, *pieces_TC], dim=1)
    return {term.name: rows_N for term, rows_N in zip(terms, rows_TN, strict=True)}


def _weights(terms: Sequence[LogitTerm], labels_N: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """The weight of each row of each term in the gradient, relative to the largest, and which rows are selected."""
    all_N = torch.ones_like(labels_N, dtype=torch.bool)
    chosen = [all_N if term.chosen_N is None else term.chosen_N for term in terms]
    chosen_TN = torch.stack(chosen) if chosen else all_N[None][:0]
    relative_T = torch.tensor([term.coefficient / largest for term in terms], device=labels_N.device)
    return relative_T[:, None] * chosen_TN, chosen_TN
