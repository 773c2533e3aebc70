"""Angle between a student's gradients from a cache and from full distributions.

In: caches of the same documents, and the teacher. Out: degrees and lengths, for each cache. A stand-in student has q =
0.7 p + 0.3 of the corpus's unigram u and the teacher's hidden states h. The gradient of its output head is G = sum of
(q - t) h^T over all positions, [V, H], without projection. Stored targets t are read from the cache, so that they
include coding. Without draws, t has one bin for its tail, distributed as q: the gradient of exact ids is exact, that of
the tail has the right mass only.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stage_one_inputs import dense_model
from torch import Tensor

from kdpipe.cache import open_cache
from kdpipe.cache.format.rows import Rows

TEACHER_SHARE = 0.7
# Shares of the positions at which angles are recorded: unbiased noise shrinks with the square root of their number.
STAGES = (0.25, 0.5, 1.0)


@dataclass(slots=True, kw_only=True)
class Gradients:
    """Sums in float64 of float32 products per sequence."""

    dense_VH: Tensor
    stored_VH: dict[str, Tensor]
    degrees: dict[str, dict[str, float]] = field(default_factory=dict)
    positions: int = 0
    largest_label_difference: float = 0.0

    def note(self) -> None:
        """Record the angles so far."""
        angles = {name: angle(self.dense_VH, stored_VH) for name, stored_VH in self.stored_VH.items()}
        self.degrees[str(self.positions)] = angles


def compare(paths: Mapping[str, Path], teacher: Path, most: int, device: str) -> dict[str, Any]:
    """Angles and length ratios of every cache, over at most so many positions."""
    caches = {name: open_cache(path) for name, path in paths.items()}
    model = dense_model(teacher).to(device)
    first = next(iter(caches.values()))
    unigram_V = unigram(first, model.config.vocab_size).to(device)
    empty = torch.zeros(model.config.vocab_size, model.config.hidden_size, dtype=torch.float64, device=device)
    sums = Gradients(dense_VH=empty, stored_VH={name: empty.clone() for name in caches})
    stages = [share * min(most, first.n_positions) for share in STAGES]
    with torch.inference_mode():
        for i in range(len(first)):
            rows = {name: cache[i] for name, cache in caches.items()}
            _add(sums, rows, _answered(model, next(iter(rows.values())), device), unigram_V)
            if stages and sums.positions >= stages[0]:
                stages = [stage for stage in stages if stage > sums.positions]
                sums.note()
            if sums.positions >= most:
                break
        if str(sums.positions) not in sums.degrees:
            sums.note()
    length = float(sums.dense_VH.norm())
    return {
        "positions": sums.positions,
        "degrees": sums.degrees[str(sums.positions)],
        "length_ratio": {name: float(stored.norm()) / length for name, stored in sums.stored_VH.items()},
        "degrees_by_positions": sums.degrees,
        "largest_label_difference_nats": sums.largest_label_difference,
    }


def unigram(cache: Any, vocabulary_size: int) -> Tensor:
    """Frequencies of ids in the cache, with add-one smoothing."""
    counts = np.ones(vocabulary_size)
    for rows in cache:
        counts += np.bincount(rows.tokens, minlength=vocabulary_size)
    return torch.from_numpy(counts / counts.sum()).float()


def _answered(model: Any, rows: Rows, device: str) -> tuple[Tensor, Tensor]:
    """Probabilities and last hidden states at the positions of a sequence, one document at a time."""
    documents = [_read(model, tokens, device) for tokens in _documents(rows)]
    mask_T = torch.from_numpy(rows.loss_mask).to(device)
    p_RV, states_RH = (torch.cat(pieces)[mask_T] for pieces in zip(*documents, strict=True))
    return p_RV, states_RH


def _read(model: Any, tokens: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    ids_BT = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
    states_TH = model.base_model(ids_BT, use_cache=False).last_hidden_state[0]
    return torch.softmax(model.lm_head(states_TH), dim=1), states_TH


def _documents(rows: Rows) -> Iterator[np.ndarray]:
    bounds = [*rows.document_starts.tolist(), len(rows)]
    return (rows.tokens[start:end] for start, end in pairwise(bounds))


def _add(sums: Gradients, rows: Mapping[str, Rows], answered: tuple[Tensor, Tensor], unigram_V: Tensor) -> None:
    p_RV, states_RH = answered
    q_RV = TEACHER_SHARE * p_RV + (1 - TEACHER_SHARE) * unigram_V
    sums.dense_VH += (q_RV - p_RV).T @ states_RH
    for name, of_cache in rows.items():
        sums.stored_VH[name] += (q_RV - stored(of_cache, q_RV)).T @ states_RH
    sums.positions += len(p_RV)
    of_first = next(iter(rows.values()))
    assert of_first.label_logprob is not None
    trained = np.flatnonzero(of_first.loss_mask)
    labels_R1 = torch.from_numpy(of_first.tokens[trained + 1].astype(np.int64))[:, None].to(p_RV.device)
    own_R = torch.from_numpy(of_first.label_logprob[trained]).to(p_RV.device)
    difference = (p_RV.gather(1, labels_R1).squeeze(1).log() - own_R).abs().max().item()
    sums.largest_label_difference = max(sums.largest_label_difference, difference)


def stored(rows: Rows, q_RV: Tensor) -> Tensor:
    """Stored targets at the positions as full rows: weights of the entries, and the tail."""
    counts, device = rows.count[rows.loss_mask], q_RV.device
    numbers = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)
    ids = torch.from_numpy(rows.ids.astype(np.int64)).to(device)
    weights = torch.from_numpy(rows.weights).to(device)
    has_draws = bool((rows.count > rows.n_exact).any())
    if has_draws:
        target_RV = torch.zeros_like(q_RV)
    else:
        assert rows.log_tail is not None
        tail_R = torch.from_numpy(rows.log_tail[rows.loss_mask]).to(device).exp()
        target_RV = q_RV.clone()
        target_RV[numbers, ids] = 0
        target_RV *= (tail_R / target_RV.sum(dim=1))[:, None]
    target_RV[numbers, ids] = weights
    return target_RV


def angle(first: Tensor, second: Tensor) -> float:
    """Degrees between two matrices, without the arc cosine, which is inaccurate for small angles."""
    first, second = first / first.norm(), second / second.norm()
    return math.degrees(2 * math.atan2(float((first - second).norm()), float((first + second).norm())))
