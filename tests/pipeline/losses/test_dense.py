"""Targets from states: every loss is exact at any temperature, with the teacher's own head behind the states."""

import pytest
import torch

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.dense_chunk import TeacherHead
from kdpipe.schemas.losses import LOGIT_LOSSES
from support.loss_twins import Asked, World, answer, world
from support.losses import distance, ours, tolerance

DIVERGENCES = [name for name, loss in LOGIT_LOSSES.items() if loss.compares == "bins"]
NOTHING = torch.zeros(12, 0)


def printed_by(width: int = 5, *, bias: bool = False, cap: float | None = None) -> tuple[World, Targets, TeacherHead]:
    """A world whose teacher has states and a head of its own."""
    made = torch.Generator().manual_seed(5)
    states, weight = (torch.randn(n, width, generator=made).double() for n in (12, 23))
    added = torch.randn(23, generator=made).double() if bias else None
    logits = 1.5 * (states @ weight.T + (0 if added is None else added))
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    w = world(seed=51)
    counts = torch.zeros(12, dtype=torch.long)
    kept = Targets(
        ids_NK=NOTHING.long(),
        weights_NK=NOTHING,
        logprobs_NK=NOTHING,
        count_N=counts,
        n_exact_N=counts,
        state_NH=states.float(),
    )
    head = TeacherHead(
        weight_VH=weight.float(), bias_V=None if added is None else added.float(), soft_cap=cap, logit_scale=1.5
    )
    return World(**{**vars(w), "teacher_NV": logits}), kept, head


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_loss_is_exact_at_any_temperature(name: str, temperature: float, dtype: torch.dtype) -> None:
    w, kept, teacher = printed_by()
    requested = [Asked(name="ce", coefficient=0.1), Asked(name=name, coefficient=0.9, temperature=temperature)]
    _, found = ours(w, requested, kept, dtype=dtype, teacher=teacher)
    assert distance(found, answer(w, requested)) < tolerance(requested, dtype)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_heads_with_bias_and_cap_are_the_teachers_and_the_students_own(opaque: bool, autocast: bool) -> None:
    w, kept, teacher = printed_by(bias=True, cap=4.0)
    w = World(**{**vars(w), "soft_cap": 3.0, "scale": 0.5})
    requested = [Asked(name="ce", coefficient=0.1), Asked(name="jsd", coefficient=0.9, temperature=2.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        _, found = ours(w, requested, kept, teacher=teacher, opaque=opaque)
    assert distance(found, answer(w, requested)) < tolerance(requested, torch.bfloat16 if autocast else torch.float32)


def test_nothing_is_left_to_renormalize() -> None:
    w, kept, teacher = printed_by()
    _, found = ours(w, [Asked(name="renormalized")], kept, teacher=teacher)
    due = answer(w, [Asked(name="forward_kl")])
    assert abs(found.total - due.total) < 1e-4


def test_chunks_and_chosen_rows_are_as_for_entries() -> None:
    w, kept, teacher = printed_by()
    requested = [Asked(name="reverse_kl", coefficient=0.9, chosen_N=torch.arange(12) < 7)]
    for rows in (8, 96):
        _, found = ours(w, requested, kept, teacher=teacher, chunk_rows=rows)
        assert distance(found, answer(w, requested)) < 2e-5


def test_a_teachers_head_of_half_precision_is_widened_once() -> None:
    w, kept, teacher = printed_by()
    half = TeacherHead(weight_VH=teacher.weight_VH.bfloat16(), logit_scale=1.5)
    logits = half.to(torch.device("cpu")).logits(kept.state_NH.bfloat16(), torch.float32)  # type: ignore[union-attr]
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), w.teacher_NV, rtol=5e-2, atol=1e-1)
