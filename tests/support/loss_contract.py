"""What every logit loss of the table has to do, and the rows of docs/losses.md that follow from the table.

In: the name of a loss. Out: an assertion error where the loss differs from its float64 twin, depends on masked rows,
padding or the size of a chunk, or is not 0 where student and teacher agree.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.terms import LossOptions
from kdpipe.schemas.losses import LOGIT_LOSSES, HiddenLoss, LogitLoss
from support.loss_twins import Asked, World, answer, copied_teacher, every_id_drawn, largest_ids, targets, world
from support.losses import assert_equal, distance, ours, tolerance

N_EXACT = [1, 2, 3, 5, 8, 11, 4, 23, 22, 7, 1, 9]
BINS_ONLY = LossOptions(tail_weight=0.0)


def _case(name: str, seed: int, temperature: float = 1.0, **head: float) -> tuple[World, list[Asked], Targets]:
    """A world, a term of the loss, cached targets."""
    w = world(seed=seed, **head)  # type: ignore[arg-type]
    exact = largest_ids(w, N_EXACT)
    is_label = LOGIT_LOSSES[name].compares == "label"
    term = Asked(name=name, coefficient=0.3, temperature=1.0 if is_label else temperature, exact=exact)
    return w, [term], targets(w, exact, draws=3)


def agrees_with_its_twin(name: str) -> None:
    """Values and gradients, at several temperatures, in the fused pass and by autograd."""
    for temperature in (0.5, 1.0, 2.0):
        w, requested, cached = _case(name, 81, temperature)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for opaque in (False, True):
                assert_equal(w, requested, cached, dtype=dtype, opaque=opaque, loss_options=BINS_ONLY)


def is_exact_where_every_id_is_drawn(name: str) -> None:
    """A loss that uses draws is the dense loss where the draws are the whole tail."""
    if LOGIT_LOSSES[name].draws != "unused":
        w = world(seed=82, vocabulary=9)
        assert_equal(w, [Asked(name=name)], every_id_drawn(w), dtype=torch.float64)


def ignores_masked_rows(name: str) -> None:
    """Rows that a term is not taken over have no gradient, and no influence."""
    w, requested, cached = _case(name, 83)
    mask_N = torch.arange(12) % 3 != 0
    requested = [replace(requested[0], chosen_N=mask_N)]
    _, found = ours(w, requested, cached, dtype=torch.float64, loss_options=BINS_ONLY)
    assert not found.states_NH[~mask_N].any() and found.states_NH[mask_N].any()
    assert distance(found, answer(w, requested)) < tolerance(requested, torch.float64)


def ignores_padding(name: str) -> None:
    """Padded rows of the vocabulary and padded places of entries change nothing."""
    w, requested, cached = _case(name, 84, n_padding=5)
    _, found = ours(w, requested, cached)
    assert found.weight_VH[:23].any() and not found.weight_VH[23:].any()
    wider = replace(
        cached,
        ids_NK=torch.cat([cached.ids_NK, cached.ids_NK[:, :1], cached.ids_NK[:, :1]], dim=1),
        weights_NK=torch.nn.functional.pad(cached.weights_NK, (0, 2), value=9.0),
        logprobs_NK=torch.nn.functional.pad(cached.logprobs_NK, (0, 2), value=-0.1),
    )
    assert distance(ours(w, requested, wider)[1], found) < 1e-6


def is_zero_where_student_and_teacher_agree(name: str) -> None:
    """The value is 0 and, away from the kink of total variation, so is the gradient."""
    if LOGIT_LOSSES[name].compares == "label":
        return
    w = copied_teacher(85)
    counts = [11] * 5 if LOGIT_LOSSES[name].compares == "exact_ids" else [1, 2, 3, 4, 11]
    cached = targets(w, largest_ids(w, counts), draws=4, values=True)
    for options in (BINS_ONLY, LossOptions()):
        _, found = ours(w, [Asked(name=name)], cached, dtype=torch.float64, loss_options=options)
        assert abs(found.total) < 1e-6
        assert options is not BINS_ONLY or name == "total_variation" or found.states_NH.abs().max() < 1e-6


def does_not_depend_on_chunks(name: str) -> None:
    """One chunk, or one per row."""
    w, requested, cached = _case(name, 86)
    for opaque in (False, True):
        whole = ours(w, requested, cached, opaque=opaque, chunk_rows=100)[1]
        for rows in (1, 5):
            assert distance(ours(w, requested, cached, opaque=opaque, chunk_rows=rows)[1], whole) < 1e-6


CHECKS: tuple[Callable[[str], None], ...] = (
    agrees_with_its_twin,
    is_exact_where_every_id_is_drawn,
    ignores_masked_rows,
    ignores_padding,
    is_zero_where_student_and_teacher_agree,
    does_not_depend_on_chunks,
)

HELLINGER = LogitLoss(
    formula="sum (sqrt p - sqrt q)^2 / 2",
    when="in tests",
    compares="bins",
    function=f"{__name__}:squared_hellinger",
    temperature_power=2,
)


def squared_hellinger(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """sum (sqrt p - sqrt q)^2 / 2; places with p = q add nothing."""
    return ((logp / 2).exp() - (logq / 2).exp()).square().sum(dim=-1) / 2


def hellinger_twin(p: Tensor, q: Tensor) -> Tensor:
    """1 - sum sqrt(p q)"""
    both = (p > 0) & (q > 0)
    return 1 - torch.where(both, torch.where(both, p * q, 1.0).sqrt(), 0.0).sum(dim=1)


FACTORS = {0: "1", 1: "T", 2: "T²"}
FROM_DRAWS = {
    "unused": "bins",
    "unbiased": "unbiased in value and gradient",
    "unbiased_with_values": "unbiased if draws have values, else bins",
}
OVER = {
    "rows": "rows",
    "groups": "groups",
    "anchor_pairs": "pairs of anchors of one document",
    "document_pairs": "pairs of documents of a group",
    "mixtures": "groups",
}


def docs_row(name: str, loss: LogitLoss | HiddenLoss) -> str:
    """A loss's row in docs/losses.md."""
    if isinstance(loss, HiddenLoss):
        uses_map = "-" if loss.over == "mixtures" else "yes" if loss.mapped else "no"
        return f"| `{name}` | {loss.formula} | {OVER[loss.over]} | {uses_map} |"
    draws, otherwise = {
        "label": ("exact", "exact"),
        "exact_ids": ("biased", "biased"),
        "bins": (FROM_DRAWS[loss.draws], "bins"),
    }[loss.compares]
    cells = (f"`{name}`", loss.formula, "exact", draws, otherwise, FACTORS[loss.temperature_power], loss.when)
    return f"| {' | '.join(cells)} |"
