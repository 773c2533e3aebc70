"""What is written is what is read: random caches of every kind against the float64 twin."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache import open_cache
from kdpipe.cache.format.rows import Block, Rows, Sequence
from kdpipe.cache.reader import Cache
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import KeptSpec
from support.arbitrary import BY_ROW, POOLED, Wish, write
from support.reference import Expected, expected_rows, quantized

KINDS: dict[str, KeptSpec] = {
    "threshold": Threshold(tau=0.04, max_entries=12),
    "sampled": Sampled(draws=30),
    "topk": TopK(k=8),
    "topp": TopP(p=0.9, max_entries=20),
    "state": State(width=6, group=4, head_bias=True),
    "imported": Imported(source="elsewhere", max_entries=5, tail_known=True),
    "imported blind": Imported(source="elsewhere", max_entries=5, tail_known=False),
    "none": NoTargets(),
}
lengths = st.lists(st.sampled_from([1, 2, 3, 13, 64, 65, 130]), min_size=0, max_size=3).map(tuple)
# Between them: draws, states of rows, columns that are left out.
QUICK_KINDS = ("threshold", "imported")
part_lengths = st.lists(lengths, min_size=1, max_size=3).map(tuple)


def check(wish: Wish) -> None:
    """Write a cache and hold everything that is read from it against the twin."""
    with TemporaryDirectory() as folder:
        cache = open_cache(write(Path(folder) / "cache", wish))
        ranks = wish.tables["ids_by_rank"].tolist()
        assert len(cache) == len(wish.pairs)
        assert cache.n_positions == sum(int(sequence.loss_mask.sum()) for sequence, _ in wish.pairs)
        for i, (sequence, block) in enumerate(wish.pairs):
            rows = cache[i]
            expected = expected_rows(sequence, block, wish.manifest, ranks)
            check_sequence(cache, i, rows, sequence)
            check_entries(wish, rows, expected)
            check_scalars(wish, rows, sequence, block, expected)
            check_bounds(wish, rows, block)


def check_sequence(cache: Cache, i: int, rows: Rows, sequence: Sequence) -> None:
    manifest = cache.manifest
    for name in ("tokens", "loss_mask", "document_starts", "documents"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(sequence, name), err_msg=name)
    np.testing.assert_array_equal(cache.token_bytes(i), sequence.token_bytes)
    assert cache.columns(i) == dict(sequence.columns)
    assert cache.digests(i) == [digest.tobytes() for digest in sequence.digests]
    pooled = cache.pooled(i)
    assert sorted(pooled) == [v.layer for v in manifest.hidden.pooled]
    for vector in manifest.hidden.pooled:
        twin = quantized(sequence.pooled[vector.layer], vector.group)
        np.testing.assert_allclose(pooled[vector.layer], twin, rtol=1e-6)
    if manifest.data.text:
        assert cache.texts(i) == sequence.texts


def check_entries(wish: Wish, rows: Rows, expected: Expected) -> None:
    """Ids in the one order that the format knows, log p and weights as the twin works them out."""
    flat = [entry for row in expected.rows for entry in row]
    assert rows.count.tolist() == [len(row) for row in expected.rows]
    assert rows.n_exact.tolist() == [sum(not entry.is_draw for entry in row) for row in expected.rows]
    assert rows.ids.tolist() == [entry.id for entry in flat]
    np.testing.assert_allclose(rows.logprobs, [entry.logprob for entry in flat], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(rows.weights, [entry.weight for entry in flat], rtol=1e-4, atol=1e-30)
    assert (rows.times is not None) == (wish.keep.kind == "sampled")
    if rows.times is not None:
        is_draw = [entry.is_draw for entry in flat]
        assert rows.times.tolist() == [entry.times for entry in flat if entry.is_draw]
        assert len(rows.times) == sum(is_draw)


def check_scalars(wish: Wish, rows: Rows, sequence: Sequence, block: Block, expected: Expected) -> None:
    """Scalars are the twin's, NaN where the mask is false, and within half a step of what was written."""
    mask = sequence.loss_mask
    quantizers: dict[str, Any] = {column.name: column.quantizer for column in wish.manifest.arrays.row.columns}
    for name, values in expected.scalars.items():
        column, _, temperature = name.partition("@")
        if name == "drawn_log_tail":
            continue
        read = rows.log_z[float(temperature)] if temperature else getattr(rows, column)
        given = block.log_z[float(temperature)] if temperature else getattr(block, column)
        if name == "label_logprob":
            values, given = check_known_labels(wish, rows, sequence, values, given, expected)
        assert read.dtype == np.float32
        assert np.isnan(read[~mask]).all()
        atol = 2e-6 if name == "label_logprob" else 1e-37  # that of logprobs
        np.testing.assert_allclose(read, values, rtol=2e-6, atol=atol, err_msg=name)
        special = ~np.isfinite(given[mask])
        np.testing.assert_array_equal(read[mask][special], given[mask][special])
        quantizer = quantizers[name]
        stays = ~special & (given[mask] > -255)
        if quantizer.kind == "linear":
            assert (np.abs(read[mask][stays] - given[mask][stays]) <= quantizer.step / 2 + 1e-5).all()
        else:
            assert (np.abs(np.exp(read[mask]) - np.exp(given[mask]))[stays] <= quantizer.step / 8 + 1e-6).all()
    absent = {"log_tail", "entropy", "label_logprob", "boundary_logprob"} - set(expected.scalars)
    assert all(getattr(rows, name) is None for name in absent)
    assert sorted(rows.hidden) == [v.layer for v in wish.manifest.hidden.rows]
    for layer, vectors in expected.hidden.items():
        np.testing.assert_allclose(rows.hidden[layer], vectors, rtol=1e-6)
        assert np.abs(rows.hidden[layer] - block.hidden[layer]).max() <= np.abs(block.hidden[layer]).max() / 253
    if expected.state is None:
        assert rows.state is None
    else:
        assert rows.state is not None
        np.testing.assert_allclose(rows.state, expected.state, rtol=1e-6)


def check_known_labels(
    wish: Wish, rows: Rows, sequence: Sequence, values: Any, given: Any, expected: Expected
) -> tuple[Any, Any]:
    """Where the next token is an exact id, its log p is that id's; what was written elsewhere, and given, are left."""
    values, given = np.array(values, np.float64), np.array(given)
    assert rows.label_logprob is not None
    for t, row in enumerate(expected.rows):
        for entry in row:
            if not entry.is_draw and t + 1 < len(rows) and entry.id == sequence.tokens[t + 1]:
                assert wish.manifest.arrays.logprob is not None
                values[t] = entry.logprob
                bound = wish.manifest.arrays.logprob.quantizer.step + SCALAR_STEP
                same = rows.label_logprob[t] == given[t] or math.isnan(given[t])
                assert same or abs(rows.label_logprob[t] - given[t]) <= bound
                given[t] = rows.label_logprob[t]
    return values, given


def check_bounds(wish: Wish, rows: Rows, block: Block) -> None:
    """Log p within the quantizer's bound of what was written, weights a distribution, ids distinct."""
    targets = wish.targets
    places = np.repeat(np.arange(len(rows)), rows.count)
    entry = np.arange(len(rows.ids)) - np.repeat(np.cumsum(rows.count) - rows.count, rows.count)
    exact = entry < rows.n_exact[places]
    written = {
        (int(t), int(token)): float(value)
        for t, token, value in zip(
            np.repeat(np.arange(len(rows)), block.n_exact + block.n_draws), block.ids, block.logprobs, strict=True
        )
    }
    assert {(int(t), int(token)) for t, token in zip(places, rows.ids, strict=True)} == set(written)
    step = wish.manifest.arrays.logprob.quantizer.step if wish.manifest.arrays.logprob else 0.0
    for t, token, value, is_exact in zip(places, rows.ids, rows.logprobs, exact, strict=True):
        original = written[int(t), int(token)]
        if is_exact:
            assert value == original or abs(value - original) <= step + SCALAR_STEP
        elif targets.draw_values:
            assert abs(value - original) <= step / 2 + 1e-5
        else:
            assert math.isnan(value)
    if targets.has_entries and targets.tail_known and rows.log_tail is not None and targets.target_temperature == 1:
        sums = np.bincount(places, weights=rows.weights, minlength=len(rows))
        n_draws = rows.count - rows.n_exact
        due = np.where(n_draws > 0, 1.0, 1.0 - np.exp(rows.log_tail.astype(np.float64)))
        np.testing.assert_allclose(sums[rows.loss_mask], due[rows.loss_mask], rtol=1e-5, atol=1e-6)


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in QUICK_KINDS else pytest.mark.slow) for kind in sorted(KINDS)],
)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 5, 50, 255, 256]),
    parts=part_lengths,
    flags=st.tuples(*[st.booleans()] * 5),
    temperature=st.sampled_from([1.0, 2.0, 0.5]),
)
def test_what_is_written_is_read_back(
    kind: str,
    seed: int,
    size: int,
    parts: tuple[tuple[int, ...], ...],
    flags: tuple[bool, ...],
    temperature: float,
) -> None:
    keep = KINDS[kind]
    known = kind not in ("none", "imported blind")
    check(
        Wish(
            keep=keep,
            vocabulary_size=size,
            seed=seed,
            part_lengths=parts,
            draw_values=flags[0] and keep.kind in ("threshold", "sampled"),
            boundary=flags[1] and known,
            hidden=flags[2],
            text=flags[3],
            columns=flags[4],
            temperatures=(temperature, 3.0) if temperature != 1.0 else (3.0,),
            target_temperature=temperature if known else 1.0,
        )
    )


@pytest.mark.parametrize("kind", ["threshold", "sampled", "topk"])
@pytest.mark.parametrize(
    "size", [65_537, *(pytest.param(size, marks=pytest.mark.slow) for size in (65_536, 151_936, 262_144))]
)
def test_large_vocabularies_are_read_back(kind: str, size: int) -> None:
    check(Wish(keep=KINDS[kind], vocabulary_size=size, part_lengths=((20, 70),), seed=size))


def test_rows_with_many_ids_cross_many_chunks() -> None:
    check(Wish(keep=TopK(k=300), vocabulary_size=400, part_lengths=((40, 3), (), (200,)), chunk=64))


def test_every_layer_has_its_own_width_and_groups_need_not_divide_it() -> None:
    assert {v.width % v.group == 0 for v in (*POOLED, *BY_ROW)} == {True, False}
    check(Wish(keep=NoTargets(), hidden=True, part_lengths=((9, 1), (65, 130, 1))))


def test_texts_larger_than_a_frame_are_read_back(tmp_path: Path) -> None:
    wish = Wish(keep=NoTargets(), text=True, columns=False, part_lengths=((20, 20, 1, 15),))
    long = ["é" * 700_000, "", "b" * 400_000, "c", "🙂" * 300_000]
    for number, (sequence, _) in enumerate(wish.pairs):
        assert sequence.texts is not None
        sequence.texts[:] = [long[(number + place) % len(long)] for place in range(len(sequence.texts))]
    cache = open_cache(write(tmp_path / "cache", wish))
    for i in (2, 0, 3, 1):
        assert cache.texts(i) == wish.pairs[i][0].texts
