"""Losses on exact ids and one bin are lower bounds of the dense ones, and nothing is lost where student is teacher."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.pipeline.losses.terms import LossOptions
from kdpipe.schemas.losses import LOGIT_LOSSES
from support.loss_twins import Asked, answer, copied_teacher, largest_ids, targets, world
from support.losses import ours

DIVERGENCES = [name for name, loss in LOGIT_LOSSES.items() if loss.compares == "bins"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), n_exact=st.integers(1, 8), temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_bounds_are_bounds(seed: int, n_exact: int, temperature: float) -> None:
    w = world(seed=seed, n=3, vocabulary=9, width=3)
    kept = targets(w, largest_ids(w, [n_exact] * 3), draws=4)
    for name in DIVERGENCES:
        requested = [Asked(name=name, temperature=temperature)]
        _, found = ours(w, requested, kept, dtype=torch.float64, loss_options=LossOptions(tail_weight=0.0))
        assert 0 <= found.total <= answer(w, requested).total + 1e-5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_nothing_is_lost_where_the_student_is_the_teacher(name: str, temperature: float) -> None:
    w = copied_teacher(3)
    kept = targets(w, largest_ids(w, [1, 2, 3, 4, 11]), draws=4, values=True)
    requested = [Asked(name=name, temperature=temperature)]
    for tail_weight in (0.0, 1.0):
        _, found = ours(w, requested, kept, dtype=torch.float64, loss_options=LossOptions(tail_weight=tail_weight))
        assert found.total == pytest.approx(0, abs=1e-6)
        if tail_weight == 0.0 and name != "total_variation":
            assert found.states_NH.abs().max() < 1e-6


def test_renormalizing_has_its_optimum_elsewhere() -> None:
    w = copied_teacher(4)
    _, found = ours(w, [Asked(name="renormalized")], targets(w, largest_ids(w, [2] * 5)), dtype=torch.float64)
    assert found.states_NH.abs().max() > 0.1
