"""Targets from states: the full distribution of every row, reduced as `cache-teacher` reduces a teacher's.

In: a stored sequence of a cache of states, its decoded rows, and one random key per row. Out: the codes of its targets.
Entropy, log_z and the log p of next tokens are computed from the state too, so that a row is consistent;
`boundary_logprob` is the teacher's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.cache.format.encode import CodedRows, encode
from kdpipe.cache.format.quantizers import Codes
from kdpipe.cache.format.rows import Rows, Sequence
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer, to_block
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.targets.stored_entries import Longs
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import State
from kdpipe.schemas.targets import HiddenSpec

# Logits in memory at a time.
LOGITS = 1 << 23


@final
class StateTargets:
    """Computes targets from states."""

    def __init__(self, source: Manifest, manifest: Manifest, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        assert isinstance(source.targets.keep, State)
        self._keep, self._manifest = source.targets.keep, manifest
        # Copies: torch does not accept memory-mapped, read-only arrays.
        self._head_VW = torch.from_numpy(tables["output_head"].astype(np.float32))
        bias = tables.get("output_bias")
        self._bias_V = None if bias is None else torch.from_numpy(bias.astype(np.float32))
        ids = tables["ids_by_rank"]
        self._rank_of_id: Codes = np.empty(len(ids), np.uint32)
        self._rank_of_id[ids] = np.arange(len(ids), dtype=np.uint32)
        targets = manifest.targets.model_copy(update={"boundary": False})
        request = TargetRequest(
            targets=targets, hidden=HiddenSpec(), vocabulary_size=manifest.vocabulary_size, seed=manifest.seed
        )
        self._reducer = Reducer(request, torch.device("cpu"))

    def rows(self, coded: CodedRows, sequence: Sequence, rows: Rows, keys_R: Longs) -> CodedRows:
        """The codes of a sequence with targets from its states."""
        positions = np.flatnonzero(rows.loss_mask)
        labels = torch.from_numpy(rows.tokens[positions + 1].astype(np.int64))
        step = max(1, LOGITS // len(self._head_VW))
        pieces = [
            self._reduced(rows, positions[i : i + step], labels[i : i + step], keys_R)
            for i in range(0, max(1, len(positions)), step)
        ]
        block = to_block(pieces, rows.loss_mask, self._manifest.targets, hidden=dict(rows.hidden))
        codes = encode(
            sequence, replace(block, boundary_logprob=rows.boundary_logprob), self._manifest, self._rank_of_id
        )
        vectors = {name: vector for name, vector in coded.vectors.items() if name in codes.vectors}
        return replace(codes, vectors=vectors)

    def _reduced(self, rows: Rows, positions: Longs, labels_R: torch.Tensor, keys_R: Longs) -> ReducedRows:
        assert rows.state is not None
        logits = torch.from_numpy(rows.state[positions]) @ self._head_VW.T
        if self._bias_V is not None:
            logits += self._bias_V
        logits *= self._keep.logit_scale
        if self._keep.soft_cap is not None:
            logits = self._keep.soft_cap * torch.tanh(logits / self._keep.soft_cap)
        reduced = self._reducer.reduce(logits, labels_R, torch.from_numpy(keys_R[positions]))
        if not bool(reduced.finite_R.all()):
            raise CacheDamaged("the logits of a stored state are not finite")
        return reduced
