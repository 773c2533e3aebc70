"""Subsets: exactly the documents that every condition holds for, each with all its rows."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.reshape import rebuild as making
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.reshape.subset import subset
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Origin
from kdpipe.schemas.reshape import Bounds, DocumentSelection
from support.kinds import KINDS, make_kind
from support.reshaped import digest, documents_in, make_other_kind, of_document, of_rows, problems_in
from support.synthetic import synthetic_tables
from support.tiny import SMALL, digests_of, make_cache, manifest_of, part_of

FAST = ("parts", "documents", "string")
MEASURES = ("teacher-entropy", "likelihood", "confident-wrong")


@dataclass(kw_only=True)
class Document:
    """A document as a reader returns it: its position, its pieces, and the targets of each trained position."""

    split: str
    part: int
    number: int
    columns: dict[str, Any]
    pieces: list[bytes] = field(default_factory=list)
    positions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, by: str) -> float:
        """The plain mean, NaN without positions."""
        values = self.positions[by]
        return sum(values) / len(values) if values else math.nan


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three parts of train and one of validation, four documents each."""
    path = tmp_path_factory.mktemp("source") / "cache"
    make_cache(path)
    return path


def listed(path: Path) -> list[Document]:
    """Every document, from what the reader gives alone."""
    cache = open_cache(path)
    found: dict[tuple[str, int], Document] = {}
    for i in range(len(cache)):
        part, _ = cache.locate(i)
        rows = cache[i]
        ends = [*rows.document_starts[1:].tolist(), len(rows)]
        for n, (first, end) in enumerate(zip(rows.document_starts.tolist(), ends, strict=True)):
            key = part.record.split, int(rows.documents[n])
            columns = {name: values[n] for name, values in cache.columns(i).items()}
            document = found.setdefault(key, Document(split=key[0], part=part.number, number=key[1], columns=columns))
            document.pieces.append(digest({**of_rows(rows, first, end), **of_document(cache, i, n, first, end)}))
            starts = np.concatenate([[0], np.cumsum(rows.count)])
            for t in range(first, end):
                if rows.loss_mask[t]:
                    top = starts[t]
                    is_wrong = rows.tokens[t + 1] != rows.ids[top]
                    document.positions["teacher-entropy"].append(float(rows.entropy[t]))
                    document.positions["likelihood"].append(float(rows.label_logprob[t]))
                    p = math.exp(float(rows.logprobs[top]))
                    document.positions["confident-wrong"].append(p if is_wrong else 0.0)
    return list(found.values())


def pieces_of(documents: list[Document]) -> Counter[bytes]:
    return Counter(piece for document in documents for piece in document.pieces)


def take(source: Path, out: Path, **requested: Any) -> Any:
    return subset(str(source), str(out), DocumentSelection(**requested))


CONDITIONS: dict[str, tuple[dict[str, Any], Callable[[Document], bool]]] = {
    "split": ({"split": "train"}, lambda d: d.split == "train"),
    "parts": ({"parts": Bounds(first=1, end=3)}, lambda d: d.part in (1, 2)),
    "parts to the end": ({"parts": Bounds(first=2)}, lambda d: d.part >= 2),
    "documents": (
        {"split": "train", "documents": Bounds(first=3, end=9)},
        lambda d: d.split == "train" and 3 <= d.number < 9,
    ),
    "string": ({"where": (("language", "en"),)}, lambda d: d.columns["language"] == "en"),
    "bool": ({"where": (("is_code", "false"),)}, lambda d: d.columns["is_code"] is False),
    "two": (
        {"where": (("language", "en"), ("is_code", "false")), "split": "train"},
        lambda d: d.columns["language"] == "en" and not d.columns["is_code"] and d.split == "train",
    ),
}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONDITIONS])
def test_a_subset_has_exactly_the_documents_that_were_requested(name: str, source: Path, tmp_path: Path) -> None:
    requested, holds = CONDITIONS[name]
    documents = listed(source)
    report = take(source, tmp_path / "new", **requested)
    wanted = [document for document in documents if holds(document)]
    assert 0 < len(wanted) < len(documents)
    assert documents_in(tmp_path / "new") == pieces_of(wanted)
    assert problems_in(tmp_path / "new") == []
    assert (report.documents, report.left_out) == (len(wanted), len(documents) - len(wanted))
    assert [document.number for document in listed(tmp_path / "new") if document.split == "train"] == list(
        range(sum(document.split == "train" for document in wanted))
    )


def test_a_number_in_a_column_is_compared_as_a_number(source: Path, tmp_path: Path) -> None:
    documents = listed(source)
    year, quality = documents[0].columns["year"], next(d.columns["quality"] for d in documents if d.columns["quality"])
    take(source, tmp_path / "year", where=(("year", f"0{year}"),))
    assert documents_in(tmp_path / "year") == pieces_of([d for d in documents if d.columns["year"] == year])
    take(source, tmp_path / "quality", where=(("quality", f"{quality}0"),))
    assert documents_in(tmp_path / "quality") == pieces_of([d for d in documents if d.columns["quality"] == quality])


@pytest.mark.parametrize(
    "by", [by if by == "confident-wrong" else pytest.param(by, marks=pytest.mark.slow) for by in MEASURES]
)
def test_a_share_is_the_lowest_or_the_highest_of_the_measure(by: str, source: Path, tmp_path: Path) -> None:
    documents = [d for d in listed(source) if d.split == "train" and not math.isnan(d.measure(by))]
    ranked = sorted(documents, key=lambda d: d.measure(by))
    n = math.ceil(0.3 * len(ranked))
    take(source, tmp_path / "low", split="train", by=by, lowest=0.3)
    assert documents_in(tmp_path / "low") == pieces_of(ranked[:n])
    take(source, tmp_path / "high", split="train", by=by, highest=0.3)
    assert documents_in(tmp_path / "high") == pieces_of(ranked[-n:])


@pytest.mark.parametrize(
    "by", [by if by == "confident-wrong" else pytest.param(by, marks=pytest.mark.slow) for by in MEASURES]
)
def test_bounds_hold_at_their_values(by: str, source: Path, tmp_path: Path) -> None:
    documents = [d for d in listed(source) if not math.isnan(d.measure(by))]
    ranked = sorted(documents, key=lambda d: d.measure(by))
    low, high = (
        (ranked[2].measure(by) + ranked[3].measure(by)) / 2,
        (ranked[-3].measure(by) + ranked[-2].measure(by)) / 2,
    )
    take(source, tmp_path / "new", by=by, at_least=low, at_most=high)
    assert documents_in(tmp_path / "new") == pieces_of(ranked[3:-2])


def test_every_position_counts_the_same_in_the_mean_of_a_document_in_pieces(tmp_path: Path) -> None:
    """Four documents become two pieces of the first, and two others."""
    numbers = iter([0, 0, 1, 2])
    plan = CachePlan(splits=(SplitPlan(name="train", bounds=(0, 3)),), sequence_length=64)
    writer = create_cache(tmp_path / "a", with_changes(manifest_of(), plan=plan))
    writer.publish_tables(synthetic_tables(SMALL))
    with writer.part(0) as part:
        for sequence, block in part_of(SMALL, 0):
            own = np.array([next(numbers) for _ in sequence.documents])
            part.add(replace(sequence, documents=own), block)
    writer.seal()
    documents = listed(tmp_path / "a")
    assert [len(document.pieces) for document in documents] == [2, 1, 1]
    for by in MEASURES:
        ranked = sorted(documents, key=lambda d: d.measure(by))
        report = take(tmp_path / "a", tmp_path / by, by=by, lowest=0.4)
        assert documents_in(tmp_path / by) == pieces_of(ranked[:2])
        assert report.documents == 2
        assert problems_in(tmp_path / by) == []


def test_whole_parts_keep_their_bytes_and_others_are_packed_again(source: Path, tmp_path: Path) -> None:
    before = digests_of(source)
    report = take(source, tmp_path / "new", split="train", documents=Bounds(first=2, end=8))
    assert (report.adopted, report.rewritten) == (1, 1)
    new, old = open_cache(tmp_path / "new"), open_cache(source)
    assert new.part(1).record.files == old.part(1).record.files
    assert new.part(0).record.fidelity is None
    origin = new.manifest.history[-1]
    assert origin == Origin(action="subset", caches=(str(old.cache_id),), note="split train; documents 2:8")
    lengths = new.part(0).sequences.row_starts
    assert np.diff(lengths).max() <= SMALL.sequence_length
    kept = [i for i, d in enumerate(old.part(0).sequences.documents.tolist()) if d >= 2]
    assert len(lengths) - 1 <= len(kept)
    assert digests_of(source) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_halves_of_any_kind_are_the_whole_again(name: str, tmp_path: Path) -> None:
    make_other_kind(tmp_path / "a", name)
    half = {"documents": Bounds(end=2)}, {"documents": Bounds(first=2)}
    for which, requested in zip("bc", half, strict=True):
        take(tmp_path / "a", tmp_path / which, **requested)
        assert problems_in(tmp_path / which) == []
    merge([str(tmp_path / "b"), str(tmp_path / "c")], str(tmp_path / "d"))
    assert [origin.action for origin in open_cache(tmp_path / "d").manifest.history] == ["subset", "subset", "merge"]
    assert documents_in(tmp_path / "d") == documents_in(tmp_path / "a")


def test_a_killed_subset_resumes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = {"by": "likelihood", "highest": 0.5}
    take(source, tmp_path / "whole", **requested)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    rewrite = making._rewrite
    done: list[int] = []

    def second_dies(writer: Any, number: int, plan: Any) -> None:
        if done:
            die()
        done.append(number)
        rewrite(writer, number, plan)

    with monkeypatch.context() as dying:
        dying.setattr(making, "_rewrite", second_dies)
        with pytest.raises(KeyboardInterrupt):
            take(source, tmp_path / "new", **requested)
    assert take(source, tmp_path / "new", **requested).parts.made > 0
    assert digests_of(tmp_path / "new") == digests_of(tmp_path / "whole")


def test_another_selection_in_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    take(source, tmp_path / "new", split="train")
    with pytest.raises(ConfigError, match="holds another cache"):
        take(source, tmp_path / "new", split="validation")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no selection"),
    "no such document": ({"split": "train", "documents": Bounds(first=99)}, "nothing is left"),
    "documents of two splits": (
        {"documents": Bounds(end=3)},
        "--documents ",
    ),
    "column": ({"where": (("topic", "x"),)}, "--where topic=x: "),
    "type": ({"where": (("year", "old"),)}, "--where year=old: the column holds int64"),
    "truth": ({"where": (("is_code", "yes"),)}, "--where is_code=yes: the column holds bool"),
    "by alone": (
        {"by": "likelihood"},
        "--by ",
    ),
    "share alone": (
        {"lowest": 0.5},
        "--by ",
    ),
    "both shares": (
        {"by": "likelihood", "lowest": 0.5, "highest": 0.1},
        "--lowest, --highest and bounds",
    ),
    "share": ({"by": "likelihood", "lowest": 1.5}, "a share of 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_selection_that_means_nothing_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    requested, message = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        take(source, tmp_path / "new", **requested)
    assert refusal.value.message.startswith(message)
    assert refusal.value.hint
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "by", "message"),
    [
        ("state", "confident-wrong", "targets of kind state"),
        ("none", "likelihood", "label_logprob"),
        ("none", "teacher-entropy", "entropy"),
    ],
)
def test_a_measure_that_the_cache_cannot_tell_is_refused(name: str, by: str, message: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    with pytest.raises(ConfigError, match=f"--by {by} .*{message}"):
        take(tmp_path / "a", tmp_path / "new", by=by, lowest=0.5)


def test_a_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", replace(SMALL, documents={"train": 4}))
    with pytest.raises(ConfigError, match="split validation"):
        take(tmp_path / "a", tmp_path / "new", split="validation")
