"""Requantized caches: valid, smaller, and equal to their source in the mean over seeds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape import rebuild as making
from kdpipe.cache.reshape.recode import CodedPart
from kdpipe.pipeline import requantize as story
from kdpipe.pipeline.requantization.requantize_rows import RowRequantizer, resample_keys
from kdpipe.pipeline.requantization.requantize_spec import requantized_manifest
from kdpipe.pipeline.requantize import requantize
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.reshape import RequantizeSpec
from support.kinds import KINDS, make_kind
from support.reshaped import documents_in, problems_in
from support.tiny import SMALL, digests_of, make_cache

torch.set_num_threads(1)
SCALARS = ("entropy", "label_logprob", "boundary_logprob")
SEEDS = 200
# The settings for each kind, and the scalars that they drop.
ASKED: dict[str, dict[str, Any]] = {
    "threshold": {"tau": 0.2},
    "threshold-at-2": {"tau": 0.3},
    "threshold-other-quantizers": {"tau": 0.1, "temperatures": (4.0,)},
    "sampled": {"draws": 3},
    "sampled-at-2": {"draws": 5},
    "topk": {"top_k": 3},
    "topk-at-2": {"top_k": 2},
    "topp": {"top_p": 0.5},
}


def weights_of(rows: Rows, n_ids: int) -> np.ndarray:
    """The training target over all ids, rows without one zero."""
    found = np.zeros((len(rows), n_ids))
    np.add.at(found, (np.repeat(np.arange(len(rows)), rows.count), rows.ids), rows.weights.astype(np.float64))
    return found


def row_slices(rows: Rows) -> Iterator[tuple[int, slice]]:
    ends = np.cumsum(rows.count)
    return ((t, slice(int(ends[t] - rows.count[t]), int(ends[t]))) for t in range(len(rows)))


@pytest.mark.parametrize(
    "name",
    [name if name in ("threshold-at-2", "sampled") else pytest.param(name, marks=pytest.mark.slow) for name in ASKED],
)
def test_a_requantized_cache_is_valid_and_has_no_more_than_its_source(name: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    before = digests_of(tmp_path / "a")
    report = requantize(str(tmp_path / "a"), str(tmp_path / "b"), RequantizeSpec(**ASKED[name]))
    assert (report.action, report.adopted, report.left_out) == ("requantize", 0, 0)
    assert problems_in(tmp_path / "b") == []
    old, new = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    step = old.manifest.arrays.logprob.quantizer.step  # type: ignore[union-attr]  # kinds with entries have one
    fewer = 0
    for i in range(len(old)):
        there, here = old[i], new[i]
        assert (there.tokens.tolist(), old.digests(i)) == (here.tokens.tolist(), new.digests(i))
        for scalar in SCALARS:
            a, b = getattr(there, scalar), getattr(here, scalar)
            assert (a is None) == (b is None)
            if scalar == "label_logprob":  # of an exact id, or rounded again if the id is no longer exact
                np.testing.assert_allclose(a, b, rtol=0, atol=step / 8 + SCALAR_STEP / 2)
            else:
                assert a is None or a.tobytes() == b.tobytes()
        for (t, own), (_, mine) in zip(row_slices(there), row_slices(here), strict=True):
            n = int(here.n_exact[t])
            assert n <= there.n_exact[t]
            assert here.ids[mine][:n].tolist() == there.ids[own][:n].tolist()
            assert set(here.ids[mine][n:].tolist()) <= set(there.ids[own][n:].tolist())
            assert np.allclose(here.logprobs[mine][:n], there.logprobs[own][:n], atol=step / 8)
            fewer += len(there.ids[own]) - len(here.ids[mine])
    assert fewer > 0
    assert digests_of(tmp_path / "a") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["threshold", *(pytest.param(name, marks=pytest.mark.slow) for name in ("threshold-at-2", "sampled"))]
)
def test_over_many_seeds_the_mean_weight_is_that_of_the_source(name: str, tmp_path: Path) -> None:
    """Weights are what they were on the mean, draws of the source included; chi-square over all rows and ids."""
    make_kind(tmp_path / "a", name)
    cache = open_cache(tmp_path / "a")
    manifest = requantized_manifest(cache.manifest, RequantizeSpec(**ASKED[name]))
    part, poorer = cache.part(0), RowRequantizer(cache.manifest, manifest)
    stored, rows = CodedPart(part, cache.manifest, None).sequence(0), cache[0]
    lengths = np.diff(rows.document_starts, append=len(rows))
    place = {column.name: n for n, column in enumerate(manifest.arrays.row.columns)}
    ids_by_rank, due = cache.table("ids_by_rank"), weights_of(rows, 300)
    tail = "log_tail" if manifest.targets.target_temperature == 1.0 else "drawn_log_tail"
    quantizer = manifest.arrays.row.columns[place[tail]].quantizer
    sums, squares = np.zeros_like(due), np.zeros_like(due)
    for seed in range(SEEDS):
        keys_R = resample_keys("a" * 64, seed, stored.places.digests, lengths)
        coded = poorer.rows(stored.coded, rows, keys_R)
        weights = plainly_decoded(coded, place, quantizer, tail, ids_by_rank, due)
        sums += weights
        squares += weights**2
    mean = sums / SEEDS
    variance = np.maximum(squares / SEEDS - mean**2, 0)
    drawn = variance > 1e-12
    # A share of the tail is read from a code: half a step of log odds, up to 1/512 of it.
    assert np.abs(mean - due)[~drawn].max() < 0.01
    z = (mean - due)[drawn] / np.sqrt(variance[drawn] / SEEDS + (due[drawn] / 256) ** 2)
    assert drawn.sum() > 100
    assert np.mean(z**2) < 1.3
    assert np.abs(z).max() < 5


def plainly_decoded(coded: Any, place: dict[str, int], quantizer: Any, tail: str, ids: Any, due: Any) -> np.ndarray:
    """Row by row, in plain Python: exact ids weigh what they did, draws their share of the tail."""
    found = np.zeros_like(due)
    entry = draw = 0
    for t, columns in enumerate(coded.columns.tolist()):
        n_exact, n_draws = columns[place["n_exact"]], columns[place["n_draws"]]
        ranks = coded.ids[entry : entry + n_exact + n_draws].tolist()
        exact = [int(ids[rank]) for rank in ranks[:n_exact]]
        found[t, exact] = due[t, exact]
        times = (coded.times[draw : draw + n_draws] + 1).tolist() if len(coded.times) else [1] * n_draws
        mass = 1 / (1 + np.exp(-(columns[place[tail]] - quantizer.zero) * quantizer.step))
        for rank, n in zip(np.cumsum(ranks[n_exact:]).tolist(), times, strict=True):
            found[t, int(ids[rank])] += mass * n / sum(times)
        entry, draw = entry + n_exact + n_draws, draw + n_draws
    return found


def test_dropping_an_array_changes_nothing_else(tmp_path: Path) -> None:
    make_kind(tmp_path / "a", "threshold-at-2")
    spec = RequantizeSpec(drop=("draw-values", "entropy"), temperatures=(2.0,))
    requantize(str(tmp_path / "a"), str(tmp_path / "b"), spec)
    assert problems_in(tmp_path / "b") == []
    old, new = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    for i in range(len(old)):
        assert old[i].weights.tobytes() == new[i].weights.tobytes()
        assert new[i].entropy is None
        is_draw = np.isnan(new[i].logprobs)
        assert is_draw.sum() == (old[i].count - old[i].n_exact).sum()
        assert old[i].logprobs[~is_draw].tobytes() == new[i].logprobs[~is_draw].tobytes()
        assert set(new[i].log_z) == {2.0}
    assert new.part(0).record.fidelity == old.part(0).record.fidelity
    assert (
        new.manifest.history[-1].note
        == "draw_values: True to False; entropy: True to False; temperatures: [2.0, 4.0] to [2.0]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("imported-tail-unknown", "none")])
def test_columns_of_any_kind_can_be_dropped(name: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    manifest = open_cache(tmp_path / "a").manifest
    targets = manifest.targets
    there = {"entropy": targets.entropy, "boundary": targets.boundary, "draw-values": targets.draw_values}
    drop = [what for what, has in there.items() if has] + (["hidden"] if manifest.hidden.rows else [])
    own = targets.target_temperature
    spec = {"drop": tuple(drop), "temperatures": (own,) if own != 1.0 else ()}
    requantize(str(tmp_path / "a"), str(tmp_path / "b"), RequantizeSpec(**spec))
    assert problems_in(tmp_path / "b") == []
    without = ("entropy", "boundary_logprob", "hidden", "log_z", *(["entries"] if targets.draw_values else []))
    assert documents_in(tmp_path / "a", without) == documents_in(tmp_path / "b", without)
    rows = open_cache(tmp_path / "b")[0]
    assert (rows.entropy, rows.boundary_logprob, rows.hidden) == (None, None, {})
    assert set(rows.log_z) == set(spec["temperatures"])


def test_hidden_states_alone_are_dropped_without_touching_the_rest(tmp_path: Path) -> None:
    make_kind(tmp_path / "a", "threshold")
    report = requantize(str(tmp_path / "a"), str(tmp_path / "b"), RequantizeSpec(drop=("hidden",)))
    assert (report.adopted, report.rewritten) == (2, 0)
    assert problems_in(tmp_path / "b") == []
    assert documents_in(tmp_path / "a", ("hidden",)) == documents_in(tmp_path / "b", ("hidden",))
    assert open_cache(tmp_path / "b")[0].hidden == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state", pytest.param("state-capped", marks=pytest.mark.slow)])
def test_targets_from_states_have_the_distribution_of_the_states(name: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    old = open_cache(tmp_path / "a")
    for spec in ({"tau": 0.05}, {"draws": 6}, {"top_k": 4, "drop": ("hidden",) if name == "state" else ()}):
        out = tmp_path / str(next(iter(spec)))
        requantize(str(tmp_path / "a"), str(out), RequantizeSpec(**spec))
        assert problems_in(out) == []
        new = open_cache(out)
        for i in range(len(old)):
            dense, here = np.exp(old.dense(i).astype(np.float64)), new[i]
            for t, own in row_slices(here):
                if here.loss_mask[t]:
                    exact = own.start + int(here.n_exact[t])
                    assert here.ids[own.start] == dense[t].argmax()
                    expected = dense[t, here.ids[own.start : exact]]
                    assert np.allclose(here.weights[own.start : exact], expected, rtol=0.1, atol=1e-4)
            assert old.digests(i) == new.digests(i)
            assert (here.boundary_logprob is None) == (name != "state")


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path / "a")
    spec = RequantizeSpec(tau=0.1)
    requantize(str(tmp_path / "a"), str(tmp_path / "whole"), spec)
    writer = making.CacheWriter.part
    begun: list[int] = []

    def second_dies(self: Any, number: int) -> Any:
        begun.append(number)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return writer(self, number)

    with monkeypatch.context() as dying:
        dying.setattr(making.CacheWriter, "part", second_dies)
        with pytest.raises(KeyboardInterrupt):
            requantize(str(tmp_path / "a"), str(tmp_path / "b"), spec)
    assert requantize(str(tmp_path / "a"), str(tmp_path / "b"), spec).parts.made == 3
    assert digests_of(tmp_path / "b") == digests_of(tmp_path / "whole")
    with pytest.raises(ConfigError, match="holds another cache"):
        requantize(str(tmp_path / "a"), str(tmp_path / "b"), spec.model_copy(update={"seed": 3}))


@pytest.mark.slow
def test_a_seed_draws_other_ids_of_states_too(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", replace(SMALL, kind="state"))
    found = [
        requantize(
            str(tmp_path / "a"), str(tmp_path / f"b{seed}"), RequantizeSpec(targets="sampled", seed=seed)
        ).cache_id
        for seed in (1, 2)
    ]
    rows = [open_cache(tmp_path / f"b{seed}")[0] for seed in (1, 2)]
    assert found[0] != found[1]
    assert rows[0].ids.tolist() != rows[1].ids.tolist()


def test_requantizing_twice_with_one_seed_draws_independently(tmp_path: Path) -> None:
    make_cache(tmp_path / "a")
    source = story.open_source(str(tmp_path / "a"))
    digest = np.zeros((1, 16), np.uint8)
    requantize(str(tmp_path / "a"), str(tmp_path / "b"), RequantizeSpec(tau=0.1))
    other = story.open_source(str(tmp_path / "b"))
    assert source.manifest.seed == other.manifest.seed
    keys = [resample_keys(each.cache_id, each.manifest.seed, digest, np.array([5])) for each in (source, other)]
    assert not set(keys[0].tolist()) & set(keys[1].tolist())
