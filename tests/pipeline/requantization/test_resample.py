"""What is kept twice over: exact where stage one would have been, and on the mean the teacher's probabilities."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kdpipe.pipeline.requantization.requantize_rows import resample_keys
from kdpipe.pipeline.requantization.requantize_spec import AMOUNTS
from kdpipe.pipeline.targets import resampler, threshold
from kdpipe.pipeline.targets.reduce import ReducedRows
from kdpipe.pipeline.targets.stored_entries import EntryChoice, PaddedEntries
from kdpipe.schemas.member_tables import TARGET_KINDS
from kdpipe.schemas.target_kinds import Sampled, Threshold, TopP
from kdpipe.schemas.targets import KeptSpec, TargetSpec
from support import dense_twin
from support.reducing import awkward, reduce_rows, rows_of, targets
from support.unbiased import deviation_of_draws, deviation_of_means

torch.set_num_threads(1)
ROWS = 4_000
SIZE = 400
WORST = 5.0
# From richer to poorer.
STEPS: dict[str, tuple[KeptSpec, KeptSpec]] = {
    "threshold": (Threshold(tau=1 / 50), Threshold(tau=1 / 10)),
    "threshold-little": (Threshold(tau=1 / 25), Threshold(tau=1 / 20)),
    "threshold-most": (Threshold(tau=1 / 50), Threshold(tau=1.0)),
    "threshold-narrow": (Threshold(tau=1 / 100, max_entries=12), Threshold(tau=1 / 5, max_entries=12)),
    "sampled": (Sampled(draws=40), Sampled(draws=9)),
}
LOGITS = ("long tail", "noise", "sure", "flat", "three levels", "coarse")
slow = pytest.mark.slow


def keys(n: int, salt: str = "a") -> npt.NDArray[np.int64]:
    """Keys of so many rows of a document."""
    digest = np.frombuffer(b"0123456789abcdef", np.uint8).reshape(1, 16)
    return resample_keys(salt * 64, 5, digest, np.array([n]))


def entries_of(reduced: ReducedRows, spec: TargetSpec) -> PaddedEntries:
    """What was kept of rows, as a cache gives it back: exact ids, then draws by ascending id."""
    rows = list(rows_of(reduced, spec))
    width = max(len(row.weights) for row in rows)
    weights, order, times = (
        np.zeros((len(rows), width)),
        np.zeros((len(rows), width), int),
        np.ones((len(rows), width), int),
    )
    for r, row in enumerate(rows):
        drawn = sorted(zip(row.draws, row.times, strict=True))
        ids = [*row.exact, *(i for i, _ in drawn)]
        order[r, : len(ids)] = ids
        weights[r, : len(ids)] = np.array([row.weights[i] for i in ids], np.float32)
        times[r, len(row.exact) : len(ids)] = [t for _, t in drawn]
    return PaddedEntries(
        n_exact_R=reduced.n_exact_R.numpy().astype(np.int64),
        n_draws_R=reduced.n_draws_R.numpy().astype(np.int64),
        weights_RK=weights,
        order_RK=order,
        times_RK=times,
    )


def again(reduced: ReducedRows, entries: PaddedEntries, choice: EntryChoice, spec: TargetSpec) -> ReducedRows:
    """A choice as if stage one had kept it: the tail is what is no longer exact."""
    ids = torch.from_numpy(np.take_along_axis(entries.order_RK, choice.slots_RK, axis=1))
    exact = np.arange(entries.weights_RK.shape[1]) < choice.n_exact_R[:, None]
    left = np.log(1 - (entries.weights_RK * exact).sum(axis=1))
    name = "log_tail" if spec.target_temperature == 1.0 else "drawn_log_tail"
    with np.errstate(divide="ignore"):
        weights = np.log(np.take_along_axis(entries.weights_RK, choice.slots_RK, axis=1))
    log_z = reduced.scalars[f"log_z@{spec.target_temperature}"].numpy()[:, None] if name != "log_tail" else 0.0
    logprobs = torch.from_numpy((weights + log_z) * spec.target_temperature)
    return replace(
        reduced,
        n_exact_R=torch.from_numpy(choice.n_exact_R),
        n_draws_R=torch.from_numpy(choice.n_draws_R),
        ids_RK=ids,
        logprobs_RK=logprobs,
        scalars={**reduced.scalars, name: torch.from_numpy(left)},
        times_RK=torch.from_numpy(choice.times_RK) if isinstance(spec.keep, Sampled) else None,
    )


@cache
def captured(step: str, name: str, temperature: float) -> tuple[ReducedRows, PaddedEntries]:
    """The rows and stored entries of the richer target of a step."""
    richer = targets(STEPS[step][0], temperature)
    reduced = reduce_rows(richer, awkward(SIZE)[name].expand(ROWS, SIZE), torch.zeros(ROWS, dtype=torch.int64))
    return reduced, entries_of(reduced, richer)


def made_poorer(step: str, name: str, temperature: float = 1.0) -> tuple[TargetSpec, np.ndarray, ReducedRows]:
    """A distribution, and what is left of many rows of it after both quantizers."""
    poorer, logits = targets(STEPS[step][1], temperature), awkward(SIZE)[name]
    reduced, entries = captured(step, name, temperature)
    choice = resampler(poorer.keep).resample(entries, keys(ROWS))
    p = np.exp(dense_twin.log_softmax(logits.numpy(), temperature))
    return poorer, p, again(reduced, entries, choice, poorer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "name"),
    [
        pytest.param(step, name, marks=[] if step == "threshold" and name == "long tail" else slow)
        for step in STEPS
        for name in LOGITS
    ],
)
def test_resampled_entries_are_unbiased(step: str, name: str) -> None:
    spec, p, reduced = made_poorer(step, name)
    assert int(reduced.n_draws_R.min()) > 0
    assert abs(deviation_of_draws(spec, p, reduced)) < WORST
    assert deviation_of_means(spec, p, reduced) < WORST


@slow
@pytest.mark.parametrize("step", ["threshold", "sampled"])
def test_resampled_entries_are_unbiased_at_another_temperature(step: str) -> None:
    spec, p, reduced = made_poorer(step, "long tail", 2.0)
    assert abs(deviation_of_draws(spec, p, reduced)) < WORST
    assert deviation_of_means(spec, p, reduced) < WORST


@slow
@pytest.mark.parametrize("step", [name for name in STEPS if name.startswith("threshold")])
@pytest.mark.parametrize("name", LOGITS)
def test_counts_of_kept_and_exact_ids_equal_those_of_a_capture(step: str, name: str) -> None:
    spec, _, reduced = made_poorer(step, name)
    direct = reduce_rows(spec, awkward(SIZE)[name].expand(8, SIZE), torch.zeros(8, dtype=torch.int64))
    counts = set(zip(reduced.n_exact_R.tolist(), reduced.n_draws_R.tolist(), strict=True))
    assert counts == set(zip(direct.n_exact_R.tolist(), direct.n_draws_R.tolist(), strict=True))


@pytest.mark.parametrize("step", [pytest.param(step, marks=slow) for step in STEPS])
def test_ids_are_unique_and_draws_add_up(step: str) -> None:
    spec, _, reduced = made_poorer(step, "long tail")
    for row in rows_of(reduced, spec):
        assert len({*row.exact, *row.draws}) == len(row.exact) + len(row.draws)
        assert row.draws == sorted(row.draws)
        assert not isinstance(spec.keep, Sampled) or sum(row.times) == spec.keep.draws
        assert sum(row.weights.values()) == pytest.approx(1, abs=1e-5)


def test_a_row_with_few_entries_is_unchanged() -> None:
    entries = entry_row([0.7, 0.2], 1, [9, 3])
    choice = resampler(Threshold(tau=0.05)).resample(entries, keys(1))
    assert (choice.n_exact_R[0], choice.n_draws_R[0], choice.slots_RK[0].tolist()) == (1, 1, [0, 1])


def entry_row(weights: list[float], n_exact: int, ids: list[int]) -> PaddedEntries:
    """One row."""
    return PaddedEntries(
        n_exact_R=np.array([n_exact]),
        n_draws_R=np.array([len(weights) - n_exact]),
        weights_RK=np.array([weights]),
        order_RK=np.array([ids]),
        times_RK=np.ones((1, len(weights)), int),
    )


def test_a_light_tail_has_no_draws() -> None:
    entries = entry_row([0.999998, 1e-6, 1e-6], 3, [9, 3, 4])
    choice = resampler(Threshold(tau=1.0)).resample(entries, keys(1))
    assert (choice.n_exact_R[0], choice.n_draws_R[0]) == (1, 0)


@pytest.mark.parametrize(("p", "n"), [(0.5, 1), (0.6, 2), (0.75, 2), (0.76, 3), (1.0, 4)])
def test_top_p_ends_at_the_mass(p: float, n: int) -> None:
    entries = entry_row([0.5, 0.25, 0.125, 0.0625], 4, [9, 3, 4, 1])
    assert resampler(TopP(p=p)).resample(entries, keys(1)).n_exact_R[0] == n


def _small_offset(keys_R1: torch.Tensor, counters: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return (keys_R1.abs() >> 11) % (bounds * 9 // 10)


@slow
@pytest.mark.parametrize("name", ["below", "order"])
def test_a_planted_fault_is_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured("threshold", "long tail", 1.0)
    if name == "below":
        monkeypatch.setattr(threshold, "below", _small_offset)
    else:
        systematic = threshold._systematic

        def shifted(masses: Any, order: Any, keys_R: Any, n_R: Any) -> Any:
            return systematic(np.where(masses > 0, masses.max(axis=1, keepdims=True), 0), order, keys_R, n_R)

        monkeypatch.setattr(threshold, "_systematic", shifted)
    spec, p, reduced = made_poorer("threshold", "long tail")
    assert max(abs(deviation_of_draws(spec, p, reduced)), deviation_of_means(spec, p, reduced)) > 2 * WORST


def test_keys_depend_on_source_seed_document_and_position_alone() -> None:
    digests = np.arange(32, dtype=np.uint8).reshape(2, 16)
    both = resample_keys("ab" * 32, 1, digests, np.array([3, 4]))
    assert np.array_equal(resample_keys("ab" * 32, 1, digests[1:], np.array([4])), both[3:])
    assert np.array_equal(resample_keys("ab" * 32, 1, digests[:1], np.array([2])), both[:2])
    others = [
        resample_keys("ba" * 32, 1, digests, np.array([3, 4])),
        resample_keys("ab" * 32, 2, digests, np.array([3, 4])),
    ]
    assert len({int(key) for each in (both, *others) for key in each}) == 21


def test_the_table_and_the_records_agree_on_kinds_that_are_requantized() -> None:
    assert [name for name, row in TARGET_KINDS.items() if row.requantized] == list(AMOUNTS)
