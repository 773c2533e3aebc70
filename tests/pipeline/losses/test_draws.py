"""Draws: forward and skew KL are unbiased by them, in value and gradient; tail weights do what is documented."""

import math

import pytest
import torch
from torch import Tensor

from kdpipe.pipeline.losses.terms import LossOptions
from support.loss_twins import Asked, World, answer, largest_ids, targets, world
from support.losses import TOLERANCE, distance, ours

SEEDS = 400
EXACT = [1, 2, 3, 1, 2, 3]
WAYS = [
    ("forward_kl", 1.0, False),
    ("forward_kl", 1.0, True),
    ("skew_kl", 1.0, True),
    ("forward_kl", 2.0, True),
    ("skew_kl", 2.0, True),
]


def flat(found: object) -> Tensor:
    """Value and gradients as one vector."""
    assert hasattr(found, "states_NH") and hasattr(found, "weight_VH") and hasattr(found, "total")
    return torch.cat([torch.tensor([found.total]).double(), found.states_NH.flatten(), found.weight_VH.flatten()])


def deviations(w: World, name: str, temperature: float, values: bool, *, target: float = 1.0) -> tuple[Tensor, Tensor]:
    """By number, how far the mean over seeds is from the dense loss, in standard errors; and the spread of one seed."""
    exact = largest_ids(w, EXACT)
    requested = [Asked(name=name, temperature=temperature)]
    seen = []
    for seed in range(SEEDS):
        kept = targets(w, exact, draws=3, seed=seed, values=values, target_temperature=target)
        seen.append(flat(ours(w, requested, kept, dtype=torch.float64, chunk_rows=6)[1]))
    all_ = torch.stack(seen)
    error = all_.std(dim=0) / math.sqrt(SEEDS) + 1e-7
    return (all_.mean(dim=0) - flat(answer(w, requested))) / error, all_.std(dim=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "temperature", "values"), WAYS)
def test_the_mean_over_draws_is_the_dense_loss(name: str, temperature: float, values: bool) -> None:
    w = world(seed=11, n=6, vocabulary=13, width=4, spread=1.0)
    far, spread = deviations(w, name, temperature, values, target=temperature)
    assert spread.max() > 0.01
    # Among a hundred numbers one is 4.5 standard errors off in one of a thousand runs.
    assert far.abs().max() < 4.5


@pytest.mark.slow
def test_without_values_only_the_constant_is_missing_at_another_target_temperature() -> None:
    w = world(seed=11, n=6, vocabulary=13, width=4, spread=1.0)
    far, _ = deviations(w, "forward_kl", 2.0, False, target=2.0)
    assert far[1:].abs().max() < 4.5
    assert far[0] > 10


def test_draws_weigh_what_their_weights_say() -> None:
    """With tail weight 1 the gradient is that of sum of w (-log q), whatever the split into bins."""
    w = world(seed=12)
    kept = targets(w, largest_ids(w, [2] * 12), draws=5)
    states = w.states_NH.clone().requires_grad_()
    logq = (states @ w.weight_VH.T).log_softmax(dim=1)
    (kept.weights_NK * -logq.gather(1, kept.ids_NK)).sum().backward()
    _, found = ours(w, [Asked(name="forward_kl")], kept)
    assert states.grad is not None
    assert (found.states_NH - states.grad).abs().max() < TOLERANCE[torch.float32] * states.grad.abs().max()


@pytest.mark.parametrize("name", ["forward_kl", "skew_kl"])
def test_a_tail_weight_goes_from_the_bucket_to_all_that_draws_say(name: str) -> None:
    w = world(seed=13)
    kept = targets(w, largest_ids(w, [2] * 12), draws=5, values=True)
    none, half, whole = (
        ours(w, [Asked(name=name)], kept, dtype=torch.float64, loss_options=LossOptions(tail_weight=weight))[1]
        for weight in (0.0, 0.5, 1.0)
    )
    assert abs(none.total - whole.total) > 0.1
    assert half.total == pytest.approx((none.total + whole.total) / 2, abs=1e-5)
    assert torch.allclose(half.weight_VH, (none.weight_VH + whole.weight_VH) / 2, atol=1e-6)


def test_a_tail_weight_above_1_is_divided_by_the_mean_tail_mass_of_the_sequence() -> None:
    w = world(seed=14)
    kept = targets(w, largest_ids(w, [2] * 12), draws=5)
    sequence_N = torch.tensor([0] * 5 + [3] * 7)
    whole = LossOptions(tail_weight=1.0)
    rows = [torch.arange(12) == r for r in range(12)]

    def alone(r: int, loss_options: LossOptions) -> float:
        requested = [Asked(name="forward_kl", chosen_N=rows[r])]
        return ours(w, requested, kept, dtype=torch.float64, loss_options=loss_options, sequence_N=sequence_N)[1].total

    assert kept.log_tail_N is not None
    mass = kept.log_tail_N.exp()
    for r in (0, 4, 5, 11):
        mean = float(mass[:5].mean() if r < 5 else mass[5:].mean())
        bucket, exact = alone(r, LossOptions(tail_weight=0.0)), alone(r, whole)
        assert alone(r, LossOptions(tail_weight=2.0)) == pytest.approx(bucket + 2.0 / mean * (exact - bucket), rel=1e-5)


def test_sampled_draws_that_came_twice_weigh_twice() -> None:
    w = world(seed=15)
    kept = targets(w, largest_ids(w, [1] * 12), draws=12)
    drawn = kept.weights_NK[:, 1:]
    assert (drawn.amax(dim=1) > 1.5 * drawn.where(drawn > 0, torch.inf).amin(dim=1)).any()
    assert distance(*(ours(w, [Asked(name="forward_kl")], kept, opaque=opaque)[1] for opaque in (False, True))) < 1e-5
