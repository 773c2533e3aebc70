"""The slow twin of `pipeline/losses`: every loss from its definition over the whole vocabulary, in float64.

In: a small world of random teacher logits, states, a head. Out: row losses and gradients by autograd; and the `Targets`
that a cache of that teacher would contain, row by row. It uses probabilities where the losses use logarithms, and
shares no code with them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.schemas.losses import LOGIT_LOSSES


@dataclass(frozen=True, kw_only=True)
class World:
    """N rows: the teacher's logits, the student's states and head, the labels."""

    teacher_NV: Tensor
    states_NH: Tensor
    weight_VH: Tensor
    labels_N: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    n_padding: int = 0

    @property
    def vocabulary_size(self) -> int:
        return self.teacher_NV.shape[1]


def world(
    seed: int = 0,
    n: int = 12,
    vocabulary: int = 23,
    width: int = 6,
    *,
    bias: bool = False,
    scale: float = 1.0,
    soft_cap: float | None = None,
    n_padding: int = 0,
    spread: float = 2.0,
) -> World:
    """Random numbers that float16 and bfloat16 hold exactly, so that input types differ in arithmetic alone."""
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=made) * std).bfloat16().double()

    return World(
        teacher_NV=draw(n, vocabulary, std=spread),
        states_NH=draw(n, width),
        weight_VH=draw(vocabulary + n_padding, width, std=0.8),
        labels_N=torch.randint(vocabulary, (n,), generator=made),
        bias_V=draw(vocabulary + n_padding) if bias else None,
        scale=scale,
        soft_cap=soft_cap,
        n_padding=n_padding,
    )


def softmax(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities at a temperature."""
    powers = torch.exp((logits_NV - logits_NV.amax(dim=1, keepdim=True).detach()) / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def student_logits(w: World, states_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """The student's logits over the true vocabulary."""
    logits = states_NH @ weight_VH[: w.vocabulary_size].T
    if bias_V is not None:
        logits = logits + bias_V[: w.vocabulary_size]
    logits = logits * w.scale
    return logits if w.soft_cap is None else w.soft_cap * torch.tanh(logits / w.soft_cap)


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    return relative_entropy(p, q)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return relative_entropy(q, p)


def skew_kl(p: Tensor, q: Tensor, *, skew: float = 0.1) -> Tensor:
    return relative_entropy(p, skew * p + (1 - skew) * q)


def jsd(p: Tensor, q: Tensor, *, beta: float = 0.5) -> Tensor:
    middle = beta * p + (1 - beta) * q
    return beta * relative_entropy(p, middle) + (1 - beta) * relative_entropy(q, middle)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return torch.abs(p - q).sum(dim=1) / 2


def relative_entropy(a: Tensor, b: Tensor) -> Tensor:
    """KL(a, b); where a is 0 nothing is added."""
    there = a > 0
    ratio = torch.where(there, a, 1.0) / torch.where(there, b, 1.0)
    return torch.where(there, a * torch.log(ratio), 0.0).sum(dim=1)


# Divergences of probabilities, row by row, as the papers write them.
TWINS: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "skew_kl": skew_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "total_variation": total_variation,
    "renormalized": forward_kl,
}


@dataclass(kw_only=True)
class Answer:
    """The value and the gradients of a weighed sum of losses."""

    total: float
    sums: dict[str, float]
    states_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None = None


@dataclass(kw_only=True)
class Asked:
    """One term: how it is weighed, over which rows, on which bins (None: every id its own)."""

    name: str
    coefficient: float = 1.0
    temperature: float = 1.0
    chosen_N: Tensor | None = None
    exact: list[list[int]] | None = None
    options: dict[str, float] = field(default_factory=dict)


def answer(w: World, requested: list[Asked]) -> Answer:
    """Values and gradients by autograd in float64."""
    states, weight = w.states_NH.clone().requires_grad_(), w.weight_VH.clone().requires_grad_()
    bias = None if w.bias_V is None else w.bias_V.clone().requires_grad_()
    z = student_logits(w, states, weight, bias)
    total, sums = torch.zeros((), dtype=torch.float64), {}
    for one in requested:
        losses = of_term(w, one, z)
        if one.chosen_N is not None:
            losses = losses[one.chosen_N]
        sums[one.name] = float(losses.detach().sum())
        total = total + one.coefficient * losses.sum()
    leaves = [states, weight, *([] if bias is None else [bias])]
    slopes = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return Answer(
        total=float(total.detach()),
        sums=sums,
        states_NH=slopes[0],
        weight_VH=slopes[1],
        bias_V=slopes[2] if bias is not None else None,
    )


def of_term(w: World, one: Asked, z: Tensor) -> Tensor:
    """Row losses of one term from the student's logits."""
    q, p = softmax(z, one.temperature), softmax(w.teacher_NV, one.temperature)
    if one.name == "ce":
        return -torch.log(q[torch.arange(len(q)), w.labels_N])
    if LOGIT_LOSSES[one.name].compares == "exact_ids":
        assert one.exact is not None
        rows = [
            TWINS[one.name]((p[r, ids] / p[r, ids].sum())[None], q[r, ids][None]) for r, ids in enumerate(one.exact)
        ]
        return torch.cat(rows)
    if one.exact is not None:
        p, q = merged(p, one.exact), merged(q, one.exact)
    return TWINS[one.name](p, q, **one.options)


def merged(p: Tensor, exact: list[list[int]]) -> Tensor:
    """The exact ids of each row on their own, behind them one bin; rows with fewer get bins of nothing."""
    width = max(len(ids) for ids in exact)
    rows = []
    for r, ids in enumerate(exact):
        others = [i for i in range(p.shape[1]) if i not in set(ids)]
        parts = [p[r, ids], p[r, others].sum()[None], torch.zeros(width - len(ids), dtype=p.dtype)]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def largest_ids(w: World, counts: list[int]) -> list[list[int]]:
    """The most probable ids of each row."""
    return [
        sorted(range(w.vocabulary_size), key=lambda i, r=r: -float(w.teacher_NV[r, i]))[:n]
        for r, n in enumerate(counts)
    ]


def targets(
    w: World,
    exact: list[list[int]],
    *,
    draws: int = 0,
    seed: int = 0,
    target_temperature: float = 1.0,
    temperatures: tuple[float, ...] = (0.5, 2.0, 4.0),
    values: bool = False,
) -> Targets:
    """The cached targets of this teacher: exact ids, and draws with replacement from the rest of each row."""
    p, at = softmax(w.teacher_NV), softmax(w.teacher_NV, target_temperature)
    made = torch.Generator().manual_seed(seed)
    rows = []
    for r, ids in enumerate(exact):
        rest = at[r].clone()
        rest[ids] = 0.0
        entries = [(i, float(at[r, i]), math.log(float(p[r, i]))) for i in ids]
        if draws and float(rest.sum()) > 1e-12:
            hits = torch.multinomial(rest / rest.sum(), draws, replacement=True, generator=made)
            for i, times in zip(*(part.tolist() for part in hits.unique(return_counts=True)), strict=True):
                own = math.log(float(p[r, i])) if values else -math.inf
                entries.append((i, float(rest.sum()) * times / draws, own))
        rows.append(entries)
    width = max(len(row) for row in rows) + 1
    padded = [row + [(row[0][0], 0.0, -math.inf)] * (width - len(row)) for row in rows]
    outside = torch.tensor([float(p[r].sum() - p[r, ids].sum()) for r, ids in enumerate(exact)], dtype=torch.float64)
    is_all = torch.tensor([len(ids) == w.vocabulary_size for ids in exact])
    entropy = -(p * torch.log(p.clamp(min=1e-300))).sum(dim=1)
    log_p = torch.log(p)
    return Targets(
        ids_NK=torch.tensor([[entry[0] for entry in row] for row in padded]),
        weights_NK=torch.tensor([[entry[1] for entry in row] for row in padded], dtype=torch.float64),
        logprobs_NK=torch.tensor([[entry[2] for entry in row] for row in padded], dtype=torch.float64),
        count_N=torch.tensor([len(row) for row in rows]),
        n_exact_N=torch.tensor([len(ids) for ids in exact]),
        log_tail_N=torch.where(is_all, -math.inf, torch.log(outside.clamp(min=1e-300))),
        entropy_N=entropy,
        log_z={t: torch.logsumexp(log_p / t, dim=1) for t in temperatures},
        target_temperature=target_temperature,
        draws_have_values=values,
    )


def every_id_drawn(w: World) -> Targets:
    """Targets of two exact ids whose draws are all other ids, each by its own mass."""
    exact = largest_ids(w, [2] * 12)
    whole = targets(w, [ids + [i for i in range(w.vocabulary_size) if i not in ids] for ids in exact], values=True)
    log_tail_N = whole.logprobs_NK[:, 2 : w.vocabulary_size].logsumexp(dim=1)
    return replace(whole, n_exact_N=torch.full((12,), 2), log_tail_N=log_tail_N)


def copied_teacher(seed: int) -> World:
    """A student whose logits are the teacher's."""
    w = world(seed=seed, n=5, vocabulary=11, width=11)
    return replace(w, states_NH=w.teacher_NV, weight_VH=torch.eye(11, dtype=torch.float64))
