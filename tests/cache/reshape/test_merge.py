"""Merged caches: every document keeps its rows, under one set of tables, or the reason why not is reported."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support.reshaped
from kdpipe.cache.format.blocks import cut
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.reshape import rebuild as making
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cache.reshape.merge import merge
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.errors import CacheIncomplete, ConfigError, Incompatible
from kdpipe.schemas.manifest import Origin
from kdpipe.schemas.version import FormatVersion
from support.kinds import KINDS, make_kind
from support.reshaped import documents_in, make_other_kind, problems_in
from support.synthetic import Recipe, synthetic_tables
from support.tiny import SMALL, digests_of, make_cache, manifest_of, part_of

OTHER = replace(SMALL, documents={"train": 10, "validation": 3}, documents_per_part=5)
# One kind a way of coding; the others are in the slower suite.
FAST = ("threshold", "none-hidden")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches with equal tables and different documents."""
    folder = tmp_path_factory.mktemp("pair")
    make_cache(folder / "a")
    make_cache(folder / "b", OTHER)
    return folder / "a", folder / "b"


def run(out: Path, *sources: Path, **options: Any) -> Any:
    return merge([str(source) for source in sources], str(out), **options)


def test_parts_of_caches_with_equal_tables_keep_their_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = [digests_of(source) for source in pair]
    report = run(tmp_path / "c", *pair)
    assert (report.parts.planned, report.adopted, report.rewritten, report.left_out) == (7, 7, 0, 0)
    assert problems_in(tmp_path / "c") == []
    assert documents_in(tmp_path / "c") == documents_in(pair[0]) + documents_in(pair[1])
    merged = open_cache(tmp_path / "c")
    assert [split.bounds for split in merged.manifest.plan.splits] == [(0, 4, 8, 12, 17, 22), (0, 4, 7)]
    ids = tuple(str(open_cache(source).cache_id) for source in pair)
    assert merged.manifest.history == (Origin(action="merge", caches=ids),)
    assert merged.manifest.data.source == open_cache(pair[0]).manifest.data.source
    assert [digests_of(source) for source in pair] == before


def test_an_adopted_part_gives_the_same_weights_to_the_bit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(tmp_path / "c", *pair)
    merged, other = open_cache(tmp_path / "c", "train"), open_cache(pair[1], "train")
    first = len(open_cache(pair[0], "train"))
    for i in range(len(other)):
        there, here = other[i], merged[first + i]
        for name in ("ids", "logprobs", "weights", "label_logprob", "entropy"):
            assert getattr(there, name).tobytes() == getattr(here, name).tobytes()


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_rows_recoded_under_the_first_tables_have_equal_values(name: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    make_other_kind(tmp_path / "b", name)
    report = run(tmp_path / "c", tmp_path / "a", tmp_path / "b")
    assert (report.adopted, report.rewritten) == (2, 2)
    assert problems_in(tmp_path / "c") == []
    assert documents_in(tmp_path / "c") == documents_in(tmp_path / "a") + documents_in(tmp_path / "b")
    merged, a, b = (open_cache(tmp_path / which) for which in "cab")
    assert np.array_equal(merged.table("ids_by_rank"), a.table("ids_by_rank"))
    stated, ours = b.part(0).record, merged.part(1).record
    assert ours.statistics.entries == stated.statistics.entries
    assert (ours.statistics.label_is_top1, ours.n_draws) == (stated.statistics.label_is_top1, stated.n_draws)


def test_documents_of_an_earlier_cache_are_refused_with_counts(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(tmp_path / "c", *pair)
    with pytest.raises(Incompatible) as refusal:
        run(tmp_path / "d", pair[0], tmp_path / "c")
    assert refusal.value.message == f"16 of the 29 documents of {tmp_path / 'c'} are in an earlier cache"
    assert "--overlap keep-first" in str(refusal.value.hint)
    assert not (tmp_path / "d").exists()


def test_documents_of_an_earlier_cache_are_skipped_on_request(pair: tuple[Path, Path], tmp_path: Path) -> None:
    small = replace(SMALL, documents={"train": 8}, documents_per_part=8)
    mixed = tmp_path / "mixed"
    mixed_cache(mixed, pair)
    make_cache(tmp_path / "new", small)
    report = run(tmp_path / "d", pair[1], mixed, tmp_path / "new", overlap="keep-first")
    assert report.left_out == 5
    sources = pair[1], mixed, tmp_path / "new"
    assert documents_in(tmp_path / "d") == Counter(set().union(*map(documents_in, sources)))
    assert problems_in(tmp_path / "d") == []
    origin = open_cache(tmp_path / "d").manifest.history[-1]
    assert (origin.action, origin.note) == ("merge", "overlap keep-first: 5 documents left out, 0 in part")


def test_of_a_document_that_is_known_in_part_the_known_pieces_are_left_out(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Document 1 of `b` is two pieces, the first of which is document 0 of `a`."""
    pieces_cache(tmp_path / "a", SMALL, [[0], [1]])
    pieces_cache(tmp_path / "b", SMALL, [[2], [0, 3]])
    with pytest.raises(Incompatible) as refusal:
        run(tmp_path / "c", tmp_path / "a", tmp_path / "b")
    assert refusal.value.message == (
        f"1 of the 2 documents of {tmp_path / 'b'} is in an earlier cache, 1 of them in part"
    )
    report = run(tmp_path / "c", tmp_path / "a", tmp_path / "b", overlap="keep-first")
    assert (report.left_out, report.documents) == (0, 4)
    pieces_cache(tmp_path / "due", SMALL, [[0], [1], [2], [3]])
    assert documents_in(tmp_path / "c") == documents_in(tmp_path / "due")
    assert problems_in(tmp_path / "c") == []
    note = "overlap keep-first: 0 documents left out, 1 in part"
    assert open_cache(tmp_path / "c").manifest.history[-1].note == note


def pieces_cache(path: Path, recipe: Recipe, documents: list[list[int]]) -> None:
    """A cache of one part whose documents consist of such pieces: documents of the recipe's first part."""
    old = manifest_of(recipe)
    plan = CachePlan(splits=(SplitPlan(name="train", bounds=(0, len(documents))),), sequence_length=64)
    writer = create_cache(path, with_changes(old, plan=plan))
    writer.publish_tables(synthetic_tables(recipe))
    single = list(single_documents(recipe))
    with writer.part(0) as part:
        for number, pieces in enumerate(documents):
            for piece in pieces:
                sequence, block = single[piece]
                part.add(replace(sequence, documents=np.array([number])), block)
    writer.seal()


def single_documents(recipe: Recipe) -> Iterator[tuple[Sequence, Block]]:
    """The documents of the first part, each as a sequence of its own."""
    for sequence, block in part_of(recipe, 0):
        ends = np.append(sequence.document_starts[1:], len(sequence.tokens))
        for n, (end, own) in enumerate(zip(ends, cut(block, ends), strict=True)):
            rows = slice(int(sequence.document_starts[n]), int(end))
            yield (
                replace(
                    sequence,
                    tokens=sequence.tokens[rows],
                    loss_mask=sequence.loss_mask[rows],
                    token_bytes=sequence.token_bytes[rows],
                    document_starts=np.zeros(1, np.int64),
                    documents=sequence.documents[n : n + 1],
                    digests=sequence.digests[n : n + 1],
                    columns={name: values[n : n + 1] for name, values in sequence.columns.items()},
                    pooled={layer: vectors[n : n + 1] for layer, vectors in sequence.pooled.items()},
                    texts=(sequence.texts or [])[n : n + 1],
                ),
                own,
            )


def test_bounds_of_the_format_are_refused_in_words(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"4,097 .*4,096"):
        merge(["a"] * 4097, str(tmp_path / "c"))
    monkeypatch.setattr(making, "MAX_HISTORY", 0)
    assert refused(tmp_path, *pair).message.endswith("1 entries, the maximum is 0")
    monkeypatch.setattr(making, "MAX_PARTS", 6)
    assert refused(tmp_path, *pair).message.endswith("7 parts, the maximum is 6")


def mixed_cache(path: Path, pair: tuple[Path, Path]) -> None:
    """A cache of one part with the documents of the first parts of two, one behind the other."""
    plan = CachePlan(splits=(SplitPlan(name="train", bounds=(0, 9)),), sequence_length=64)
    old = open_cache(pair[0])
    writer = create_cache(path, with_changes(old.manifest, plan=plan))
    writer.publish_tables({table.name: old.table(table.name) for table in old.manifest.tables})
    with writer.part(0) as part:
        for recipe, offset in ((SMALL, 0), (OTHER, 4)):
            for sequence, block in part_of(recipe, 0):
                part.add(replace(sequence, documents=sequence.documents + offset), block)
    writer.seal()


def test_a_killed_merge_resumes(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", *pair)
    adopt = making._adopt

    def die(writer: Any, number: int, plan: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt
        adopt(writer, number, plan)

    with monkeypatch.context() as dying:
        dying.setattr(making, "_adopt", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "c", *pair)
    with pytest.raises(CacheIncomplete):
        run(tmp_path / "d", tmp_path / "c", pair[0])
    report = run(tmp_path / "c", *pair)
    assert report.parts.made == 4
    assert digests_of(tmp_path / "c") == digests_of(tmp_path / "whole")
    assert run(tmp_path / "c", *pair).parts.made == 0


def refused(tmp_path: Path, *sources: Path) -> Any:
    with pytest.raises((ConfigError, Incompatible)) as refusal:
        run(tmp_path / "c", *sources)
    assert not (tmp_path / "c").exists()
    return refusal.value


def test_another_spec_is_refused_with_what_differs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    make_cache(tmp_path / "b", replace(OTHER, tau=0.1, text=False))
    reported = refused(tmp_path, pair[0], tmp_path / "b")
    assert reported.message == (
        f"{pair[0]} and {tmp_path / 'b'} cannot be in one cache: "
        "--for-other-tokenizers: yes and no; --tau: 0.04 and 0.1"
    )


def test_another_tokenizer_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    make_cache(tmp_path / "b", replace(OTHER, seed=1))
    assert "cannot be in one cache: the tokenizer: " in refused(tmp_path, pair[0], tmp_path / "b").message


def test_projections_fitted_to_other_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_kind(tmp_path / "a", "none-hidden")
    tables = support.reshaped.kind_tables

    def other(name: str) -> Any:
        return {key: value * 2 if key == "pca_rows_1" else value for key, value in tables(name).items()}

    monkeypatch.setattr(support.reshaped, "kind_tables", other)
    make_other_kind(tmp_path / "b", "none-hidden")
    reported = refused(tmp_path, tmp_path / "a", tmp_path / "b")
    assert reported.message == (
        f"{tmp_path / 'b'} has projections fitted to other states than {tmp_path / 'a'}: pca_rows_1"
    )


def test_a_cache_with_itself_or_alone_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair[0], tmp_path / "copy"))
    assert refused(tmp_path, pair[0], copy).message == f"{pair[0]} and {copy} are the same cache"
    assert refused(tmp_path, pair[0]).message.startswith("merge needs at least two")
    assert refused(tmp_path, tmp_path / "nowhere").message.startswith("merge needs at least two")


def test_a_cache_that_is_read_is_not_written_into(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="inside the source"):
        run(pair[0] / "inner", *pair)
    with pytest.raises(ConfigError, match="inside the source"):
        run(pair[1], *pair)
    with pytest.raises(ConfigError, match="inside the source"):
        merge([str(each) for each in pair], f"file://{pair[0]}/inner")
    assert not (pair[0] / "inner").exists()


def test_a_folder_may_be_named_by_a_url_and_not_by_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [str(each) for each in pair]
    assert merge(sources, f"file://{tmp_path}/c%20d").cache_id == open_cache(tmp_path / "c d").cache_id
    for nothing in ("", "file://"):
        with pytest.raises(ConfigError, match="the path of the new cache is empty"):
            merge(sources, nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["c d"]


def test_a_bucket_is_written_from_within_a_cache_that_is_read(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair[0])
    before = sorted(pair[0].iterdir())
    assert merge([".", str(pair[1])], f"memory://{tmp_path.name}/c").parts.made
    assert sorted(pair[0].iterdir()) == before


def test_caches_are_read_from_urls_and_written_to_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(tmp_path / "c", *pair)
    url = f"memory://{tmp_path.name}/c"
    report = merge([f"local://{source}" for source in pair], url)
    assert report.cache_id == open_cache(tmp_path / "c").cache_id
    assert merge([f"local://{source}" for source in pair], url).parts.made == 0
    with pytest.raises(ConfigError, match="inside the source"):
        merge([url, str(pair[0])], f"{url}/inner", "keep-first")


def test_a_cache_of_a_newer_format_is_not_rewritten_into_this_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    newer = with_changes(open_cache(pair[1]).manifest, format=FormatVersion(minor=7))
    writer = create_cache(tmp_path / "b", newer)
    old = open_cache(pair[1])
    writer.publish_tables({table.name: old.table(table.name) for table in old.manifest.tables})
    for number in writer.missing():
        with writer.part(number) as part:
            for sequence, block in part_of(OTHER, number):
                part.add(sequence, block)
    writer.seal()
    reported = refused(tmp_path, pair[0], tmp_path / "b")
    assert "1.7" in reported.message and "1.1" in reported.message
