"""A cache is a sequence of sequences: indexing, scanning, splits, what is beside the rows, and every refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.opening import create_cache
from kdpipe.cache.reader import Cache
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, Incompatible
from kdpipe.schemas.manifest import read_manifest
from kdpipe.schemas.strict_json import canonical, parse
from kdpipe.schemas.target_kinds import NoTargets, Sampled, Threshold
from support import tiny
from support.arbitrary import Wish, write
from support.reading import arrays_of, assert_same_rows, digests_of_all, joined
from support.synthetic import Recipe

RECIPES = {
    "threshold": tiny.SMALL,
    "sampled": replace(tiny.SMALL, kind="sampled", draws=8, draw_values=True, boundary=True),
    "state": replace(tiny.SMALL, kind="state", state_width=6),
    "none": replace(tiny.SMALL, kind="none", hidden=False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small cache of each of these kinds."""
    folder = tmp_path_factory.mktemp("reader")
    with tiny.unsynced():
        for name, recipe in RECIPES.items():
            tiny.make_cache(folder / name, recipe)
    return {name: folder / name for name in RECIPES}


@pytest.fixture(scope="module")
def cache(made: dict[str, Path]) -> Cache:
    """The small cache of kind threshold."""
    return open_cache(made["threshold"])


def test_a_cache_is_indexed_like_a_list(cache: Cache) -> None:
    n = len(cache)
    assert n == sum(cache.sequences_by_part) == len(list(cache))
    assert_same_rows(cache[-1], cache[n - 1])
    assert_same_rows(cache[-n], cache[0])
    assert_same_rows(cache[np.arange(4)[3]], cache[3])
    for outside in (n, n + 5, -n - 1):
        with pytest.raises(IndexError, match=rf"there is no sequence {outside}: <kdpipe cache .*: {n} sequences"):
            cache[outside]
    with pytest.raises(TypeError):
        cache[1.0]  # type: ignore[index]


def test_iteration_gives_every_sequence_in_order(cache: Cache) -> None:
    for i, rows in enumerate(cache):
        assert_same_rows(rows, cache[i])
    assert [len(rows) for rows in cache] == [
        len(sequence.tokens) for number in range(4) for sequence, _ in tiny.part_of(tiny.SMALL, number)
    ]


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("max_rows", [1, 33, 64, 100, 150, 1 << 14])
def test_a_scan_has_the_rows_of_the_sequences(made: dict[str, Path], kind: str, max_rows: int) -> None:
    cache = open_cache(made[kind])
    pieces = list(cache.scan(max_rows))
    one_by_one, at_once = joined(cache), joined(pieces)
    assert one_by_one.keys() == at_once.keys()
    for name, array in one_by_one.items():
        np.testing.assert_array_equal(at_once[name], array, err_msg=name)
    longest = max(len(rows) for rows in cache)
    assert all(len(rows) <= max(max_rows, longest) for rows in pieces)


def test_a_scan_fills_its_pieces(tmp_path: Path) -> None:
    wish = Wish(keep=NoTargets(), part_lengths=((10,) * 12, (10,) * 12))
    cache = open_cache(write(tmp_path / "c", wish))
    assert [len(rows) for rows in cache.scan(50)] == [50, 50, 20] * 2


def test_splits_are_the_parts_that_the_plan_gives_them(made: dict[str, Path]) -> None:
    whole, train = open_cache(made["threshold"]), open_cache(made["threshold"], "train")
    validation = open_cache(made["threshold"], split="validation")
    assert len(whole) == len(train) + len(validation)
    assert whole.n_positions == train.n_positions + validation.n_positions
    assert train.sequences_by_part + validation.sequences_by_part == whole.sequences_by_part
    assert digests_of_all(train) + digests_of_all(validation) == digests_of_all(whole)
    assert train.cache_id == validation.cache_id == whole.cache_id
    assert "(train)" in repr(train)
    assert validation.part(3).number == 3
    with pytest.raises(CacheIncomplete, match="has no part 3"):
        train.part(3)


def test_a_split_of_an_open_cache_reads_no_record_again(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_cache(made["threshold"])
    monkeypatch.setattr("kdpipe.cache.reader.load_manifest", lambda _: pytest.fail("the manifest was read again"))
    train, validation = whole.split("train"), whole.split("validation")
    assert digests_of_all(train) + digests_of_all(validation) == digests_of_all(whole)
    assert (train.store, train.manifest, train.split_name) == (whole.store, whole.manifest, "train")
    assert len(train.split(None)) == len(whole)
    assert whole.split_names == ["train", "validation"]


@pytest.mark.parametrize("kind", RECIPES)
def test_tables_beside_the_rows_are_what_was_written(made: dict[str, Path], kind: str) -> None:
    recipe = RECIPES[kind]
    cache = open_cache(made[kind])
    pairs = [pair for number in range(4) for pair in tiny.part_of(recipe, number)]
    for i, (sequence, _) in enumerate(pairs):
        assert cache.columns(i) == dict(sequence.columns)
        assert cache.digests(i) == [digest.tobytes() for digest in sequence.digests]
        assert cache.texts(i) == sequence.texts
        np.testing.assert_array_equal(cache.token_bytes(i), sequence.token_bytes)
        pooled = cache.pooled(i)
        assert set(pooled) == set(sequence.pooled)
        for layer, vectors in pooled.items():
            np.testing.assert_allclose(vectors, sequence.pooled[layer], atol=np.abs(vectors).max() / 200)


def test_arrays_belong_to_the_caller_and_a_second_read_is_equal(cache: Cache) -> None:
    first = cache[2]
    for array in arrays_of(first).values():
        if array.flags.writeable:
            array[...] = 0
    again = cache[2]
    fresh = open_cache(cache.url)[2]
    assert_same_rows(again, fresh)


def test_a_cache_without_text_names_the_option_for_it(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=NoTargets())))
    with pytest.raises(ConfigError, match="text") as refused:
        cache.texts(0)
    assert "--for-other-tokenizers" in str(refused.value.hint)


def test_tables_are_given_as_they_were_fitted(tmp_path: Path) -> None:
    wish = Wish(keep=Sampled(draws=3), vocabulary_size=70)
    cache = open_cache(write(tmp_path / "c", wish))
    np.testing.assert_array_equal(cache.table("ids_by_rank"), wish.tables["ids_by_rank"])


def test_a_missing_folder_a_foreign_folder_and_an_unknown_split_are_named(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        open_cache(tmp_path)
    with pytest.raises(ConfigError, match="'test'") as refused:
        open_cache(cache.url, "test")  # type: ignore[arg-type]
    assert "train, validation" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="max_open_parts is 0"):
        open_cache(cache.url, max_open_parts=0)
    (tmp_path / "manifest.json").write_bytes(canonical({"model": "x"}))
    with pytest.raises(CacheDamaged, match="does not describe a kdpipe cache") as refused_damaged:
        open_cache(tmp_path)
    assert "the folder with manifest.json" in str(refused_damaged.value.hint)


def test_an_unfinished_cache_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with tiny.unsynced():
        writer = tiny.begin_cache(path)
        empty = open_cache(path, allow_partial=True)
        assert (len(empty), empty.cache_id, list(empty), list(empty.scan())) == (0, None, [], [])
        with pytest.raises(CacheIncomplete, match="has no parts yet"):
            empty.table("ids_by_rank")
        with pytest.raises(IndexError, match="there is no sequence 0"):
            empty[0]
        tiny.write_part(writer, 1)
        with pytest.raises(CacheIncomplete, match="unfinished: 3 of 4 parts are missing") as refused:
            open_cache(path)
        assert "allow_partial" in str(refused.value.hint)
        partial = open_cache(path, allow_partial=True)
        assert len(partial) == len(tiny.part_of(tiny.SMALL, 1))
        np.testing.assert_array_equal(partial[0].tokens, tiny.part_of(tiny.SMALL, 1)[0][0].tokens)
        assert len(open_cache(path, "validation", allow_partial=True)) == 0
        for number in (0, 2, 3):
            tiny.write_part(writer, number)
        with pytest.raises(CacheIncomplete, match=f"unfinished: {layout.INDEX} is missing"):
            open_cache(path)
        identity = writer.seal()
    sealed = open_cache(path)
    assert sealed.cache_id == identity
    partial = open_cache(path, allow_partial=True)
    assert (partial.cache_id, len(partial)) == (identity, len(sealed))


def test_a_strange_name_among_the_parts_is_named(tmp_path: Path) -> None:
    with tiny.unsynced():
        writer = tiny.begin_cache(tmp_path / "cache")
        tiny.write_part(writer, 0)
    for name in ("00004", "0000", "000001", "copy", "-0001"):
        (tmp_path / "cache/parts" / name).mkdir()
        with pytest.raises(CacheDamaged, match=f"parts/{name} is not a part of this cache"):
            open_cache(tmp_path / "cache", allow_partial=True)
        (tmp_path / "cache/parts" / name).rmdir()


def test_a_cache_of_a_newer_minor_version_is_read_without_what_is_new(tmp_path: Path) -> None:
    wish = Wish(keep=Threshold(tau=0.1, max_entries=6), vocabulary_size=30)
    value = parse(wish.manifest.to_json(), "here")
    value["format"]["minor"] = 7
    value["novelty"] = {"shade": "blue"}
    value["targets"]["keep"]["mood"] = 1
    value["arrays"]["row"]["columns"][0]["quantizer"]["twist"] = [1, 2]
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / layout.MANIFEST).write_bytes(canonical(value))
    manifest = read_manifest(canonical(value), layout.MANIFEST)
    with tiny.unsynced():
        writer = create_cache(newer, manifest)
        writer.publish_tables(wish.tables)
        for number, pairs in enumerate(wish.parts):
            with writer.part(number) as part:
                for pair in pairs:
                    part.add(*pair)
        identity = writer.seal()
    cache = open_cache(newer)
    assert (cache.cache_id, cache.manifest.format.minor) == (identity, 7)
    assert digests_of_all(cache) == digests_of_all(open_cache(write(tmp_path / "same", wish)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"major": 2}, "has format 2.1, this kdpipe reads 1.x"),
        ({"must_understand": ["time travel"]}, "needs time travel, unknown to this kdpipe"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused_with_the_kdpipe_to_get(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    value = parse(tiny.manifest_of(Recipe()).to_json(), "here")
    value["format"].update(change)
    (tmp_path / layout.MANIFEST).write_bytes(canonical(value))
    with pytest.raises(Incompatible, match=message) as refused:
        open_cache(tmp_path)
    assert "install" in str(refused.value.hint)


@pytest.mark.parametrize("kind", RECIPES)
def test_tokens_and_lengths_are_those_of_the_rows(made: dict[str, Path], kind: str) -> None:
    cache = open_cache(made[kind])
    assert cache.lengths().tolist() == [len(rows) for rows in cache]
    for i, rows in enumerate(cache):
        tokens = cache.tokens(i)
        for name in ("tokens", "loss_mask", "document_starts"):
            assert np.array_equal(getattr(tokens, name), getattr(rows, name))
            assert getattr(tokens, name).dtype == getattr(rows, name).dtype
        without = cache.rows(i, hidden=False)
        assert without.hidden == {}
        assert_same_rows(replace(without, hidden=rows.hidden), rows)
