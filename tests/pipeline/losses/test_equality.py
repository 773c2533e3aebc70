"""Every loss and its gradients against the float64 twin: all entries exact, or a bin for some of them."""

import pytest
import torch

from kdpipe.pipeline.losses.terms import LossOptions, factor
from kdpipe.schemas.losses import LOGIT_LOSSES
from support.loss_twins import Asked, largest_ids, targets, world
from support.losses import assert_equal

DIVERGENCES = [name for name, loss in LOGIT_LOSSES.items() if loss.compares == "bins"]
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]
HALF_KEPT = [1, 2, 3, 5, 8, 11, 4, 23, 22, 7, 1, 9]
HEADS = [
    {"bias": True},
    {"scale": 0.25},
    {"soft_cap": 3.0},
    {"n_padding": 9},
    {"bias": True, "scale": 3.0, "soft_cap": 4.0, "n_padding": 2},
]


@pytest.mark.many
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [*DIVERGENCES, "renormalized"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_all_entries_exact_is_equality(name: str, temperature: float, dtype: torch.dtype) -> None:
    w = world()
    exact = largest_ids(w, [w.vocabulary_size] * 12)
    one = Asked(name=name, coefficient=0.3, temperature=temperature, exact=exact if name == "renormalized" else None)
    assert_equal(w, [one], targets(w, exact), dtype=dtype)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [*DIVERGENCES, "renormalized"])
def test_what_is_not_kept_is_one_bin(name: str, temperature: float) -> None:
    w = world(seed=1)
    exact = largest_ids(w, HALF_KEPT)
    one = Asked(name=name, coefficient=2.0, temperature=temperature, exact=exact)
    assert_equal(w, [one], targets(w, exact), dtype=torch.float64)
    assert_equal(w, [one], targets(w, exact))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_draws_belong_to_the_bin_at_another_temperature(name: str, temperature: float) -> None:
    w = world(seed=2)
    exact = largest_ids(w, HALF_KEPT)
    one = Asked(name=name, temperature=temperature, exact=exact)
    kept = targets(w, exact, draws=6)
    assert_equal(w, [one], kept, loss_options=LossOptions(tail_weight=0.0))
    if temperature != 1.0 or name not in ("forward_kl", "skew_kl"):
        assert_equal(w, [one], kept)


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_skew_and_beta_are_taken(beta: float) -> None:
    w = world(seed=3)
    exact = largest_ids(w, HALF_KEPT)
    requested = [
        Asked(name="skew_kl", exact=exact, options={"skew": beta}),
        Asked(name="jsd", exact=exact, options={"beta": beta}),
    ]
    assert_equal(w, requested, targets(w, exact), loss_options=LossOptions(skew=beta, beta=beta))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_terms_are_weighed_and_taken_over_their_own_rows(temperature: float) -> None:
    w = world(seed=4)
    exact = largest_ids(w, HALF_KEPT)
    some = torch.arange(12) % 3 != 0
    requested = [
        Asked(name="ce", coefficient=0.1 / 4, chosen_N=~some),
        *(
            Asked(
                name=name,
                coefficient=(0.9 - 0.2 * i) * factor(name, temperature) / 8,  # type: ignore[arg-type]
                temperature=temperature,
                chosen_N=some,
                exact=exact,
            )
            for i, name in enumerate([*DIVERGENCES, "renormalized"])
        ),
    ]
    assert_equal(w, requested, targets(w, exact), dtype=torch.float64)
    assert_equal(w, requested, targets(w, exact))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_labels_alone_need_no_targets(dtype: torch.dtype) -> None:
    assert_equal(world(seed=5), [Asked(name="ce", coefficient=0.25)], None, dtype=dtype)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: "-".join(head))
def test_heads_of_every_kind_agree_with_the_twin(head: dict[str, float], opaque: bool) -> None:
    w = world(seed=6, **head)  # type: ignore[arg-type]
    exact = largest_ids(w, HALF_KEPT)
    requested = [
        Asked(name="ce", coefficient=0.1),
        Asked(name="forward_kl", coefficient=0.9, temperature=2.0, exact=exact),
        Asked(name="reverse_kl", coefficient=0.5, temperature=2.0, exact=exact),
    ]
    assert_equal(w, requested, targets(w, exact), opaque=opaque, dtype=torch.float64)
    assert_equal(w, requested, targets(w, exact), opaque=opaque)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [*DIVERGENCES, "ce"])
def test_the_fallback_is_the_same(name: str, temperature: float) -> None:
    w = world(seed=7)
    exact = largest_ids(w, HALF_KEPT)
    one = Asked(name=name, temperature=1.0 if name == "ce" else temperature, exact=exact)
    assert_equal(w, [one], targets(w, exact), opaque=True)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_target_temperature_of_its_own_is_kept(name: str, temperature: float) -> None:
    w = world(seed=8)
    exact = largest_ids(w, HALF_KEPT)
    kept = targets(w, exact, draws=5, target_temperature=temperature)
    at_one = Asked(name=name, temperature=1.0, exact=exact)
    assert_equal(w, [at_one], kept)
    at_target = Asked(name=name, temperature=temperature, exact=exact)
    assert_equal(w, [at_target], kept, loss_options=LossOptions(tail_weight=0.0))
