"""Every loss on hidden states, value and gradient, against loops in float64; equal for every split; and mutants."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from kdpipe.pipeline.losses.hidden import grouping, relations, router, vectors
from kdpipe.pipeline.losses.hidden import hidden_objective as objective
from kdpipe.pipeline.losses.hidden.vectors import correlation, cosine, linear_cka, mse
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, HiddenName, function_of
from kdpipe.schemas.losses import HIDDEN_LOSSES
from support.hidden_batches import batch_with, part_of_batch, states_for
from support.hidden_objectives import Answer, ask, ask_twin, losses_with, objective_with

LAYERS = (2, 4)
PLAIN = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.over != "mixtures")
OVER_ROWS = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.compares_rows)
TAKES_A_ROUTER = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.over != "document_pairs")
CASES = [(name, False) for name in PLAIN] + [(name, True) for name in TAKES_A_ROUTER]
every_case = pytest.mark.parametrize(("name", "routed"), CASES)


def terms_for(name: HiddenName) -> list[HiddenName]:
    """A term, with one that a router can be for."""
    return [name, "cosine"] if name == "router_balance" else [name]


def requested(name: HiddenName, *, routed: bool, seed: int = 0) -> Answer:
    made = objective_with(terms_for(name), losses_with(router=routed))
    batch = batch_with(seed=seed)
    return ask(made, name, [batch], [states_for(batch, LAYERS, seed=seed + 1)])


@cache
def twin(name: HiddenName, *, routed: bool, seed: int = 0) -> Answer:
    made = objective_with(terms_for(name), losses_with(router=routed))
    batch = batch_with(seed=seed)
    return ask_twin(made, name, batch, states_for(batch, LAYERS, seed=seed + 1))


def agrees(found: Answer, expected: Answer, tolerance: float = 2e-5) -> None:
    assert found.count == expected.count
    torch.testing.assert_close(found.value.double(), expected.value, rtol=tolerance, atol=tolerance)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in found.gradients.items():
        # Of a gradient that is 0, such as a bias that correlation takes away, rounding leaves 1e-7.
        near = tolerance * max(float(expected.gradients[name].abs().max()), 3e-2)
        torch.testing.assert_close(gradient.double(), expected.gradients[name], rtol=0, atol=near, msg=name)


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_a_term_equals_its_twin(name: HiddenName, routed: bool, seed: int) -> None:
    found = requested(name, routed=routed, seed=seed)
    agrees(found, twin(name, routed=routed, seed=seed))
    assert found.value > 0
    assert found.count > 0


@every_case
def test_gradients_reach_all_trainable_weights(name: HiddenName, routed: bool) -> None:
    found = requested(name, routed=routed)
    moved = {key for key, gradient in found.gradients.items() if gradient.abs().max() > 0}
    expected = set() if HIDDEN_LOSSES[name].over == "mixtures" else {"student2", "student4"}
    if HIDDEN_LOSSES[name].mapped:
        expected |= {key for key in found.gradients if key.startswith("maps.") and "weight" in key}
    if routed:
        expected.add("router.logits")
    # A bias that shifts all rows alike correlates with nothing.
    assert expected <= moved
    assert routed == ("router.logits" in found.gradients)


@every_case
@pytest.mark.parametrize("ends", [(2, 4, 6, 8), (4, 8), (2, 8)])
def test_a_step_is_the_same_however_it_is_split(name: HiddenName, routed: bool, ends: tuple[int, ...]) -> None:
    made = objective_with(terms_for(name), losses_with(router=routed))
    batch = batch_with()
    whole = ask(made, name, [batch], [states_for(batch, LAYERS)])
    bounds = list(zip((0, *ends[:-1]), ends, strict=True))
    parts = [part_of_batch(batch, first, end) for first, end in bounds]
    states = states_for(batch, LAYERS)
    pieces = [
        {layer: each.detach()[first:end].clone().requires_grad_() for layer, each in states.items()}
        for first, end in bounds
    ]
    agrees(ask(made, name, parts, pieces), replace(whole, value=whole.value.double(), gradients=doubled(whole)))


def doubled(answer: Answer) -> dict[str, Tensor]:
    return {name: gradient.double() for name, gradient in answer.gradients.items()}


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_16_bits_are_compared_in_float32(name: HiddenName, routed: bool, dtype: torch.dtype) -> None:
    made = objective_with(terms_for(name), losses_with(router=routed))
    batch = batch_with()
    rounded = {layer: each.detach().to(dtype).requires_grad_() for layer, each in states_for(batch, LAYERS).items()}
    found = ask(made, name, [batch], [rounded])
    expected = ask_twin(made, name, batch, rounded)
    torch.testing.assert_close(found.value.double(), expected.value, rtol=2e-5, atol=2e-5)
    for layer in LAYERS:
        gradient = expected.gradients[f"student{layer}"]
        # Gradients come back in the type of the states: relative error of half a unit in the last place.
        near = {"rtol": torch.finfo(dtype).eps, "atol": 2e-5 * max(float(gradient.abs().max()), 1e-3)}
        torch.testing.assert_close(found.gradients[f"student{layer}"].double(), gradient, **near)


def test_the_total_is_the_sum_of_coefficients_times_sums() -> None:
    made = objective_with(HIDDEN_NAMES, losses_with(router=True))
    batch = batch_with()
    coefficients = {name: 0.5 + i for i, name in enumerate(HIDDEN_NAMES)}
    result = made(states_for(batch, LAYERS), batch, coefficients)
    expected = sum(coefficients[name] * result.sums[name] for name in HIDDEN_NAMES)
    torch.testing.assert_close(result.total, expected)
    assert not any(each.requires_grad for each in (*result.sums.values(), *result.logged.values()))


def test_a_term_without_a_coefficient_is_not_worked_out() -> None:
    made = objective_with(["cosine", "cka"])
    batch = batch_with()
    assert set(made(states_for(batch, LAYERS), batch, {"cka": 1.0}).sums) == {"cka"}


def test_cached_states_get_no_gradient() -> None:
    made = objective_with(HIDDEN_NAMES, losses_with(router=True))
    batch = batch_with()
    made(states_for(batch, LAYERS), batch, dict.fromkeys(HIDDEN_NAMES, 1.0)).total.backward()
    assert all(each.grad is None for each in (*batch.hidden.values(), *batch.pooled.values()))


@pytest.mark.parametrize("name", OVER_ROWS)
def test_padding_does_not_matter(name: HiddenName) -> None:
    batch = batch_with()
    states = states_for(batch, LAYERS)
    found = ask(objective_with([name]), name, [batch], [states])
    for layer in LAYERS:
        assert not found.gradients[f"student{layer}"][batch.document_BT < 0].any()


def test_documents_leave_padding_out_and_take_in_tokens_that_are_no_rows() -> None:
    batch = batch_with()
    found = ask(objective_with(["document_relations"]), "document_relations", [batch], [states_for(batch, LAYERS)])
    gradient_BT = found.gradients["student2"].abs().sum(dim=2)
    assert not gradient_BT[batch.document_BT < 0].any()
    assert (gradient_BT[batch.document_BT >= 0] > 0).all()


def halved_rows(batch: object, most: int) -> object:
    anchors = grouping.find_anchors(batch, most)  # type: ignore[arg-type]
    return replace(anchors, rows_BA=anchors.rows_BA.roll(1, dims=1))


# What is planted: where, a name there, what takes its place, and the terms that have to notice.
MUTANTS: list[tuple[object, str, Callable[..., object], tuple[HiddenName, ...]]] = [
    (vectors, "cosine", lambda x, y: -cosine(x, y), ("cosine",)),
    (vectors, "cosine", lambda x, y: cosine(x, y.roll(1, 0)), ("cosine",)),
    (vectors, "mse", lambda x, y: mse(x, y) * x.shape[1], ("mse",)),
    (vectors, "mse", lambda x, y: mse(x, y.roll(1, 0)), ("mse",)),
    (vectors, "correlation", lambda x, y: 1 - (1 - correlation(x, y)) ** 2, ("correlation",)),
    (vectors, "_centered", lambda rows: rows, ("correlation", "cka")),
    (vectors, "linear_cka", lambda x, y: 1 - linear_cka(x, y), ("cka",)),
    (objective, "find_anchors", halved_rows, ("position_relations",)),
    (relations, "_cosines", lambda units: units @ units.mT, ("position_relations", "document_relations")),
    (objective, "unit", lambda states: states, ("cosine", "mse", "correlation", "position_relations")),
    (
        objective,
        "document_means",
        lambda states, batch: 1 / grouping.document_means(states, batch),
        ("document_relations",),
    ),
    (router, "unit", lambda mixed: mixed, ("mse",)),
    (objective, "n_groups", lambda batch, group: 1, ("router_balance",)),
]


@pytest.mark.parametrize(
    ("module", "name", "mutant", "terms"), MUTANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_error_is_noticed(
    module: object,
    name: str,
    mutant: Callable[..., object],
    terms: tuple[HiddenName, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routed = module is router or "router_balance" in terms
    for term in terms:
        expected = twin(term, routed=routed)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, mutant)
            function_of.cache_clear()
            found = requested(term, routed=routed)
        function_of.cache_clear()
        with pytest.raises(AssertionError):
            agrees(found, expected)
