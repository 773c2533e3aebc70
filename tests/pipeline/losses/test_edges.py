"""Edges: sure teachers, empty tails, no rows, odd labels, tied and frozen heads, autocast, checkpoints, bad numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.models.head import Head
from kdpipe.schemas.losses import LOGIT_LOSSES
from support.loss_twins import Asked, answer, largest_ids, softmax, student_logits, targets, world
from support.losses import Opaque, distance, head_of, linear, ours, terms_of

ALL = list(LOGIT_LOSSES)
HYBRID = [Asked(name="ce", coefficient=0.1), Asked(name="forward_kl", coefficient=0.9)]


def sure(n: int, log_tail: float) -> Targets:
    """One kept id of (nearly) all mass in every row, at any temperature."""
    return Targets(
        ids_NK=torch.zeros(n, 3, dtype=torch.int32),
        weights_NK=torch.tensor([[1.0, 0.0, 0.0]]).repeat(n, 1),
        logprobs_NK=torch.tensor([[0.0, -torch.inf, -torch.inf]]).repeat(n, 1),
        count_N=torch.ones(n, dtype=torch.int32),
        n_exact_N=torch.ones(n, dtype=torch.int32),
        log_tail_N=torch.full((n,), log_tail),
        entropy_N=torch.zeros(n),
        log_z={2.0: torch.zeros(n)},
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("log_tail", [-math.inf, -120.0])
def test_one_id_of_probability_1_is_finite(name: str, temperature: float, opaque: bool, log_tail: float) -> None:
    w = world(seed=31)
    requested = [Asked(name=name, temperature=1.0 if name == "ce" else temperature)]
    _, found = ours(w, requested, sure(12, log_tail), opaque=opaque)
    q = softmax(student_logits(w, w.states_NH, w.weight_VH, None), requested[0].temperature)
    assert torch.isfinite(found.states_NH).all() and torch.isfinite(found.weight_VH).all()
    if name in ("forward_kl", "renormalized"):
        assert found.total == pytest.approx(float(-q[:, 0].log().sum()), rel=1e-4)
    if name == "total_variation":
        assert found.total == pytest.approx(float((1 - q[:, 0]).sum()), rel=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("opaque", [False, True])
def test_a_vocabulary_smaller_than_the_kept_ids_is_finite(name: str, opaque: bool) -> None:
    w = world(seed=32, vocabulary=2)
    exact = largest_ids(w, [1, 2] * 6)
    one = Asked(name=name, exact=exact)
    _, found = ours(w, [one], targets(w, exact, draws=9), opaque=opaque, loss_options=LossOptions(tail_weight=0.0))
    assert distance(found, answer(w, [one])) < 1e-4
    _, found = ours(w, [one], targets(w, exact, draws=9), opaque=opaque)
    assert math.isfinite(found.total) and torch.isfinite(found.weight_VH).all()


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("watch", [False, True])
def test_no_rows_give_nothing_and_no_gradient(opaque: bool, watch: bool) -> None:
    w = world(seed=33)
    none = torch.zeros(0, dtype=torch.long)
    module = linear(w, torch.float32)
    states = w.states_NH.float().requires_grad_()
    head = HeadLosses(head_of(w, Opaque(module) if opaque else module), LossOptions())
    result = head(states[:0], none, sure(0, -1.0), terms_of(HYBRID), watch=watch)
    assert float(result.total.detach()) == 0 and all(float(value) == 0 for value in result.sums.values())
    result.total.backward()
    assert states.grad is not None and not states.grad.any()
    if not opaque:
        assert module.weight.grad is not None and not module.weight.grad.any()
    if watch:
        assert result.statistics is not None and len(result.statistics.argmax_N) == 0


def test_rows_that_no_term_has_chosen_give_nothing() -> None:
    w = world(seed=34)
    no_position = torch.zeros(12, dtype=torch.bool)
    requested = [Asked(name="ce", chosen_N=no_position), Asked(name="reverse_kl", chosen_N=no_position)]
    _, found = ours(w, requested, targets(w, largest_ids(w, [3] * 12)))
    assert found.total == 0 and not found.weight_VH.any() and not found.states_NH.any()


@pytest.mark.parametrize("opaque", [False, True])
def test_labels_among_and_outside_the_kept_ids_are_trained_on(opaque: bool) -> None:
    w = world(seed=35)
    exact = largest_ids(w, [3] * 12)
    for place in (0, 2, None):
        outside = [next(i for i in range(23) if i not in ids) for ids in exact]
        labels = torch.tensor(
            [ids[place] if place is not None else out for ids, out in zip(exact, outside, strict=True)]
        )
        labeled = replace(w, labels_N=labels)
        requested = [Asked(name="ce", coefficient=0.4), Asked(name="forward_kl", coefficient=0.6, exact=exact)]
        _, found = ours(labeled, requested, targets(w, exact), opaque=opaque)
        assert distance(found, answer(labeled, requested)) < 2e-5


def test_a_tied_head_and_embedding_share_one_gradient() -> None:
    w = world(seed=36)
    module = linear(w, torch.float32)
    embedding = nn.Embedding(23, 6)
    embedding.weight = module.weight
    tokens = torch.arange(12)
    result = HeadLosses(head_of(w, module), LossOptions())(embedding(tokens), w.labels_N, None, terms_of(HYBRID[:1]))
    result.total.backward()
    plain = w.weight_VH.clone().requires_grad_()
    loss = nn.functional.cross_entropy(plain[tokens] @ plain.T, w.labels_N, reduction="sum") * 0.1
    loss.backward()
    assert module.weight.grad is not None and plain.grad is not None
    torch.testing.assert_close(module.weight.grad.double(), plain.grad, rtol=1e-5, atol=1e-6)


def test_rows_that_pad_a_vocabulary_get_no_gradient() -> None:
    w = world(seed=37, n_padding=5, bias=True)
    _, found = ours(w, HYBRID, targets(w, largest_ids(w, [3] * 12)))
    assert found.weight_VH[:23].any() and not found.weight_VH[23:].any()
    assert found.bias_V is not None and found.bias_V[:23].any() and not found.bias_V[23:].any()


@pytest.mark.parametrize("opaque", [False, True])
def test_a_frozen_head_passes_the_gradient_on(opaque: bool) -> None:
    w = world(seed=38)
    module = linear(w, torch.float32).requires_grad_(False)
    states = w.states_NH.float().requires_grad_()
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    head = HeadLosses(head_of(w, Opaque(module) if opaque else module), LossOptions())
    head(states, w.labels_N, kept, terms_of(HYBRID)).total.backward()
    assert module.weight.grad is None and states.grad is not None
    _, found = ours(w, HYBRID, kept)
    torch.testing.assert_close(states.grad.double(), found.states_NH, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opaque", [False, True])
def test_frozen_states_leave_the_head_to_learn(opaque: bool) -> None:
    w = world(seed=38)
    module = linear(w, torch.float32)
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    head = HeadLosses(head_of(w, Opaque(module) if opaque else module), LossOptions())
    head(w.states_NH.float(), w.labels_N, kept, terms_of(HYBRID)).total.backward()
    assert module.weight.grad is not None
    _, found = ours(w, HYBRID, kept)
    torch.testing.assert_close(module.weight.grad.double(), found.weight_VH, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_gradients_in_the_type_of_the_weights(opaque: bool, dtype: torch.dtype) -> None:
    w = world(seed=39)
    exact = largest_ids(w, [5] * 12)
    requested = [Asked(name="ce", coefficient=0.1), Asked(name="forward_kl", coefficient=0.9, exact=exact)]
    with torch.autocast("cpu", dtype=dtype):
        result, found = ours(w, requested, targets(w, exact), opaque=opaque)
    assert result.total.dtype is torch.float32
    assert distance(found, answer(w, requested)) < (4e-2 if dtype is torch.bfloat16 else 5e-3)


@pytest.mark.parametrize("opaque", [False, True])
def test_gradient_checkpointing_leaves_gradients_equal(opaque: bool) -> None:
    w = world(seed=40)
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    found: list[Tensor] = []
    for reentrant in (None, True, False):
        torch.manual_seed(0)
        body, module = nn.Linear(6, 6), linear(w, torch.float32)
        states = w.states_NH.float().requires_grad_()
        out = body(states) if reentrant is None else checkpoint(body, states, use_reentrant=reentrant)
        head = HeadLosses(head_of(w, Opaque(module) if opaque else module), LossOptions())
        head(out, w.labels_N, kept, terms_of(HYBRID)).total.backward()
        assert body.weight.grad is not None
        found.append(body.weight.grad)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_without_gradients_the_values_are_the_same() -> None:
    w = world(seed=41)
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    losses = HeadLosses(head_of(w, linear(w, torch.float32)), LossOptions())
    states = w.states_NH.float()
    with_them = losses(states, w.labels_N, kept, terms_of(HYBRID))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            without = losses(states, w.labels_N, kept, terms_of(HYBRID))
        assert not without.total.requires_grad
        assert float(without.total) == float(with_them.total.detach())
    losses(states, w.labels_N, kept, terms_of(HYBRID)).total.backward()


def test_a_bare_function_may_be_a_head() -> None:
    w = world(seed=42)
    module = linear(w, torch.float32)
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    states = w.states_NH.float().requires_grad_()
    losses = HeadLosses(module, LossOptions(), chunk_bytes=400)
    assert not losses.is_fused
    losses(states, w.labels_N, kept, terms_of(HYBRID)).total.backward()
    _, found = ours(w, HYBRID, kept)
    assert states.grad is not None
    torch.testing.assert_close(states.grad.double(), found.states_NH, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-16])
def test_gradients_of_half_precision_neither_overflow_nor_vanish(factor: float) -> None:
    """The scaled loss of fp16 training: 1/N as a coefficient, the scaler's factor in the backward."""
    w = world(seed=43)
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    module = linear(w, torch.float16)
    states = w.states_NH.half().requires_grad_()
    term = LogitTerm(name="forward_kl", coefficient=1e-9 / factor)
    (HeadLosses(head_of(w, module), LossOptions())(states, w.labels_N, kept, [term]).total * factor * 1e9).backward()
    _, found = ours(w, [Asked(name="forward_kl")], kept)
    assert states.grad is not None and module.weight.grad is not None
    torch.testing.assert_close(states.grad.double(), found.states_NH, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_clamped_logits_learn_nothing_beyond_the_clamp(opaque: bool, soft_cap: float | None) -> None:
    w = world(seed=48, soft_cap=soft_cap)
    states, weight = w.states_NH.clone().requires_grad_(), w.weight_VH.clone().requires_grad_()
    logits = student_logits(w, states, weight, None).clamp(-1.5, 1.5)
    nn.functional.cross_entropy(logits, w.labels_N, reduction="sum").backward()
    _, found = ours(w, [Asked(name="ce")], None, opaque=opaque, loss_options=LossOptions(clamp_logits=1.5))
    assert states.grad is not None and weight.grad is not None
    torch.testing.assert_close(found.states_NH, states.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weight_VH, weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opaque", [False, True])
def test_clamped_losses_stop_at_the_clamp_and_teach_nothing_there(opaque: bool) -> None:
    w = world(seed=49)
    each = -softmax(student_logits(w, w.states_NH, w.weight_VH, None))[torch.arange(12), w.labels_N].log()
    most = float(each.median())
    _, found = ours(w, [Asked(name="ce")], None, opaque=opaque, loss_options=LossOptions(clamp_loss=most))
    due = answer(w, [Asked(name="ce", chosen_N=each < most)])
    assert found.total == pytest.approx(float(each.clamp(max=most).sum()), rel=1e-5)
    beyond = each > most
    assert not found.states_NH[beyond].any()
    torch.testing.assert_close(found.states_NH[each < most], due.states_NH[each < most], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ALL)
def test_a_state_that_is_no_number_is_not_hidden(bad: float, name: str, opaque: bool) -> None:
    w = world(seed=44)
    states = w.states_NH.clone()
    states[4, 2] = bad
    kept = targets(w, largest_ids(w, [3] * 12), draws=3)
    loss_options = LossOptions(clamp_loss=50.0)
    result, found = ours(
        replace(w, states_NH=states), [Asked(name=name)], kept, opaque=opaque, loss_options=loss_options
    )
    assert not math.isfinite(found.total) and not math.isfinite(next(iter(result.sums.values())))


def test_one_pass_gives_its_gradient_once() -> None:
    w = world(seed=45)
    losses = HeadLosses(head_of(w, linear(w, torch.float32)), LossOptions())
    total = losses(w.states_NH.float(), w.labels_N, None, terms_of(HYBRID[:1])).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called twice"):
        total.backward()


def test_statistics_are_those_of_the_whole_distribution() -> None:
    w = world(seed=46, bias=True, soft_cap=4.0, n_padding=3)
    q = softmax(student_logits(w, w.states_NH, w.weight_VH, w.bias_V))
    module = linear(w, torch.float32)
    kept = targets(w, largest_ids(w, [3] * 12))
    for head in (head_of(w, module), head_of(w, Opaque(module))):
        if isinstance(head.module, Opaque):
            head = Head(module=head.module, vocabulary_size=23, scale=1.0, soft_cap=4.0)
        losses = HeadLosses(head, LossOptions(), chunk_bytes=4 * 23 * 5)
        beside = losses(w.states_NH.float(), w.labels_N, kept, terms_of(HYBRID), watch=True).statistics
        for found in (losses.statistics(w.states_NH.float().requires_grad_(), w.labels_N), beside):
            assert found is not None and not found.cross_entropy_N.requires_grad
            assert torch.equal(found.argmax_N, q.argmax(dim=1))
            expected = (-q[torch.arange(12), w.labels_N].log(), q.amax(dim=1), -(q * q.log()).sum(dim=1))
            seen = (found.cross_entropy_N, found.confidence_N, found.entropy_N)
            for one, due in zip(seen, expected, strict=True):
                torch.testing.assert_close(one.double(), due, rtol=1e-5, atol=1e-5)


def test_no_request_does_nothing() -> None:
    w = world(seed=47)
    result = HeadLosses(head_of(w, linear(w, torch.float32)), LossOptions())(w.states_NH.float(), w.labels_N, None, ())
    assert float(result.total) == 0 and result.sums == {} and result.statistics is None
