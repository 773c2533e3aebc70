"""Synthetic caches are deterministic, and keep every promise that a cache makes about its rows."""

import hashlib
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.format.rows import Block, Sequence
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

KINDS = ("threshold", "sampled", "topk", "topp", "state", "imported", "none")
WITH_ENTRIES = ("threshold", "sampled", "topk", "topp", "imported")
WITH_DRAWS = ("threshold", "sampled")


def small(kind: Any, **changes: Any) -> Recipe:
    """A recipe for a few thousand rows."""
    settings = {"vocabulary_size": 2000, "documents": {"train": 12, "validation": 4}, "documents_per_part": 6}
    return Recipe(kind=kind, **{**settings, **changes})


def made(recipe: Recipe) -> list[tuple[Sequence, Block]]:
    """Every sequence of every part."""
    manifest = synthetic_manifest(recipe)
    return [pair for number in range(manifest.plan.n_parts) for pair in synthetic_part(recipe, manifest, number)]


def entry_rows(block: Block) -> tuple[Any, Any]:
    """The row of every entry, and whether it is exact."""
    count = block.n_exact + block.n_draws
    rows = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return rows, place < block.n_exact[rows]


def exact_mass(block: Block, temperature: float = 1.0) -> Any:
    """The sum of p^(1/T) over the exact entries of each row."""
    rows, exact = entry_rows(block)
    powers = np.exp(block.logprobs[exact].astype(np.float64) / temperature)
    return np.bincount(rows[exact], weights=powers, minlength=len(block.n_exact))


def fields(block: Block) -> dict[str, Any]:
    """All arrays of a block, by name."""
    found = {name: getattr(block, name) for name in Block.__slots__}
    for name in ("log_z", "hidden"):
        found.update({f"{name}@{key}": value for key, value in found.pop(name).items()})
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equal_recipes_make_equal_parts_in_any_order(kind: str) -> None:
    recipe = small(kind, text=True)
    manifest = synthetic_manifest(recipe)
    forward = [list(synthetic_part(recipe, manifest, number)) for number in range(3)]
    backward = [list(synthetic_part(small(kind, text=True), manifest, number)) for number in (2, 1, 0)]
    for one, other in zip(forward, reversed(backward), strict=True):
        for (sequence, block), (again, block_again) in zip(one, other, strict=True):
            np.testing.assert_array_equal(sequence.tokens, again.tokens)
            np.testing.assert_array_equal(sequence.digests, again.digests)
            assert sequence.columns == again.columns
            assert sequence.texts == again.texts
            assert fields(block).keys() == fields(block_again).keys()
            for name, value in fields(block).items():
                np.testing.assert_array_equal(value, fields(block_again)[name], err_msg=name)


def test_another_seed_makes_other_tokens() -> None:
    one, other = made(small("none", seed=1))[0][0].tokens, made(small("none", seed=2))[0][0].tokens
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_hold_the_planned_documents_and_their_facts(kind: str) -> None:
    recipe = small(kind, text=True)
    manifest = synthetic_manifest(recipe)
    for number in range(manifest.plan.n_parts):
        part = manifest.plan.part(number)
        pairs = list(synthetic_part(recipe, manifest, number))
        documents = np.concatenate([sequence.documents for sequence, _ in pairs])
        assert documents.tolist() == list(range(part.first_document, part.first_document + part.n_documents))
        for sequence, block in pairs:
            check_sequence(recipe, sequence)
            assert len(block.n_exact) == len(sequence.tokens)


def check_sequence(recipe: Recipe, sequence: Sequence) -> None:
    """Tokens, mask, digests, columns and texts of one sequence fit together."""
    tokens, starts = sequence.tokens, sequence.document_starts
    assert 0 < len(tokens) <= recipe.sequence_length
    assert tokens.min() >= 0
    assert tokens.max() < recipe.vocabulary_size
    lasts = np.append(starts[1:], len(tokens)) - 1
    assert not sequence.loss_mask[lasts].any()
    pieces = np.split(tokens, starts[1:])
    assert sequence.digests.shape == (len(pieces), 16)
    assert sequence.texts is not None
    for i, piece in enumerate(pieces):
        assert sequence.digests[i].tobytes() == hashlib.sha256(piece.astype("<u4").tobytes()).digest()[:16]
        n_bytes = sequence.token_bytes[starts[i] : starts[i] + len(piece)].sum()
        assert len(sequence.texts[i].encode()) == n_bytes
    columns = {name: {type(value) for value in values} for name, values in sequence.columns.items()}
    assert list(columns) == ["category", "language", "quality", "is_code", "year"]
    assert all(len(values) == len(starts) for values in sequence.columns.values())
    assert columns["category"] == {str}
    assert columns["quality"] <= {float, type(None)}
    assert columns["is_code"] == {bool}
    assert columns["year"] == {int}
    assert {layer: pooled.shape for layer, pooled in sequence.pooled.items()} == {
        2: (len(starts), 16),
        4: (len(starts), 16),
    }


def test_documents_differ_in_length_and_some_hide_their_prompt() -> None:
    sequences = [sequence for sequence, _ in made(Recipe(kind="none", documents={"train": 300}, vocabulary_size=500))]
    lengths = np.concatenate([np.diff([*sequence.document_starts, len(sequence.tokens)]) for sequence in sequences])
    assert (lengths == 1).any()
    assert (lengths > 400).any()
    assert max(len(sequence.document_starts) for sequence in sequences) > 3
    hidden = sum(int((~sequence.loss_mask).sum()) for sequence in sequences) - len(lengths)
    assert 0.02 < hidden / lengths.sum() < 0.2


def test_unpacked_sequences_hold_one_document_each() -> None:
    assert all(len(sequence.documents) == 1 for sequence, _ in made(small("none", packed=False)))


@pytest.mark.many
@pytest.mark.parametrize("size", [8, 30, 70, 2000])
@pytest.mark.parametrize("kind", WITH_ENTRIES)
def test_entries_keep_the_promises_of_their_kind(kind: str, size: int) -> None:
    recipe = small(kind, vocabulary_size=size, boundary=True)
    for sequence, block in made(recipe):
        check_entries(recipe, sequence, block)
        check_scalars(recipe, sequence, block)


@pytest.mark.parametrize("target_temperature", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("kind", WITH_DRAWS)
def test_draws_may_be_drawn_at_another_temperature_and_carry_values(kind: str, target_temperature: float) -> None:
    recipe = small(kind, target_temperature=target_temperature, temperatures=(0.5, 2.0, 3.0), draw_values=True)
    for sequence, block in made(recipe):
        check_entries(recipe, sequence, block)
        check_scalars(recipe, sequence, block)
        mask = sequence.loss_mask
        mass = exact_mass(block, target_temperature) / np.exp(block.log_z[target_temperature].astype(np.float64))
        assert block.drawn_log_tail is not None
        np.testing.assert_allclose(mass[mask] + np.exp(block.drawn_log_tail[mask]), 1, atol=3e-6)


def check_entries(recipe: Recipe, sequence: Sequence, block: Block) -> None:
    """Counts, order and uniqueness of the entries of one sequence."""
    mask, count = sequence.loss_mask, block.n_exact + block.n_draws
    assert (count[~mask] == 0).all()
    assert (block.n_exact[mask] >= 1).all()
    assert count.sum() == len(block.ids) == len(block.logprobs)
    if len(block.ids) == 0:
        return
    assert block.ids.min() >= 0
    assert block.ids.max() < recipe.vocabulary_size
    rows, exact = entry_rows(block)
    assert len(np.unique(rows.astype(np.int64) * recipe.vocabulary_size + block.ids)) == len(rows)
    same = np.diff(rows) == 0
    assert (np.diff(block.logprobs)[same & exact[1:]] <= 0).all()
    assert (block.logprobs[exact] <= 0).all()
    assert np.isnan(block.logprobs[~exact]).all() != recipe.draw_values or not (~exact).any()
    most = np.full(len(mask), -np.inf)
    np.maximum.at(most, rows, np.where(np.isnan(block.logprobs), -np.inf, block.logprobs))
    firsts = np.flatnonzero(np.append(True, ~same))
    np.testing.assert_array_equal(most[rows[firsts]], block.logprobs[firsts])
    if recipe.kind == "sampled":
        assert block.times is not None
        drawn = np.bincount(rows[~exact], weights=block.times, minlength=len(mask))
        assert set(np.unique(drawn[mask])) <= {0, recipe.draws}
        assert (block.times >= 1).all()
    else:
        assert block.times is None
    if recipe.kind not in WITH_DRAWS:
        assert (block.n_draws == 0).all()
    assert count.max() <= synthetic_manifest(recipe).targets.max_entries


def check_scalars(recipe: Recipe, sequence: Sequence, block: Block) -> None:
    """Scalars lie within their bounds and agree with the entries."""
    mask, log_v = sequence.loss_mask, np.log(recipe.vocabulary_size)
    assert block.log_tail is not None
    assert block.entropy is not None
    assert block.label_logprob is not None
    np.testing.assert_allclose(exact_mass(block)[mask] + np.exp(block.log_tail[mask]), 1, atol=3e-6)
    assert np.isnan(block.log_tail[~mask]).all()
    assert np.isnan(block.label_logprob[~mask]).all()
    if recipe.kind in WITH_DRAWS:
        assert (block.n_draws[mask] >= 1).all() or np.isneginf(block.log_tail[mask & (block.n_draws == 0)]).all()
    assert (block.entropy[mask] >= 0).all()
    assert (block.entropy[mask] <= log_v + 1e-6).all()
    assert (block.label_logprob[mask] <= 0).all()
    for temperature in recipe.temperatures:
        log_z = block.log_z[temperature][mask]
        assert (log_z >= np.log(exact_mass(block, temperature)[mask]) - 1e-5).all()
        low, high = sorted((0.0, (1 - 1 / temperature) * log_v))
        assert ((log_z >= low - 1e-6) & (log_z <= high + 1e-6)).all()
    check_labels(sequence, block)
    if recipe.boundary:
        assert block.boundary_logprob is not None
        assert (block.boundary_logprob[mask] <= 0).all()


def check_labels(sequence: Sequence, block: Block) -> None:
    """The label's log p is that of its entry, and is below the exact ones where it is not among them."""
    rows, exact = entry_rows(block)
    assert block.label_logprob is not None
    labels = np.append(sequence.tokens[1:], -1)
    hit = exact & (block.ids == labels[rows])
    np.testing.assert_array_equal(block.logprobs[hit], block.label_logprob[rows[hit]])
    least = np.zeros(len(labels))
    np.minimum.at(least, rows[exact], block.logprobs[exact])
    missed = sequence.loss_mask.copy()
    missed[rows[hit]] = False
    if block.times is None and not block.n_draws.any():
        assert (block.label_logprob[missed] <= least[missed]).all()


@pytest.mark.parametrize("size", [8, 40])
def test_where_all_ids_are_kept_the_scalars_are_those_of_the_full_distribution(size: int) -> None:
    recipe = small("topk", vocabulary_size=size, top_k=64, boundary=True)
    for sequence, block in made(recipe):
        n = int(sequence.loss_mask.sum())
        if n == 0:
            continue
        assert (block.n_exact[sequence.loss_mask] == size).all()
        assert block.log_tail is not None
        assert np.isneginf(block.log_tail[sequence.loss_mask]).all()
        logp = block.logprobs.astype(np.float64).reshape(n, size)
        assert block.entropy is not None
        np.testing.assert_allclose(block.entropy[sequence.loss_mask], -(np.exp(logp) * logp).sum(axis=1), atol=1e-5)
        for temperature in recipe.temperatures:
            expected = np.log(np.exp(logp / temperature).sum(axis=1))
            np.testing.assert_allclose(block.log_z[temperature][sequence.loss_mask], expected, atol=1e-5)


def test_an_import_without_a_tail_knows_only_what_it_kept() -> None:
    recipe = small("imported", tail_known=False, top_k=5)
    for sequence, block in made(recipe):
        mask = sequence.loss_mask
        assert block.log_tail is None
        assert block.log_z == {}
        assert block.entropy is not None
        assert np.isnan(block.entropy).all()
        assert block.label_logprob is not None
        rows, _ = entry_rows(block)
        kept = np.zeros(len(mask), bool)
        kept[rows[block.ids == np.append(sequence.tokens[1:], -1)[rows]]] = True
        np.testing.assert_array_equal(np.isfinite(block.label_logprob), kept)


@pytest.mark.parametrize("size", [8, 500])
def test_states_and_the_output_head_give_every_scalar(size: int) -> None:
    recipe = small("state", vocabulary_size=size, boundary=True)
    tables = synthetic_tables(recipe)
    for sequence, block in made(recipe):
        mask = sequence.loss_mask
        assert block.state is not None
        assert block.state.dtype == np.float32
        assert block.state.shape == (len(mask), recipe.state_width)
        assert len(block.ids) == 0
        logits = block.state.astype(np.float64) @ tables["output_head"].T.astype(np.float64) + tables["output_bias"]
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        labels = np.take_along_axis(logp[:-1], sequence.tokens[1:, None], axis=1)[:, 0]
        assert block.label_logprob is not None
        assert block.entropy is not None
        np.testing.assert_allclose(block.label_logprob[:-1][mask[:-1]], labels[mask[:-1]], atol=1e-4)
        np.testing.assert_allclose(block.entropy[mask], -(np.exp(logp) * logp).sum(axis=1)[mask], atol=1e-4)
        for temperature in recipe.temperatures:
            expected = np.log(np.exp(logp / temperature).sum(axis=1))
            np.testing.assert_allclose(block.log_z[temperature][mask], expected[mask], atol=1e-4)


def test_tables_are_those_of_the_manifest() -> None:
    for kind in KINDS:
        recipe = small(kind)
        tables = synthetic_tables(recipe)
        stated = {table.name: (table.dtype, table.shape) for table in synthetic_manifest(recipe).tables}
        assert {name: (table.dtype.name, table.shape) for name, table in tables.items()} == stated
        assert sorted(tables["ids_by_rank"].tolist()) == list(range(recipe.vocabulary_size))


def test_ids_follow_the_frequencies_only_roughly() -> None:
    ids = synthetic_tables(small("none"))["ids_by_rank"].astype(np.float64)
    correlation = np.corrcoef(np.log1p(ids), np.log1p(np.arange(len(ids))))[0, 1]
    assert 0.6 < correlation < 0.97


@pytest.mark.parametrize(("tau", "expected"), [(1 / 10, 6), (1 / 25, 11), (1 / 50, 17.5)])
def test_thresholds_keep_about_as_many_ids_as_measured_on_a_trained_teacher(tau: float, expected: float) -> None:
    pairs = made(Recipe(tau=tau, documents={"train": 60}, hidden=False))
    count = np.concatenate([(block.n_exact + block.n_draws)[sequence.loss_mask] for sequence, block in pairs])
    assert abs(count.mean() - expected) < 0.1 * expected


def test_rows_differ_in_entropy() -> None:
    entropies = np.concatenate(
        [block.entropy[~np.isnan(block.entropy)] for _, block in made(small("topk")) if block.entropy is not None]
    )
    assert np.quantile(entropies, 0.05) < 0.7
    assert np.quantile(entropies, 0.95) > 3.5


def test_frequent_ids_are_frequent() -> None:
    recipe = Recipe(kind="none", documents={"train": 200}, hidden=False)
    tokens = np.concatenate([sequence.tokens for sequence, _ in made(recipe)])
    rank = np.argsort(synthetic_tables(recipe)["ids_by_rank"])[tokens]
    assert 0.15 < (rank < 10).mean() < 0.6
    assert (rank > 10_000).mean() > 0.02
