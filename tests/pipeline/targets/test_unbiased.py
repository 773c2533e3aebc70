"""Over many rows, weights are the teacher's probabilities: chi-square and means, and faults that both must see."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdpipe.pipeline.targets import sampled, threshold
from kdpipe.pipeline.targets.chunk import LogitChunk
from kdpipe.pipeline.targets.masses import Masses
from kdpipe.pipeline.targets.reduce import ReducedRows
from kdpipe.schemas.target_kinds import Sampled, Threshold
from kdpipe.schemas.targets import TargetSpec
from support import dense_twin
from support.reducing import awkward, reduce_rows, targets
from support.unbiased import deviation_of_draws, deviation_of_means

ROWS = 5_000
SIZE = 400
# Each test's keys are fixed. A right program exceeds five standard deviations in one of 10,000 choices of them.
WORST = 5.0
KEPT = {
    "threshold": Threshold(tau=1 / 25),
    "threshold-coarse": Threshold(tau=1.0),
    "threshold-narrow": Threshold(tau=1 / 100, max_entries=12),
    "sampled": Sampled(draws=16),
}
LOGITS = ("long tail", "noise", "sure", "flat", "three levels", "coarse")

every_spec = pytest.mark.parametrize(
    "spec",
    [pytest.param(targets(keep, t), id=f"{name}@{t}") for name, keep in KEPT.items() for t in (1.0, 2.0)],
)


def many(spec: TargetSpec, name: str) -> tuple[np.ndarray, ReducedRows]:
    """A distribution at the target temperature, and what is kept of it many times."""
    logits = awkward(SIZE)[name]
    labels = torch.zeros(ROWS, dtype=torch.int64)
    p = np.exp(dense_twin.log_softmax(logits.numpy(), spec.target_temperature))
    return p, reduce_rows(spec, logits.expand(ROWS, SIZE), labels)


@every_spec
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("long tail", "coarse") else pytest.mark.slow) for name in LOGITS]
)
def test_draws_follow_the_distribution(spec: TargetSpec, name: str) -> None:
    p, reduced = many(spec, name)
    assert int(reduced.n_draws_R.min()) > 0
    assert abs(deviation_of_draws(spec, p, reduced)) < WORST


@pytest.mark.slow
@every_spec
@pytest.mark.parametrize("name", ["long tail", "three levels"])
def test_mean_weights_are_the_probabilities(spec: TargetSpec, name: str) -> None:
    p, reduced = many(spec, name)
    assert deviation_of_means(spec, p, reduced) < WORST


def _same_offset(keys: torch.Tensor, counters: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(keys * counters * bounds)


def _small_offset(keys: torch.Tensor, counters: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return (keys + counters * 12345).abs() % (bounds * 9 // 10)


def _next_id(self: Masses, points_CS: torch.Tensor) -> torch.Tensor:
    return (FIND(self, points_CS) + 1).clamp(max=SIZE - 1)


def _always_at_one(self: LogitChunk, temperature: float) -> None:
    AT(self, 1.0)


FIND, AT = Masses.find, LogitChunk.at


FAULTS: list[tuple[object, str, Callable[..., object]]] = [
    (Masses, "remove", lambda self, ids_CK, chosen_CK: None),
    (Masses, "find", _next_id),
    (LogitChunk, "at", _always_at_one),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "where", "name", "fault"),
    [
        (keep, *fault)
        for keep, module in ((Threshold(tau=1 / 25), threshold), (Sampled(draws=16), sampled))
        for fault in (*FAULTS, (module, "below", _same_offset), (module, "below", _small_offset))
    ],
)
def test_a_planted_fault_is_seen(
    keep: Threshold | Sampled,
    where: object,
    name: str,
    fault: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, name, fault)
    spec = targets(keep, 2.0)
    p, reduced = many(spec, "long tail")
    assert max(abs(deviation_of_draws(spec, p, reduced)), deviation_of_means(spec, p, reduced)) > 2 * WORST
