"""Reduced rows equal those of the dense float64 twin: ids, masses, scalars, in any batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.target_kinds import Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import TargetSpec
from support import dense_twin
from support.reducing import (
    KEPT,
    Row,
    awkward,
    labels_for,
    reduce_rows,
    reducer,
    request,
    rows_of,
    starts_word,
    targets,
)

SIZES = (1, 2, 5, 100, 1000)
# float32 logits of size 100 are 4e-6 apart, a power of four exp is off by 4e-7, a sum of 1,000 by as much.
NEAR = 1e-5

every_kind = pytest.mark.parametrize("kept", KEPT)
every_temperature = pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])


def stacked(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All awkward rows of a size, and labels."""
    rows = torch.stack(list(awkward(size).values()))
    return rows, labels_for(rows)


@pytest.mark.many
@every_temperature
@every_kind
@pytest.mark.parametrize("size", SIZES)
def test_what_is_kept_is_what_the_twin_keeps(kept: str, temperature: float, size: int) -> None:
    spec = targets(KEPT[kept], temperature)
    rows, labels = stacked(size)
    for logits, label, row in zip(
        rows.numpy(), labels.tolist(), rows_of(reduce_rows(spec, rows, labels), spec), strict=True
    ):
        check_scalars(row, logits, label, spec)
        check_masses(row, logits, spec)
        check_ids(row, logits, spec)


def check_scalars(row: Row, logits: np.ndarray, label: int, spec: TargetSpec) -> None:
    expected = dense_twin.scalars(logits, label, spec.temperatures, starts_word(len(logits)).numpy())
    for name, value in expected.items():
        # A log p of -80,000 has a spacing of 1/128 in float32.
        assert row.scalars[name] == pytest.approx(value, abs=NEAR, rel=1e-6), name
    names = {"log_tail"} | ({"drawn_log_tail"} if spec.target_temperature != 1 else set())
    assert set(row.scalars) == names | set(expected)


def check_masses(row: Row, logits: np.ndarray, spec: TargetSpec) -> None:
    """Log p is the twin's; exact ids and tail add up to 1, at T = 1 and at the target temperature."""
    temperature = spec.target_temperature
    logp = dense_twin.log_softmax(logits)
    for i, value in row.logprobs.items():
        assert value == pytest.approx(logp[i], abs=NEAR, rel=1e-6)
    outside = np.setdiff1d(np.arange(len(logits)), row.exact)
    for name, t in (("log_tail", 1.0), ("drawn_log_tail", temperature)):
        if name in row.scalars:
            tail = np.exp(dense_twin.log_softmax(logits, t)[outside]).sum()
            assert math.exp(row.scalars[name]) == pytest.approx(tail, rel=NEAR, abs=1e-37)
    if spec.has_draws:
        lost = 0.0 if row.draws else math.exp(row.scalars["log_tail" if temperature == 1 else "drawn_log_tail"])
        assert lost <= 1e-5
        assert sum(row.weights.values()) == pytest.approx(1 - lost, abs=NEAR)


def check_ids(row: Row, logits: np.ndarray, spec: TargetSpec) -> None:
    ids, order = row.exact + row.draws, dense_twin.by_rank(logits)
    assert len(set(ids)) == len(ids) <= spec.max_entries
    assert row.exact == order[: len(row.exact)]
    assert len(row.exact) >= 1
    p = np.exp(dense_twin.log_softmax(logits, spec.target_temperature))
    match spec.keep:
        case Threshold() as keep:
            check_threshold(row, p, keep)
        case Sampled() as keep:
            assert len(row.exact) == 1
            assert all(p[i] > 0 for i in row.draws)
            assert not row.draws or sum(row.times) == keep.draws
        case TopK() as keep:
            assert len(row.exact) == min(keep.k, len(p))
        case TopP() as keep:
            # Mass may be reached one id earlier or later where it is reached within rounding.
            fewest, most = (
                dense_twin.top_p(p, keep.p + slack, min(64 if keep.p < 1 else 300, len(p))) for slack in (-NEAR, NEAR)
            )
            assert fewest <= len(row.exact) <= most


def check_threshold(row: Row, p: np.ndarray, keep: Threshold) -> None:
    wanted = dense_twin.entries_wanted(p, keep.tau)
    most = min(keep.max_entries, len(p))
    allowed = {min(max(math.ceil(wanted - slack), 2), most) for slack in (-NEAR, 1e-3)}
    n = len(row.exact) + len(row.draws)
    assert n in allowed or (n < max(allowed) and not row.draws)
    plan = dense_twin.threshold(p, max(allowed) if n not in allowed else n)
    draws = [i for i in range(len(p)) if plan.chances[i] < 1 - NEAR]
    assert not set(draws) & set(row.exact) or not row.draws
    assert all(p[i] > 0 for i in row.draws)
    for i in row.draws:
        assert plan.chances[i] <= 1
        assert row.weights[i] == pytest.approx(plan.share, rel=1e-4)


@given(
    size=st.integers(1, 200),
    tau=st.floats(1e-3, 1.0),
    most=st.integers(2, 40),
    scale=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0]),
    step=st.sampled_from([0.0, 0.25, 2.0]),
    seed=st.integers(0, 1 << 20),
)
@settings(max_examples=100, deadline=None)
def test_any_threshold_keeps_what_the_twin_keeps(
    size: int, tau: float, most: int, scale: float, step: float, seed: int
) -> None:
    spec = targets(Threshold(tau=tau, max_entries=most), 1.0 if seed % 2 else 2.0)
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * scale
    rows = torch.round(rows / step) * step if step else rows
    for logits, row in zip(rows.numpy(), rows_of(reduce_rows(spec, rows, labels_for(rows)), spec), strict=True):
        check_masses(row, logits, spec)
        check_ids(row, logits, spec)


@every_kind
def test_rows_are_reduced_alike_whatever_comes_with_them(kept: str) -> None:
    size = 500
    spec = targets(KEPT[kept], 2.0)
    made = reducer(spec, size)
    rows = torch.cat([stacked(size)[0], torch.randn(200, size, generator=torch.Generator().manual_seed(0)) * 3])
    labels, keys = labels_for(rows), row_keys(0, "train", 1, 0, len(rows))
    whole = made.reduce(rows.clone(), labels, keys)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    shuffled = made.reduce(rows[order], labels[order], keys[order])
    assert_equal(shuffled, whole.take(order))
    pieces = [
        made.reduce(rows[i:j].clone(), labels[i:j], keys[i:j]) for i, j in ((0, 1), (1, 4), (4, 131), (131, len(rows)))
    ]
    assert_equal(ReducedRows.joined(pieces), whole)


def assert_equal(one: ReducedRows, other: ReducedRows) -> None:
    """Equal to the bit wherever there are entries."""
    assert torch.equal(one.n_exact_R, other.n_exact_R)
    assert torch.equal(one.n_draws_R, other.n_draws_R)
    there = torch.arange(one.ids_RK.shape[1]) < (one.n_exact_R + one.n_draws_R)[:, None]
    assert torch.equal(one.ids_RK[there], other.ids_RK[there])
    assert torch.equal(one.logprobs_RK[there], other.logprobs_RK[there])
    if one.times_RK is not None and other.times_RK is not None:
        assert torch.equal(one.times_RK[there], other.times_RK[there])
    for name, values in one.scalars.items():
        assert torch.equal(values, other.scalars[name]), name


def test_padded_logits_are_cut_and_half_ones_are_widened() -> None:
    spec = targets(Threshold(tau=0.04))
    rows = (torch.randn(40, 320, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    labels, keys = torch.zeros(40, dtype=torch.int64), row_keys(0, "train", 0, 0, 40)
    assert_equal(
        reducer(spec, 300).reduce(rows, labels, keys), reducer(spec, 300).reduce(rows[:, :300].float(), labels, keys)
    )


def test_a_state_keeps_scalars_alone() -> None:
    spec = targets(State(width=8), 2.0)
    rows, labels = stacked(100)
    reduced = reduce_rows(spec, rows, labels)
    assert reduced.ids_RK.shape == (len(rows), 0)
    assert set(reduced.scalars) == {
        "entropy",
        "label_logprob",
        "boundary_logprob",
        "log_z@2.0",
        "log_z@4.0",
        "log_z@0.5",
    }
    for r, row in enumerate(rows_of(reduced, targets(State(width=8)))):
        expected = dense_twin.scalars(rows[r].numpy(), int(labels[r]), spec.temperatures, starts_word(100).numpy())
        assert row.scalars == pytest.approx(expected, abs=NEAR, rel=1e-6)


def test_scalars_that_are_not_requested_are_absent() -> None:
    spec = targets(TopK(k=3), temperatures=(), boundary=False, entropy=False)
    assert set(reduce_rows(spec, *stacked(100)).scalars) == {"log_tail", "label_logprob"}


@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_without_a_distribution_are_flagged_and_harm_no_other(kept: str, bad: float) -> None:
    spec = targets(KEPT[kept])
    rows, labels = stacked(200)
    broken = rows.clone()
    broken[3, 77] = bad
    broken[5] = -math.inf
    good = [r for r in range(len(rows)) if r not in (3, 5)]
    found = reduce_rows(spec, broken, labels)
    assert found.finite_R.tolist() == [r in good for r in range(len(rows))]
    assert_equal(found.take(torch.tensor(good)), reduce_rows(spec, rows, labels).take(torch.tensor(good)))
    assert int(found.ids_RK.max()) < 256


def test_no_rows_are_reduced_to_none() -> None:
    reduced = reduce_rows(targets(Sampled(draws=4)), torch.zeros(0, 100), torch.zeros(0, dtype=torch.int64))
    assert reduced.ids_RK.shape == (0, 5)
    assert reduced.to("cpu").finite_R.shape == (0,)


def test_a_boundary_scalar_needs_to_know_where_words_start() -> None:
    with pytest.raises(ConfigError, match="start a new word"):
        Reducer(request(targets(TopK(k=1)), 100), torch.device("cpu"), starts_word(99))


def test_the_same_row_is_drawn_differently_elsewhere_and_equally_again() -> None:
    spec = targets(Threshold(tau=0.04))
    rows = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).expand(50, 400)
    labels = torch.zeros(50, dtype=torch.int64)
    one, again, other = (reduce_rows(spec, rows, labels, document) for document in (1, 1, 2))
    assert torch.equal(one.ids_RK, again.ids_RK)
    assert not torch.equal(one.ids_RK, other.ids_RK)
    assert len({tuple(ids) for ids in one.ids_RK.tolist()}) > 40
