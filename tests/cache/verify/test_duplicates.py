"""Documents that are in a cache more than once: a problem beyond what the plan counts, a note otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache import layout, verify
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.parts.part_files import part_problem
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.reshape.subset import subset
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import duplicates as module
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.duplicates import Duplicates
from kdpipe.pipeline.requantize import requantize
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.reshape import Bounds, DocumentSelection, RequantizeSpec
from kdpipe.schemas.verify_report import Note, Problem
from support.damage import copy_part, reseal
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables
from support.tiny import SMALL, unsynced
from support.web import Site, serving

FOUR = replace(SMALL, documents={"train": 16, "validation": 4}, document_tokens=20, text=False, hidden=False)
KINDS = {
    "threshold": FOUR,
    "threshold, short documents": replace(FOUR, document_tokens=6),
    "sampled, short documents": replace(FOUR, kind="sampled", draws=4, document_tokens=6),
    "topk": replace(FOUR, kind="topk"),
    "topp": replace(FOUR, kind="topp"),
    "state": replace(FOUR, kind="state", state_width=8),
    "none": replace(FOUR, kind="none"),
}

NOTHING = Block(
    n_exact=np.zeros(10, np.int32),
    n_draws=np.zeros(10, np.int32),
    ids=np.zeros(0, np.int32),
    logprobs=np.zeros(0, np.float32),
)


def counted(recipe: Recipe, **counts: int | None) -> Manifest:
    """The manifest of a recipe whose plan counts duplicates."""
    manifest = synthetic_manifest(recipe)
    splits = tuple(split.model_copy(update={"duplicates": counts.get(split.name)}) for split in manifest.plan.splits)
    return manifest.model_copy(update={"plan": manifest.plan.model_copy(update={"splits": splits})})


def made(path: Path, recipe: Recipe = FOUR, manifest: Manifest | None = None) -> Path:
    """A cache of four parts of train and one of validation; its plan counts no duplicate."""
    stated = manifest or counted(recipe, train=0, validation=0)
    with unsynced():
        writer = create_cache(path, stated)
        writer.publish_tables(synthetic_tables(recipe))
        for number in writer.missing():
            with writer.part(number) as part:
                for sequence, block in synthetic_part(recipe, stated, number):
                    part.add(sequence, block)
        writer.seal()
    return path


def state(path: Path, count: int | None) -> None:
    """Let the plan of a cache state another count for train, and seal the cache again."""
    manifest = open_cache(path).manifest
    train, *others = manifest.plan.splits
    plan = manifest.plan.model_copy(update={"splits": (train.model_copy(update={"duplicates": count}), *others)})
    (path / layout.MANIFEST).write_bytes(manifest.model_copy(update={"plan": plan}).to_json())
    reseal(path)


def found(path: Path) -> tuple[list[Problem], list[Note]]:
    """Problems found by the pass over all documents."""
    cache = open_cache(path)
    duplicates = Duplicates(cache.manifest)
    for row in cache.parts:
        duplicates.add(LocalStore(path), cache.part(row.part).record)
    return duplicates.findings()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_part_of_any_kind_is_named_at_the_deep_level(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path / "cache", KINDS[kind])
    fine = verify_cache(path, "deep")
    assert (fine.problems, fine.notes) == ((), ())
    copy_part(path, 2, 3)
    assert verify_cache(path, "full").ok
    (problem,) = verify_cache(path, "deep").problems
    assert (problem.part, problem.file.startswith(layout.part_dir(3))) == (3, True)
    assert "in part 2" in problem.what


@pytest.mark.parametrize("kind", KINDS)
def test_copied_documents_are_counted_and_the_first_are_named(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path / "cache", KINDS[kind])
    assert found(path) == ([], [])
    copy_part(path, 2, 3)
    (problem,), notes = found(path)
    assert (problem.part, problem.file, notes) == (3, f"{layout.part_dir(3)}/{layout.SEQUENCES}", [])
    assert "4 documents are duplicates of an earlier one, 0 in the data: 4 of part 3;" in problem.what
    assert "document 12 is a duplicate of 8 in part 2, document 13 is a duplicate of 9 in part 2" in problem.what


@pytest.mark.parametrize(("count", "due"), [(4, "4 in the data"), (None, "number in the data unknown")])
def test_duplicates_that_the_data_may_have_are_a_note(count: int | None, due: str, tmp_path: Path) -> None:
    path = made(tmp_path / "cache")
    copy_part(path, 1, 2)
    state(path, count)
    problems, (note,) = found(path)
    assert (problems, note.part, note.file) == ([], None, layout.PARTS)
    assert f"train: 4 documents are duplicates of an earlier one ({due}): document 8 is a duplicate of 4" in note.what


def test_one_duplicate_is_noted_in_the_singular(tmp_path: Path) -> None:
    path = made(tmp_path / "cache", replace(FOUR, documents={"train": 3}, documents_per_part=1))
    copy_part(path, 0, 1)
    state(path, 1)
    _, (note,) = found(path)
    assert note.what.startswith("train: 1 document is a duplicate of an earlier one (1 in the data): document 1 is a ")


def test_one_more_than_the_data_have_is_a_problem_of_the_part_with_the_largest_share(tmp_path: Path) -> None:
    path = made(tmp_path / "cache", replace(FOUR, documents={"train": 14}, documents_per_part=4))
    copy_part(path, 3, 1)
    state(path, 1)
    (problem,), _ = found(path)
    # Parts 1 and 3 have the same two documents: these do not show which of them is the copy.
    assert problem.part == 3 and "document 12 is a duplicate of 4 in part 1" in problem.what


def test_copies_of_several_parts_are_all_named(tmp_path: Path) -> None:
    path = made(tmp_path / "cache")
    copy_part(path, 1, 2)
    copy_part(path, 1, 3)
    (problem,), _ = found(path)
    assert "8 documents are duplicates of an earlier one, 0 in the data: 4 of part 2, 4 of part 3;" in problem.what


@pytest.mark.slow
def test_a_copied_part_behind_a_url_is_named(tmp_path: Path) -> None:
    path = made(tmp_path / "cache", KINDS["topk"])
    copy_part(path, 2, 3)
    with serving(Site(path)) as url:
        report = verify_cache(url, "deep")
    assert report.problems == verify_cache(path, "deep").problems
    assert [problem.part for problem in report.problems] == [3]


def test_a_part_that_ends_the_process_that_decodes_hides_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "cache")
    copy_part(path, 2, 3)
    died = part_problem(0, "", "decoding it was ended by signal 9")
    monkeypatch.setattr(verify, "decoded", lambda _path, numbers, _most: ((n, [] if n else [died]) for n in numbers))
    assert [problem.part for problem in verify_cache(path, "deep").problems] == [0, 3]


def test_splits_are_counted_apart(tmp_path: Path) -> None:
    path = made(tmp_path / "cache")
    copy_part(path, 3, 4)
    assert found(path) == ([], [])


# The document of each piece of 10 rows, and a number for its tokens: 0 and 1 have the same two pieces.
PIECES = [(0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 3), (3, 9)]


@pytest.mark.parametrize(
    ("sequence_length", "planned", "n_problems"),
    [(64, 0, 1), (64, 1, 0), (10, 0, 0)],
    ids=["more than planned", "planned", "may have been cut"],
)
def test_pieces_of_a_long_document_are_one_document(
    sequence_length: int, planned: int, n_problems: int, tmp_path: Path
) -> None:
    recipe = replace(FOUR, kind="none", documents={"train": 4})
    manifest = synthetic_manifest(recipe)
    columns = {name: values[:1] for name, values in next(synthetic_part(recipe, manifest, 0))[0].columns.items()}
    plan = CachePlan(
        splits=(SplitPlan(name="train", bounds=(0, 4), duplicates=planned),), sequence_length=sequence_length
    )
    writer = create_cache(tmp_path / "cache", manifest.model_copy(update={"plan": plan}))
    writer.publish_tables(synthetic_tables(recipe))
    with writer.part(0) as part:
        for document, content in PIECES:
            part.add(_piece(document, content, columns), NOTHING)
    writer.seal()
    problems, notes = found(tmp_path / "cache")
    assert (len(problems), len(notes)) == (n_problems, 1 - n_problems)
    assert "document 1 is a duplicate of 0 in part 0" in (problems or notes)[0].what
    assert "document 2" not in (problems or notes)[0].what


def _piece(document: int, content: int, columns: dict[str, Any]) -> Sequence:
    return Sequence(
        tokens=np.full(10, content, np.int32),
        loss_mask=np.arange(10) < 9,
        token_bytes=np.ones(10, np.uint32),
        document_starts=np.zeros(1, np.int64),
        documents=np.array([document]),
        digests=np.full((1, 16), content, np.uint8),
        columns=columns,
    )


@pytest.mark.slow
def test_digests_of_other_tokens_are_a_problem_where_duplicates_are_counted(tmp_path: Path) -> None:
    """A forger who changes the digests of a copied part does not hide it."""
    recipe = replace(FOUR, kind="topk", documents={"train": 4})
    for name, count, reported in (("counted", 0, ["digests of 1 document "]), ("unknown", None, [])):
        manifest = counted(recipe, train=count)
        writer = create_cache(tmp_path / name, manifest)
        writer.publish_tables(synthetic_tables(recipe))
        with writer.part(0) as part:
            for i, (sequence, block) in enumerate(synthetic_part(recipe, manifest, 0)):
                digests = sequence.digests.copy()
                digests[0, 0] += i == 0
                part.add(replace(sequence, digests=digests), block)
        writer.seal()
        whats = [problem.what for problem in verify_cache(tmp_path / name, "deep").problems]
        assert [what[: len("digests of 1 document ")] for what in whats] == reported


def test_damage_in_the_meantime_is_a_problem(tmp_path: Path) -> None:
    path = made(tmp_path / "cache")
    cache = open_cache(path)
    records = [cache.part(row.part).record for row in cache.parts]
    file = path / layout.part_dir(1) / layout.SEQUENCES
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    duplicates = Duplicates(cache.manifest)
    for record in records:
        duplicates.add(LocalStore(path), record)
    (problem,), _ = duplicates.findings()
    assert (problem.part, problem.what) == (1, "its bytes are not those that were written (sha256 differs)")


def test_many_duplicates_are_found_as_a_dictionary_finds_them() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        sizes = rng.integers(0, 12, rng.integers(1, 5))
        keys = rng.integers(0, rng.integers(1, 30), int(sizes.sum())).astype(np.uint64)
        ends = np.cumsum(sizes)
        parts = [
            (7 + i, module._Documents(numbers=np.arange(a, b), high=keys[a:b] % 3, low=keys[a:b], whole=keys[a:b] > 4))
            for i, (a, b) in enumerate(zip(ends - sizes, ends, strict=True))
        ]
        result = module._RepeatedDocuments.of(parts)
        seen: dict[int, int] = {}
        due = [(n, seen[key]) for n, key in enumerate(keys.tolist()) if seen.setdefault(key, n) != n]
        assert list(zip(result.numbers.tolist(), result.first_numbers.tolist(), strict=True)) == due
        assert result.places.tolist() == [int((ends <= n).sum()) for n, _ in due]
        assert result.first_places.tolist() == [int((ends <= n).sum()) for _, n in due]
        assert result.only_whole().n == sum(bool(keys[n] > 4) for n, _ in due)


def test_a_cache_that_was_begun_before_duplicates_were_counted_is_finished(tmp_path: Path) -> None:
    old = counted(FOUR)
    create_cache(tmp_path / "cache", old)
    again = create_cache(tmp_path / "cache", counted(FOUR, train=0, validation=0))
    assert again.manifest.to_json() == old.to_json()
    create_cache(tmp_path / "other", counted(FOUR, train=1, validation=0))
    for other in (old, counted(FOUR, train=0, validation=0)):
        with pytest.raises(ConfigError, match="holds another cache"):
            create_cache(tmp_path / "other", other)


def test_a_split_of_which_nothing_is_left_out_keeps_its_count(tmp_path: Path) -> None:
    path, out = made(tmp_path / "a", manifest=counted(FOUR, train=3, validation=1)), tmp_path
    fewer = replace(FOUR, documents={"train": 6}, documents_per_part=3)
    other = made(tmp_path / "b", fewer, counted(fewer, train=0))
    with unsynced():
        copy_cache(path, out / "lean", selection=PartSelection(split="train"))
        copy_cache(path, out / "parts", selection=PartSelection(parts=Bounds(first=1, end=5)))
        subset(str(path), str(out / "split"), DocumentSelection(split="validation"))
        subset(str(path), str(out / "some"), DocumentSelection(parts=Bounds(first=0, end=2)))
        merge([str(path), str(other)], str(out / "both"))
        requantize(str(path), str(out / "poorer"), RequantizeSpec(tau=0.2))
    counts = {name: _counts(out / name) for name in ("lean", "parts", "split", "some", "both", "poorer")}
    assert counts == {
        "lean": {"train": 3},
        "parts": {"train": None, "validation": 1},
        "split": {"validation": 1},
        "some": {"train": None},
        "both": {"train": None, "validation": 1},
        "poorer": {"train": 3, "validation": 1},
    }


def _counts(path: Path) -> dict[str, int | None]:
    splits = json.loads((path / layout.MANIFEST).read_bytes())["plan"]["splits"]
    assert all(split.get("duplicates", 0) is not None for split in splits)
    return {split["name"]: split.get("duplicates") for split in splits}
