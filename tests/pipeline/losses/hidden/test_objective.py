"""The objective around its terms: what it requests, what it counts, what it trains, and the edges."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, HiddenName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.losses import HIDDEN_LOSSES
from support.hidden_batches import batch_with, manifest_with, states_for
from support.hidden_objectives import ask, losses_with, objective_with

LAYERS = (2, 4)
PLAIN = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.over != "mixtures")
MAPPED = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.mapped)
ROTATED = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.compares_rows and not loss.mapped)
KINDS = ("weight", "bias")
every_term = pytest.mark.parametrize("name", PLAIN)


def test_only_arrays_that_the_terms_need_are_requested() -> None:
    manifest = manifest_with(rows={6: 5, 12: 5}, pooled={3: 6})
    assert objective_with(["cka"], manifest=manifest).wants() == ((6, 12), ())
    assert objective_with(["document_relations"], manifest=manifest).wants() == ((), (3,))
    both = objective_with(["cka", "document_relations"], manifest=manifest)
    assert (both.wants(), both.layers) == (((6, 12), (3,)), (1, 2, 4))
    one = objective_with(["cka"], losses_with(pairs=("4:12",)), manifest)
    assert (one.wants(), one.layers) == (((12,), ()), (4,))
    routed = objective_with(["cka"], losses_with(pairs=("4:12",), router=True), manifest)
    assert (routed.wants(), routed.layers) == (((6, 12), ()), (4,))


def test_rows_pairs_and_groups_are_counted() -> None:
    made = objective_with(HIDDEN_NAMES, losses_with(router=True, anchors=3))
    batch = every_token(batch_with([(4, 3), (1,), (1, 1), (1,), (3,)]))
    # Rows: 3 + 2 and 2 behind; three anchors of the first are rows 0, 1 and 3; groups of two sequences have 5, 0, 2.
    assert made.counts(batch) == {
        "cosine": 7,
        "correlation": 2,
        "mse": 7,
        "position_relations": 1 + 1,
        "document_relations": 3 + 3 + 0,
        "cka": 2,
        "router_balance": 3,
    }


def every_token(batch: MicroBatch) -> MicroBatch:
    """The same with a row at every token but each document's last."""
    document = batch.document_BT
    trained = (document[:, :-1] == document[:, 1:]) & (document[:, 1:] >= 0)
    flat = torch.nn.functional.pad(trained, (0, 1)).flatten().nonzero()[:, 0]
    hidden = {layer: torch.randn(len(flat), states.shape[1]) for layer, states in batch.hidden.items()}
    return replace(batch, places_N=flat, sequence_N=flat // document.shape[1], labels_N=flat * 0, hidden=hidden)


def test_only_terms_that_need_a_map_have_one() -> None:
    for name in ("position_relations", "document_relations", "cka"):
        assert not list(objective_with([name]).parameters())
    names = [name for name, _ in objective_with(["cosine", "mse"]).named_parameters()]
    assert names == [f"maps.{pair}.{what}" for pair in ("student2_teacher6", "student4_teacher12") for what in KINDS]
    routed = {name for name, _ in objective_with(["mse"], losses_with(router=True)).named_parameters()}
    assert routed == {*(f"maps.student{layer}.{what}" for layer in (2, 4) for what in KINDS), "router.logits"}


def test_a_map_takes_the_width_that_its_layer_of_the_student_has() -> None:
    """Some families project their last states before the head."""
    made = HiddenObjective(losses_with(), ["mse"], manifest_with(rows={6: 5, 12: 5}), [7, 7, 7, 7, 3], 0)
    widths = {name: tuple(weight.shape) for name, weight in made.named_parameters() if name.endswith("weight")}
    assert widths == {"maps.student2_teacher6.weight": (5, 7), "maps.student4_teacher12.weight": (5, 3)}


def test_equal_seeds_make_equal_maps_and_draw_from_no_one_else() -> None:
    before = torch.get_rng_state()
    first, again, other = (objective_with(["mse"], seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


def test_maps_begin_with_a_tenth_of_the_size_of_their_targets() -> None:
    manifest = manifest_with(rows={12: 512})
    weight = objective_with(["mse"], manifest=manifest).state_dict()["maps.student4_teacher12.weight"]
    states = torch.randn(1000, weight.shape[1])
    assert (states @ weight.T).square().mean().sqrt() == pytest.approx(0.1, abs=0.005)


def test_an_identity_map_of_equal_states_costs_nothing() -> None:
    batch = batch_with(rows={6: 7, 12: 7})
    made = objective_with(MAPPED, manifest=manifest_with(rows={6: 7, 12: 7}))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.eye(7) if name.endswith("weight") else torch.zeros(7))
    found = made(met_exactly(batch, scale=30.0), batch, dict.fromkeys(MAPPED, 1.0))
    assert all(abs(float(value)) < 1e-4 for value in found.sums.values())


def test_relations_and_cka_do_not_see_size_and_rotation() -> None:
    batch = batch_with(rows={6: 7, 12: 7})
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(2)))[0]
    made = objective_with(ROTATED, manifest=manifest_with(rows={6: 7, 12: 7}))
    turned = {layer: states @ turn for layer, states in met_exactly(batch, scale=0.01).items()}
    found = made(turned, batch, dict.fromkeys(ROTATED, 1.0))
    assert all(abs(float(value)) < 1e-4 for value in found.sums.values())


def met_exactly(batch: MicroBatch, scale: float) -> dict[int, Tensor]:
    """A student whose states at the rows are the teacher's, longer."""
    found = {}
    for student, teacher in ((2, 6), (4, 12)):
        flat = torch.zeros(batch.tokens_BT.numel(), 7)
        flat[batch.places_N] = batch.hidden[teacher] * scale
        found[student] = flat.view(*batch.tokens_BT.shape, 7)
    return found


@every_term
@pytest.mark.parametrize("documents", [((1,), (1, 1)), ((1,),), ((2,),), ((2,), (1,)), ((3,), (2,))])
def test_few_rows_and_documents_are_no_fault(name: HiddenName, documents: tuple[tuple[int, ...], ...]) -> None:
    batch = every_token(batch_with(documents))
    found = ask(objective_with([name]), name, [batch], [states_for(batch, LAYERS)])
    assert bool(found.value.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients.values())
    assert (found.value == 0) == (found.count == 0)


@every_term
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_states_of_zeros_are_like_nothing_and_no_fault(name: HiddenName, who: str) -> None:
    batch = batch_with()
    states = states_for(batch, LAYERS)
    if who != "teacher":
        states = {layer: torch.zeros_like(each).requires_grad_() for layer, each in states.items()}
    if who != "student":
        batch = replace(batch, hidden=zeros(batch.hidden), pooled=zeros(batch.pooled))
    made = objective_with([name])
    with torch.no_grad():
        for parameter in (each for key, each in made.named_parameters() if key.endswith("bias")):
            parameter.zero_()
    found = ask(made, name, [batch], [states])
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients.values())
    likeness = 1 - float(found.value) / found.count
    if name in ("cosine", "correlation", "cka"):
        assert likeness == pytest.approx(0, abs=1e-6)
    if name == "mse" and who == "student":
        assert likeness == pytest.approx(0, abs=1e-6)
    if who == "both" and name not in ("cosine", "correlation", "cka"):
        assert found.value == 0


@every_term
@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_state_that_is_no_number_is_not_hidden(name: HiddenName, router: bool, who: str, odd: float) -> None:
    batch = batch_with()
    states = states_for(batch, LAYERS)
    if who == "student":
        states = {layer: (each.detach() * odd).requires_grad_() for layer, each in states.items()}
    else:
        batch = replace(batch, hidden=spoilt(batch.hidden, odd), pooled=spoilt(batch.pooled, odd))
    found = objective_with([name, "cosine"], losses_with(router=router))(states, batch, {name: 1.0})
    assert not found.sums[name].isfinite() and not found.total.isfinite()


def spoilt(states: object, value: float) -> dict[int, Tensor]:
    assert isinstance(states, dict)
    found = {layer: each.clone() for layer, each in states.items()}
    for each in found.values():
        each[1] = value
    return found


def zeros(states: dict[int, Tensor] | object) -> dict[int, Tensor]:
    assert isinstance(states, dict)
    return {layer: torch.zeros_like(each) for layer, each in states.items()}


@pytest.mark.parametrize("name", ["correlation", "cka"])
def test_rows_that_are_all_alike_vary_with_nothing(name: HiddenName) -> None:
    batch = batch_with()
    alike = {layer: torch.full_like(each, 0.1).requires_grad_() for layer, each in states_for(batch, LAYERS).items()}
    found = ask(objective_with([name]), name, [batch], [alike])
    assert float(found.value) == pytest.approx(found.count)
    assert all(bool((gradient.abs() < 1e-3).all()) for gradient in found.gradients.values())


def test_a_few_long_states_do_not_decide_alone() -> None:
    batch = batch_with()
    states = states_for(batch, LAYERS)
    plain = {name: ask(objective_with([name]), name, [batch], [states]).value for name in PLAIN if "doc" not in name}
    for each in states.values():
        each.data[:, 0] *= 1000
    for name, value in plain.items():
        torch.testing.assert_close(ask(objective_with([name]), name, [batch], [states]).value, value)


def test_a_router_starts_with_half_of_each_mixture_at_its_pair() -> None:
    manifest = manifest_with(rows={3: 5, 6: 5, 9: 5, 12: 5})
    made = objective_with(["cka"], losses_with(router=True, pairs=("1:9", "4:12")), manifest)
    fresh = type(made)(losses_with(router=True, pairs=("1:9", "4:12")), ["cka"], manifest, [7] * 5, 0)
    assert fresh.router is not None
    sixth = 1 / 6
    expected = torch.tensor([[sixth, sixth, 0.5, sixth], [sixth, sixth, sixth, 0.5]])
    torch.testing.assert_close(fresh.router.mixtures(), expected)
    named = fresh.router.named_weights()
    assert float(named["router/student1/teacher9"]) == pytest.approx(0.5)
    assert float(named["router/student4/teacher3"]) == pytest.approx(sixth)


def test_balance_is_least_when_every_layer_is_used_alike() -> None:
    made = objective_with(["cka", "router_balance"], losses_with(router=True))
    assert made.router is not None
    for logits, nats in (
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
        ([[9.0, -9.0], [-9.0, 9.0]], 0.0),
        ([[99.0, -99.0]] * 2, 0.6931),
    ):
        with torch.no_grad():
            made.router.logits.copy_(torch.tensor(logits))
        assert float(made.router.balance().detach()) == pytest.approx(nats, abs=1e-4)
    made.router.balance().backward()
    assert made.router.logits.grad is not None
    assert bool(made.router.logits.grad.isfinite().all())


def test_a_router_is_trained_toward_the_layer_it_can_follow() -> None:
    batch = batch_with([(9, 9), (9, 9)], rows={6: 7, 12: 7})
    made = objective_with(["mse"], losses_with(router=True, pairs=("4:12",)), manifest_with(rows={6: 7, 12: 7}))
    assert made.router is not None
    flat = torch.zeros(batch.tokens_BT.numel(), 7)
    flat[batch.places_N] = batch.hidden[6]
    layers = {4: flat.view(*batch.tokens_BT.shape, 7)}
    adam = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        result = made(layers, batch, {"mse": 1.0 / len(batch.places_N)})
        adam.zero_grad()
        result.total.backward()
        adam.step()
    assert float(result.logged["router/student4/teacher6"]) > 0.9
    assert float(result.sums["mse"]) / len(batch.places_N) < 0.1


@pytest.mark.parametrize(
    ("terms", "rows", "kind", "words"),
    [
        (["document_relations"], {6: 5, 12: 5}, ConfigError, "losses.hidden.router"),
        (["cosine"], {6: 5}, Incompatible, "layer 6"),
        (["cosine"], {6: 5, 12: 4}, Incompatible, r"5 \(layer 6\), 4 \(layer 12\)"),
    ],
)
def test_a_router_with_nothing_to_mix_is_refused(
    terms: list[HiddenName], rows: dict[int, int], kind: type[ConfigError], words: str
) -> None:
    with pytest.raises(kind, match=words) as found:
        objective_with(terms, losses_with(router=True), manifest_with(rows=rows))
    assert found.value.hint


def test_balance_without_a_router_is_refused() -> None:
    with pytest.raises(ConfigError, match="router_balance") as found:
        objective_with(["cosine", "router_balance"])
    assert "losses.hidden.router=true" in (found.value.hint or "")
