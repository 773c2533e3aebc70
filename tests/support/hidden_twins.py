"""The losses on hidden states once more, in float64, by loops over rows, dimensions, pairs and groups.

In: states of a student by layer, a micro-batch, maps as (matrix, bias), mixtures. Out: what each term sums to, and over
how many.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch

Map = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One pair of layers, everything in float64; `mixture` has the weights of teacher layers that replace `teacher`."""

    states_BTH: Tensor
    batch: MicroBatch
    teacher: int
    group: int
    anchors: int = 64
    map: Map | None = None
    mixture: Mapping[int, Tensor] = field(default_factory=dict)
    logits_SL: Tensor | None = None


def sized(vector: Tensor) -> Tensor:
    """A vector divided by its root mean square."""
    square = (vector * vector).sum() / len(vector)
    return vector / square.sqrt() if float(square.detach()) > 0 else vector * 0


def angle_cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of two vectors, 0 with zeros."""
    lengths = one.norm() * other.norm() if float((one.norm() * other.norm()).detach()) > 0 else None
    return (one * other).sum() / lengths if lengths is not None else (one * other).sum() * 0


def student_row(case: Case, n: int) -> Tensor:
    """The state at a row, sized."""
    b, t = divmod(int(case.batch.places_N[n]), case.states_BTH.shape[1])
    return sized(case.states_BTH[b, t])


def mapped_row(case: Case, n: int) -> Tensor:
    """The same behind the map."""
    assert case.map is not None
    matrix, bias = case.map
    return matrix @ student_row(case, n) + bias


def teacher_row(case: Case, n: int) -> Tensor:
    """The cached vector of a row, sized; mixed where there is a mixture."""
    if not case.mixture:
        return sized(case.batch.hidden[case.teacher][n].double())
    parts = [weight * sized(case.batch.hidden[layer][n].double()) for layer, weight in case.mixture.items()]
    return sized(torch.stack(parts).sum(dim=0))


def groups(case: Case) -> list[list[int]]:
    """The rows of each group of sequences."""
    n_sequences = len(case.batch.tokens_BT)
    found: list[list[int]] = []
    for first in range(0, n_sequences, case.group):
        members = range(first, first + case.group)
        found.append([n for n, b in enumerate(case.batch.sequence_N.tolist()) if b in members])
    return found


def cosine(case: Case) -> tuple[Tensor, int]:
    values = [1 - angle_cosine(mapped_row(case, n), teacher_row(case, n)) for n in range(len(case.batch.places_N))]
    return summed(values), len(values)


def mse(case: Case) -> tuple[Tensor, int]:
    values = []
    for n in range(len(case.batch.places_N)):
        difference = mapped_row(case, n) - teacher_row(case, n)
        values.append((difference * difference).sum() / len(difference))
    return summed(values), len(values)


def correlation(case: Case) -> tuple[Tensor, int]:
    """Pearson's r from moments, dimension by dimension."""
    values = []
    for rows in groups(case):
        if len(rows) < 2:
            continue
        x_GW = torch.stack([mapped_row(case, n) for n in rows])
        y_GW = torch.stack([teacher_row(case, n) for n in rows])
        found = []
        for x, y in zip(x_GW.T, y_GW.T, strict=True):
            spread = ((x * x).mean() - x.mean() ** 2) * ((y * y).mean() - y.mean() ** 2)
            covariance = (x * y).mean() - x.mean() * y.mean()
            found.append(covariance / spread.sqrt() if float(spread.detach()) > 1e-18 else covariance * 0)
        values.append(1 - torch.stack(found).mean())
    return summed(values), len(values)


def cka(case: Case) -> tuple[Tensor, int]:
    """By traces of centered kernels (HSIC), not by products of features."""
    values = []
    for rows in groups(case):
        if len(rows) < 2:
            continue
        x = torch.stack([student_row(case, n) for n in rows])
        y = torch.stack([teacher_row(case, n) for n in rows])
        center = torch.eye(len(rows), dtype=torch.float64) - 1 / len(rows)
        k, m = center @ (x @ x.T) @ center, center @ (y @ y.T) @ center
        own = torch.trace(k @ k) * torch.trace(m @ m)
        values.append(
            1 - torch.trace(k @ m) / own.sqrt() if float(own.detach()) > 1e-18 else 1 + torch.trace(k @ m) * 0
        )
    return summed(values), len(values)


def position_relations(case: Case) -> tuple[Tensor, int]:
    values = []
    documents = case.batch.document_BT.flatten()[case.batch.places_N].tolist()
    for b in range(len(case.batch.tokens_BT)):
        rows = [n for n, own in enumerate(case.batch.sequence_N.tolist()) if own == b]
        k = min(len(rows), case.anchors)
        chosen = [rows[i * len(rows) // k] for i in range(k)]
        for i, one in enumerate(chosen):
            for other in chosen[i + 1 :]:
                if documents[one] == documents[other]:
                    student = angle_cosine(student_row(case, one), student_row(case, other))
                    teacher = angle_cosine(teacher_row(case, one), teacher_row(case, other))
                    values.append((student - teacher) ** 2)
    return summed(values), len(values)


def document_relations(case: Case) -> tuple[Tensor, int]:
    values = []
    assert case.batch.document_D2 is not None
    places = case.batch.document_D2.tolist()
    means = []
    for b, document in places:
        tokens = [t for t, own in enumerate(case.batch.document_BT[b].tolist()) if own == document]
        means.append(torch.stack([case.states_BTH[b, t] for t in tokens]).mean(dim=0))
    pooled = case.batch.pooled[case.teacher].double()
    for i, (b, _) in enumerate(places):
        for j in range(i + 1, len(places)):
            if places[j][0] // case.group == b // case.group:
                student, teacher = angle_cosine(means[i], means[j]), angle_cosine(pooled[i], pooled[j])
                values.append((student - teacher) ** 2)
    return summed(values), len(values)


def balance(logits_SL: Tensor) -> Tensor:
    """How far the mean mixture is from using every layer alike, in nats."""
    exps = logits_SL.double().exp()
    mean_L = (exps / exps.sum(dim=1, keepdim=True)).mean(dim=0)
    return torch.stack([m * (m * len(mean_L)).log() for m in mean_L]).sum()


def router_balance(case: Case) -> tuple[Tensor, int]:
    """The balance once per group of sequences."""
    n_groups = -(-len(case.batch.tokens_BT) // case.group)
    assert case.logits_SL is not None
    return n_groups * balance(case.logits_SL), n_groups


def summed(values: Sequence[Tensor]) -> Tensor:
    """The sum, 0 of nothing."""
    return torch.stack(list(values)).sum() if values else torch.zeros((), dtype=torch.float64)


TWINS: Mapping[str, Callable[[Case], tuple[Tensor, int]]] = {
    "cosine": cosine,
    "correlation": correlation,
    "mse": mse,
    "position_relations": position_relations,
    "document_relations": document_relations,
    "cka": cka,
    "router_balance": router_balance,
}
