"""What kept entries say at a temperature: log_z between its points, the mass of the bin, what is refused and why."""

import math
from dataclasses import replace

import pytest
import torch

from kdpipe.pipeline.losses.exactness import check_spec, label
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.teacher_bins import bins, kept_mass, log_z
from kdpipe.pipeline.losses.terms import LOGIT_NAMES, LogitTerm, LossOptions
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK
from kdpipe.schemas.targets import TargetSpec
from support.loss_twins import Asked, largest_ids, softmax, targets, world
from support.losses import head_of, linear, ours

THRESHOLD = TargetSpec(keep=Threshold(tau=0.04), temperatures=(2.0, 4.0))


def test_log_z_is_on_the_straight_line_in_1_over_t() -> None:
    w = world(seed=61)
    kept = targets(w, largest_ids(w, [3] * 12), temperatures=(2.0, 4.0))
    found = log_z(kept, 2.5, torch.float64)
    share = (1 / 2.5 - 1 / 2) / (1 / 4 - 1 / 2)
    torch.testing.assert_close(found, (1 - share) * kept.log_z[2.0] + share * kept.log_z[4.0])
    torch.testing.assert_close(log_z(kept, 4.0, torch.float64), kept.log_z[4.0])
    half_way = log_z(kept, 4 / 3, torch.float64)
    torch.testing.assert_close(half_way, kept.log_z[2.0] / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_kept_mass_is_that_of_the_exact_ids(temperature: float) -> None:
    w = world(seed=62)
    exact = largest_ids(w, [3] * 12)
    p = softmax(w.teacher_NV, temperature)
    due = torch.stack([p[r, ids].sum() for r, ids in enumerate(exact)])
    found = kept_mass(targets(w, exact, draws=4), temperature)
    torch.testing.assert_close(found.double(), due, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_a_rounded_log_z_leaves_the_bin_what_the_tail_proves(temperature: float) -> None:
    """log_z is stored in steps of 1/1024: without a bound a tail of 1e-6 would become 0, or a thousand times larger."""
    w = world(seed=63, spread=5.0)
    kept = targets(w, largest_ids(w, [6] * 12))
    for step in (-1 / 2048, 1 / 2048):
        rounded = replace(kept, log_z={t: values + step for t, values in kept.log_z.items()})
        found = bins(rounded, temperature, 23, torch.float64).log_bin_C
        p = softmax(w.teacher_NV, temperature)
        left = torch.stack([1 - p[r, ids].sum() for r, ids in enumerate(largest_ids(w, [6] * 12))])
        proven = kept.log_tail_N / temperature - kept.log_z[temperature]  # type: ignore[operator]
        if temperature > 1:
            assert (found >= proven - 1e-3).all()
        else:
            assert (found <= proven + 1e-3).all()
        assert (found.exp() - left).abs().max() < 1e-3


@pytest.mark.parametrize("temperature", [0.9, 4.5])
def test_a_temperature_that_the_cache_does_not_know_is_refused(temperature: float) -> None:
    w = world(seed=64)
    kept = targets(w, largest_ids(w, [3] * 12), temperatures=(2.0, 4.0))
    values = f"temperatures 1, 2, 4 .* {temperature:g}"
    with pytest.raises(Incompatible, match=values) as refused:
        ours(w, [Asked(name="jsd", temperature=temperature)], kept)
    assert refused.value.exit_code == 4 and f"--target-temperature {temperature:g}" in str(refused.value.hint)
    with pytest.raises(Incompatible, match=values):
        check_spec(["jsd"], THRESHOLD, temperature)
    ours(w, [Asked(name="renormalized", temperature=temperature)], kept)
    check_spec(["ce", "renormalized"], THRESHOLD, temperature)


@pytest.mark.parametrize("name", LOGIT_NAMES)
def test_an_import_with_an_unknown_tail_serves_labels_and_renormalized_targets_only(name: str) -> None:
    w = world(seed=65)
    kept = replace(targets(w, largest_ids(w, [3] * 12)), log_tail_N=None, entropy_N=None)
    spec = TargetSpec(keep=Imported(source="somewhere", max_entries=3), entropy=False, temperatures=())
    if name in ("ce", "renormalized"):
        _, found = ours(w, [Asked(name=name)], kept)
        assert math.isfinite(found.total) and found.total > 0
        check_spec([name], spec, 1.0)  # type: ignore[list-item]
        return
    with pytest.raises(Incompatible) as refused:
        ours(w, [Asked(name=name)], kept)
    assert "losses.logit=renormalized" in str(refused.value.hint)
    with pytest.raises(Incompatible):
        check_spec([name], spec, 1.0)  # type: ignore[list-item]


def test_tokens_alone_serve_labels_only() -> None:
    w = world(seed=66)
    spec = TargetSpec(keep=NoTargets(), entropy=False, temperatures=())
    check_spec(["ce"], spec, 1.0)
    for ask in (
        lambda: check_spec(["ce", "forward_kl"], spec, 1.0),
        lambda: HeadLosses(head_of(w, linear(w, torch.float32)), LossOptions())(
            w.states_NH.float(), w.labels_N, None, [LogitTerm(name="forward_kl", coefficient=1.0)]
        ),
    ):
        with pytest.raises(Incompatible) as refused:
            ask()
        assert "--mode output" in str(refused.value.hint)


def test_names_say_whether_a_number_is_exact() -> None:
    plain, bucket = LossOptions(), LossOptions(tail_weight=0.0)
    valued, topk, states = (
        THRESHOLD.model_copy(update=changed)
        for changed in ({"keep": Sampled(draws=8), "draw_values": True}, {"keep": TopK(k=8)}, {"keep": State(width=8)})
    )
    at_two = THRESHOLD.model_copy(update={"target_temperature": 2.0})
    named = [
        ("ce", THRESHOLD, 1.0, plain, "ce"),
        ("forward_kl", THRESHOLD, 1.0, plain, "forward_kl"),
        ("forward_kl", THRESHOLD, 1.0, bucket, "forward_kl_bound"),
        ("forward_kl", THRESHOLD, 2.0, plain, "forward_kl_coarse"),
        ("forward_kl", topk, 1.0, plain, "forward_kl_bound"),
        ("forward_kl", states, 3.0, plain, "forward_kl"),
        ("forward_kl", at_two, 2.0, plain, "forward_kl_shifted"),
        ("forward_kl", at_two, 2.0, bucket, "forward_kl_bound"),
        ("forward_kl", at_two, 1.0, plain, "forward_kl_coarse"),
        ("forward_kl", at_two.model_copy(update={"draw_values": True}), 2.0, plain, "forward_kl"),
        ("forward_kl", THRESHOLD.model_copy(update={"entropy": False}), 1.0, plain, "forward_kl_shifted"),
        ("skew_kl", THRESHOLD, 1.0, plain, "skew_kl_bound"),
        ("skew_kl", valued, 1.0, plain, "skew_kl"),
        ("skew_kl", valued, 2.0, plain, "skew_kl_coarse"),
        ("reverse_kl", valued, 1.0, plain, "reverse_kl_bound"),
        ("jsd", states, 1.0, plain, "jsd"),
        ("total_variation", topk, 2.0, bucket, "total_variation_coarse"),
        ("renormalized", topk, 2.0, bucket, "renormalized"),
    ]
    for name, spec, temperature, options, expected in named:
        assert label(name, spec, temperature, options) == expected  # type: ignore[arg-type]
