"""Fidelity equals dense float64 arithmetic on a cache that was written and read."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.quality import gradient_angle
from kdpipe.pipeline.targets import fidelity
from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.fidelity import FidelityMeter
from kdpipe.pipeline.targets.hidden_states import sign_matrix
from kdpipe.pipeline.targets.reduce import Reducer
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.target_kinds import Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import KeptSpec, RandomProjection, TargetSpec
from support import dense_twin
from support.answered import Answered, answered, read_back
from support.reducing import request, targets

torch.set_num_threads(1)
CPU = torch.device("cpu")
SIZE, ROWS, WIDTH = 300, 120, 96
KEPT = (Threshold(tau=1 / 25), Threshold(tau=1 / 4), Sampled(draws=12), TopK(k=8), TopP(p=0.5))

every_spec = pytest.mark.parametrize(
    "spec", [pytest.param(targets(keep, t), id=f"{keep}@{t}") for keep in KEPT for t in (1.0, 2.0)]
)


def logits_and_states() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a long tail, and the states they come from."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, WIDTH, generator=generator)
    head = torch.randn(SIZE, WIDTH, generator=generator) * 0.25
    return states @ head.T - 1.1 * torch.log(torch.arange(SIZE) + 2.7), states


def unigram() -> np.ndarray:
    weights = 1 / (np.arange(SIZE) + 2.7)
    return (weights / weights.sum()).astype(np.float32)


def question(spec: TargetSpec, seed: int = 0) -> TargetRequest:
    plain = request(spec, SIZE, seed)
    return TargetRequest(
        targets=spec,
        hidden=plain.hidden,
        vocabulary_size=SIZE,
        seed=seed,
        unigram=unigram(),
        starts_word=np.zeros(SIZE, bool),
    )


def measure(spec: TargetSpec, given: Answered, states: torch.Tensor | None, step: int = ROWS) -> Fidelity | None:
    """The fidelity of all rows of a document, some rows a batch, two calls a batch."""
    ask = question(spec)
    meter = FidelityMeter(ask, None if states is None else states.shape[1], CPU)
    reducer = Reducer(ask, CPU, torch.zeros(SIZE, dtype=torch.bool))
    keys = row_keys(0, "train", 0, 0, len(given.sequence.tokens))[given.positions]
    reduced = reducer.reduce(given.logits.clone(), given.labels, keys)
    for first in range(0, ROWS, step):
        sample = meter.sample()
        for half in (slice(first, first + step // 2), slice(first + step // 2, first + step)):
            rows = torch.arange(ROWS)[half]
            sample.add(given.logits[half], reduced.take(rows), None if states is None else states[half])
        meter.count(sample)
    result = meter.result()
    assert meter.result() is None
    return result


def targets_of(rows: Rows, given: Answered) -> tuple[list[dict[int, float]], list[list[int]]]:
    """The weights of every position as the reader gives them, and which ids are exact."""
    starts = np.cumsum(rows.count) - rows.count
    weights, exact = [], []
    for t in given.positions.tolist():
        entries = slice(int(starts[t]), int(starts[t] + rows.count[t]))
        weights.append(dict(zip(rows.ids[entries].tolist(), rows.weights[entries].tolist(), strict=True)))
        exact.append(rows.ids[entries][: rows.n_exact[t]].tolist())
    return weights, exact


@every_spec
def test_fidelity_is_that_of_what_the_reader_gives(spec: TargetSpec, tmp_path: Path) -> None:
    logits, states = logits_and_states()
    given = answered(spec, logits)
    found = measure(spec, given, states, step=30)
    assert found is not None
    weights, exact = targets_of(read_back(given, tmp_path / "cache"), given)
    kl = variation = 0.0
    kept = dict.fromkeys((1.0, *spec.temperatures), 0.0)
    narrow = states.double().numpy() @ sign_matrix(RandomProjection(seed=0), 0, WIDTH, 64).double().numpy().T
    wanted, stored = np.zeros((SIZE, 64)), np.zeros((SIZE, 64))
    for r in range(ROWS):
        p = np.exp(dense_twin.log_softmax(logits[r].numpy(), spec.target_temperature))
        true = [float(p[i]) for i in exact[r]]
        read = [weights[r][i] for i in exact[r]]
        true.append(float(np.delete(p, exact[r]).sum()))
        read.append(1 - sum(read))
        kl += sum(a * math.log(a / b) for a, b in zip(true, read, strict=True))
        variation += sum(abs(a - b) for a, b in zip(true, read, strict=True)) / 2
        for temperature in kept:
            kept[temperature] += np.exp(dense_twin.log_softmax(logits[r].numpy(), temperature))[exact[r]].sum()
        student = 0.7 * p + 0.3 * unigram().astype(np.float64)
        wanted += np.outer(student - p, narrow[r])
        stored += np.outer(student - dense_target(weights[r], exact[r], student, spec), narrow[r])
    assert found.n_rows == ROWS
    assert found.kl_nats == pytest.approx(kl / ROWS, abs=1e-6)
    assert found.total_variation == pytest.approx(variation / ROWS, abs=1e-6)
    assert dict(found.kept_mass) == pytest.approx({t: mass / ROWS for t, mass in kept.items()}, abs=1e-5)
    cosine = (wanted * stored).sum() / np.linalg.norm(wanted) / np.linalg.norm(stored)
    # float32 products of matrices: 1e-6 of a gradient is 1e-4 degrees, the weights of a tail are read in float32.
    assert found.gradient_angle_degrees == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-2)


def dense_target(weights: dict[int, float], exact: list[int], student: np.ndarray, spec: TargetSpec) -> np.ndarray:
    """The stored target over all ids; without draws the student's distribution represents the tail."""
    target = np.zeros(SIZE)
    if not spec.has_draws:
        target = student * (1 - sum(weights.values())) / np.delete(student, exact).sum()
    for i, weight in weights.items():
        target[i] = weight
    return target


def test_batches_add_up() -> None:
    spec = targets(Threshold(tau=1 / 25))
    logits, states = logits_and_states()
    given = answered(spec, logits)
    whole, pieces = (measure(spec, given, states, step) for step in (ROWS, 20))
    assert whole is not None
    assert pieces is not None
    assert pieces.kl_nats == pytest.approx(whole.kl_nats, rel=1e-9)
    # Products of matrices of other shapes round differently, by 1e-6 of a gradient.
    assert pieces.gradient_angle_degrees == pytest.approx(whole.gradient_angle_degrees, abs=1e-3)


def test_a_sample_that_is_not_counted_changes_nothing() -> None:
    spec = targets(TopK(k=8))
    logits, states = logits_and_states()
    given = answered(spec, logits)
    meter = FidelityMeter(question(spec), WIDTH, CPU)
    made = Reducer(question(spec), CPU, torch.zeros(SIZE, dtype=torch.bool))
    reduced = made.reduce(logits, given.labels, torch.arange(ROWS))
    for counted in (False, True):
        sample = meter.sample()
        sample.add(logits, reduced, states)
        if counted:
            meter.count(sample)
    once = meter.result()
    assert once == measure_once(spec, given, states)


def measure_once(spec: TargetSpec, given: Answered, states: torch.Tensor) -> Fidelity | None:
    """All rows in one call."""
    meter = FidelityMeter(question(spec), WIDTH, CPU)
    made = Reducer(question(spec), CPU, torch.zeros(SIZE, dtype=torch.bool))
    sample = meter.sample()
    sample.add(given.logits, made.reduce(given.logits, given.labels, torch.arange(ROWS)), states)
    meter.count(sample)
    return meter.result()


@every_spec
def test_comparing_asks_a_device_for_no_number(spec: TargetSpec) -> None:
    """Tensors on the device `meta` have no numbers: asking for one is an error, and so is a tensor left elsewhere."""
    meta = torch.device("meta")
    logits, states = (tensor.to(meta) for tensor in logits_and_states())
    reducer = Reducer(question(spec), meta, torch.zeros(SIZE, dtype=torch.bool))
    places = torch.zeros(ROWS, dtype=torch.int64, device=meta)
    sample = FidelityMeter(question(spec), WIDTH, meta).sample()
    sample.add(logits, reducer.reduce(logits, places, places), states)
    sample.flush()
    assert sample.dense is not None
    assert sample.dense.shape == (SIZE, 64)


def test_gradients_do_not_depend_on_how_many_ids_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = targets(TopK(k=8))
    logits, states = logits_and_states()
    given = answered(spec, logits)
    whole = measure_once(spec, given, states)
    monkeypatch.setattr(fidelity, "GRADIENT_IDS", 77)
    pieces = measure_once(spec, given, states)
    assert whole is not None
    assert pieces is not None
    assert pieces.gradient_angle_degrees == pytest.approx(whole.gradient_angle_degrees, rel=1e-12)


def test_no_angle_without_states() -> None:
    spec = targets(Threshold(tau=1 / 25))
    found = measure(spec, answered(spec, logits_and_states()[0]), None)
    assert found is not None
    assert found.gradient_angle_degrees is None
    assert found.kl_nats < 1e-3


def test_states_keep_no_ids_that_could_be_compared() -> None:
    spec = targets(State(width=WIDTH))
    logits, states = logits_and_states()
    assert measure_once(spec, answered(targets(TopK(k=1)), logits), states) is None


def angle(keep: KeptSpec, n: int) -> float:
    """The angle of n rows like the ones above."""
    spec = targets(keep)
    ask = question(spec)
    meter, made = FidelityMeter(ask, WIDTH, CPU), Reducer(ask, CPU, torch.zeros(SIZE, dtype=torch.bool))
    logits, states = logits_and_states()
    for turn in range(n // ROWS):
        mixed = torch.randn(ROWS, generator=torch.Generator().manual_seed(turn))[:, None] * 0.2 + 1
        sample = meter.sample()
        keys = row_keys(0, "train", turn, 0, ROWS)
        sample.add(logits * mixed, made.reduce(logits * mixed, torch.zeros(ROWS).long(), keys), states * mixed)
        meter.count(sample)
    found = meter.result()
    assert found is not None
    assert found.gradient_angle_degrees is not None
    return found.gradient_angle_degrees


def test_unbiased_targets_come_nearer_with_rows_and_a_bucket_does_not() -> None:
    few, many = angle(Threshold(tau=1 / 10), ROWS), angle(Threshold(tau=1 / 10), 40 * ROWS)
    assert many < few / 3
    assert angle(TopK(k=4), 40 * ROWS) > angle(TopK(k=4), ROWS) / 2


def of_parts(spec: TargetSpec, n_parts: int, rows: int, seed: int) -> list[Fidelity]:
    """One teacher's fidelity on parts with so many rows each."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(SIZE, WIDTH, generator=generator) * 0.25
    ask, found = question(spec), []
    meter, reducer = FidelityMeter(ask, WIDTH, CPU), Reducer(ask, CPU, torch.zeros(SIZE, dtype=torch.bool))
    generator.manual_seed(seed)
    for number in range(n_parts):
        # Texts have subjects: states share a direction, so that gradients have a mean.
        states = torch.randn(rows, WIDTH, generator=generator) + 0.3 * head[:8].sum(dim=0)
        logits = states @ head.T - 1.1 * torch.log(torch.arange(SIZE) + 2.7)
        reduced = reducer.reduce(
            logits.clone(), torch.zeros(rows, dtype=torch.long), row_keys(seed, "train", number, 0, rows)
        )
        sample = meter.sample()
        sample.add(logits, reduced, states)
        meter.count(sample)
        result = meter.result()
        assert result is not None
        found.append(result)
    return found


def test_the_angle_of_a_batch_is_one_number_whatever_the_rows_measured() -> None:
    spec = targets(Threshold(tau=1 / 25), 1.0)
    few, many = of_parts(spec, 4, 512, seed=1), of_parts(spec, 8, 2048, seed=2)
    as_measured = [np.mean([part.gradient_angle_degrees for part in parts]) for parts in (few, many)]
    assert as_measured[0] > 1.7 * as_measured[1]
    (one, one_error), (other, other_error) = (gradient_angle(parts, spec) for parts in (few, many))
    assert one is not None and other is not None and one_error is not None and other_error is not None
    assert abs(one - other) < 3 * math.hypot(one_error, other_error)
    assert max(one_error / one, other_error / other) < 0.1
