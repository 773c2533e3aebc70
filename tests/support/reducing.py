"""Logits that are awkward in every way, reduced; and what was kept, row by row in plain Python.

In: a target spec. Out: a `ReducedRows`, or `Row`s of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas.target_kinds import Sampled, Threshold, TopK, TopP
from kdpipe.schemas.targets import HiddenSpec, KeptSpec, TargetSpec

CPU = torch.device("cpu")
# Every kind with entries: few and many, narrower and wider than a small vocabulary.
KEPT: Mapping[str, KeptSpec] = {
    "threshold": Threshold(tau=1 / 25),
    "threshold-coarse": Threshold(tau=1.0),
    "threshold-narrow": Threshold(tau=1 / 100, max_entries=12),
    "sampled": Sampled(draws=50),
    "sampled-once": Sampled(draws=1),
    "topk": TopK(k=16),
    "topk-one": TopK(k=1),
    "topp": TopP(p=0.7, max_entries=64),
    "topp-all": TopP(p=1.0, max_entries=300),
}


def targets(keep: KeptSpec, temperature: float = 1.0, **more: Any) -> TargetSpec:
    """A spec with three temperatures and every scalar."""
    more = {"temperatures": (2.0, 4.0, 0.5), "boundary": True, **more}
    return TargetSpec(keep=keep, target_temperature=temperature, **more)


def request(spec: TargetSpec, size: int, seed: int = 0) -> TargetRequest:
    """A request for a vocabulary, without hidden states."""
    return TargetRequest(targets=spec, hidden=HiddenSpec(), vocabulary_size=size, seed=seed)


def starts_word(size: int) -> Tensor:
    """Every third id starts a word."""
    return torch.arange(size) % 3 == 0


def reducer(spec: TargetSpec, size: int) -> Reducer:
    """A reducer on the CPU."""
    return Reducer(request(spec, size), CPU, starts_word(size))


def awkward(size: int) -> dict[str, Tensor]:
    """One row of logits of every kind, by name."""
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(size, generator=generator)
    rank = torch.randperm(size, generator=generator).float()
    rows = {
        "noise": noise * 2 + 100,
        "long tail": -1.1 * torch.log(rank + 2.7) + 0.3 * noise,
        "flat": torch.full((size,), -7.5),
        "nearly flat": noise * 0.01,
        "sure": torch.where(rank == 0, 12.0, noise),
        "surer": torch.where(rank == 0, 30.0, noise),
        "certain": torch.where(rank == 0, 3.0, -torch.inf),
        "two": torch.where(rank < 2, 1.0, -torch.inf),
        "half": torch.where(rank < (size + 1) // 2, noise * 3, -torch.inf),
        "coarse": (noise * 3).bfloat16().float(),
        "three levels": torch.where(rank < 30, 4.0, torch.where(rank < 200, 2.0, 0.0)),
        "wide": noise * 40,
        "huge": noise * 10_000,
        "last": torch.where(torch.arange(size) == size - 1, 5.0, noise),
    }
    return {name: row.clone() for name, row in rows.items()}


def reduce_rows(spec: TargetSpec, rows: Tensor, labels: Tensor, document: int = 0) -> ReducedRows:
    """Some rows, as those of a document."""
    return reducer(spec, rows.shape[1]).reduce(rows.clone(), labels, row_keys(0, "train", document, 0, len(rows)))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was kept at a row; `weights` is the training target."""

    exact: list[int]
    draws: list[int]
    times: list[int]
    logprobs: dict[int, float]
    scalars: dict[str, float]
    weights: dict[int, float]


def rows_of(reduced: ReducedRows, spec: TargetSpec) -> Iterator[Row]:
    """Row by row, with weights by the definition of docs/cache-format.md before anything is rounded."""
    for r in range(len(reduced.n_exact_R)):
        n_exact, n_draws = int(reduced.n_exact_R[r]), int(reduced.n_draws_R[r])
        ids = reduced.ids_RK[r, : n_exact + n_draws].tolist()
        times = [1] * n_draws if reduced.times_RK is None else reduced.times_RK[r, n_exact : n_exact + n_draws].tolist()
        logprobs = dict(zip(ids, reduced.logprobs_RK[r, : len(ids)].double().tolist(), strict=True))
        scalars = {name: float(values[r]) for name, values in reduced.scalars.items()}
        temperature, log_z, tail = spec.target_temperature, 0.0, "log_tail"
        if temperature != 1.0:
            log_z, tail = scalars[f"log_z@{temperature}"], "drawn_log_tail"
        weights = {i: math.exp(logprobs[i] / temperature - log_z) for i in ids[:n_exact]}
        weights |= {i: math.exp(scalars[tail]) * t / sum(times) for i, t in zip(ids[n_exact:], times, strict=True)}
        yield Row(
            exact=ids[:n_exact], draws=ids[n_exact:], times=times, logprobs=logprobs, scalars=scalars, weights=weights
        )


def labels_for(rows: Tensor) -> Tensor:
    """A next token for every row: the most probable one, the first id or the last."""
    number = torch.arange(len(rows))
    others = torch.where(number % 2 == 0, 0, rows.shape[1] - 1)
    return torch.where(number % 3 == 0, rows.argmax(dim=1), others)
