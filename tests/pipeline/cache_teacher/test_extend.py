"""A cache extended: the old parts as they were, the new documents behind them, and the old cache untouched."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.capture import extension
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Origin
from support.corpora import TEXTS, write_jsonl
from support.damage import edit_json, reseal
from support.reshaped import documents_in, problems_in
from support.stage_one import RecordingProgress, make_inputs, run, settings_for
from support.tiny import digests_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, `old` made of the first 12 documents, and more.jsonl with the last 4 of these and 8 others."""
    path = tmp_path_factory.mktemp("extend")
    make_inputs(path, 12)
    rows = [{"text": text, "category": "odd" if i % 2 else "even"} for i, text in enumerate(TEXTS[:20])]
    write_jsonl(path / "more.jsonl", rows[8:])
    run(settings_for(path, "old"))
    return path


def more(folder: Path, out: Path, **changes: Any) -> Any:
    """The settings that extend `old`."""
    changes["data"] = {"path": str(folder / "more.jsonl"), **changes.get("data", {})}
    made = settings_for(folder, **changes)
    return made.model_copy(update={"out": str(out), "extend": str(folder / "old")})


def state_of(path: Path) -> dict[str, tuple[float, int]]:
    """When every file was last changed, and its size."""
    return {str(p.relative_to(path)): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


@pytest.mark.slow
def test_the_new_cache_has_the_old_parts_and_the_new_documents(folder: Path, tmp_path: Path) -> None:
    before, bytes_before = state_of(folder / "old"), digests_of(folder / "old")
    progress = RecordingProgress()
    report = run(more(folder, tmp_path / "new"), progress)
    assert report.complete
    assert report.known_documents == 4
    assert any(line.startswith("4 documents skipped") for line in progress.messages)
    assert (state_of(folder / "old"), digests_of(folder / "old")) == (before, bytes_before)
    assert problems_in(tmp_path / "new") == []
    old, new = open_cache(folder / "old"), open_cache(tmp_path / "new")
    splits = new.manifest.plan.splits
    assert [(s.name, s.bounds[:2]) for s in splits] == [(s.name, s.bounds[:2]) for s in old.manifest.plan.splits]
    assert all(split.duplicates is not None for split in old.manifest.plan.splits)
    # Of a new document that is known in part only the rest is there, which another's may equal.
    assert all(split.duplicates is None for split in splits)
    assert [split.bounds[-1] for split in splits] == [
        b.bounds[-1] + n for b, n in zip(old.manifest.plan.splits, more_documents(folder), strict=True)
    ]
    there = documents_in(folder / "old")
    assert documents_in(tmp_path / "new") & there == there
    assert sum(len(set(numbers_in(tmp_path / "new", s.name))) for s in splits) == 12 + 8
    assert new.part(0).record.files == old.part(0).record.files
    assert new.manifest.history == (Origin(action="extend", caches=(str(old.cache_id),)),)
    assert new.manifest.data.source == "corpus.jsonl + more.jsonl"
    assert new.table("ids_by_rank").tolist() == old.table("ids_by_rank").tolist()


def more_documents(folder: Path) -> list[int]:
    """How many documents of each split the new data have, by themselves."""
    from kdpipe.pipeline.capture.inputs import read_inputs

    splits = read_inputs(more(folder, folder / "unused"), RecordingProgress()).corpus.splits
    return [splits["train"], splits["validation"]]


def numbers_in(path: Path, split: Any) -> list[int]:
    """The numbers of the documents of a split that have rows."""
    cache = open_cache(path, split)
    return [number for rows in cache for number in rows.documents.tolist()]


def printed_in(path: Path) -> dict[bytes, Any]:
    """Log p of the next token at every row, by the digest of the segment."""
    cache, found = open_cache(path), {}
    for i in range(len(cache)):
        rows = cache[i]
        segments = np.split(rows.label_logprob, rows.document_starts[1:])
        found |= dict(zip(cache.digests(i), segments, strict=True))
    return found


@pytest.mark.slow
def test_an_older_cache_that_is_extended_states_the_hidden_size(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "old", tmp_path / "old")
    edit_json(tmp_path / "old" / layout.MANIFEST, lambda manifest: manifest["teacher"].pop("hidden_size"))
    reseal(tmp_path / "old")
    assert problems_in(tmp_path / "old") == []
    run(more(folder, tmp_path / "new").model_copy(update={"extend": str(tmp_path / "old")}))
    teacher = open_cache(tmp_path / "new").manifest.teacher
    assert teacher is not None and teacher.hidden_size == 64
    assert problems_in(tmp_path / "new") == []


@pytest.mark.slow
def test_predictions_for_new_documents_are_those_of_a_cache_of_their_own(folder: Path, tmp_path: Path) -> None:
    topk = {"targets": {"kind": "topk", "top_k": 5}}
    run(settings_for(folder, str(tmp_path / "old"), **topk))
    changed = more(folder, tmp_path / "new", **topk).model_copy(update={"extend": str(tmp_path / "old")})
    run(changed)
    run(changed.model_copy(update={"out": str(tmp_path / "alone"), "extend": None}))
    alone, both = printed_in(tmp_path / "alone"), printed_in(tmp_path / "new")
    assert both.keys() == printed_in(tmp_path / "old").keys() | alone.keys()
    for digest, logprobs in alone.items():
        assert np.allclose(both[digest], logprobs, atol=1 / 64, equal_nan=True)


@pytest.mark.slow
def test_a_killed_extension_resumes_and_requests_no_old_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(more(folder, tmp_path / "whole"))
    adopt = extension.adopt_part
    taken: list[int] = []

    def second_dies(writer: Any, number: int, *rest: Any) -> bool:
        if taken:
            raise KeyboardInterrupt
        taken.append(number)
        return adopt(writer, number, *rest)

    with monkeypatch.context() as dying:
        dying.setattr(extension, "adopt_part", second_dies)
        with pytest.raises(KeyboardInterrupt):
            run(more(folder, tmp_path / "new"))
    report = run(more(folder, tmp_path / "new"))
    whole, new = digests_of(tmp_path / "whole"), digests_of(tmp_path / "new")
    assert {n: d for n, d in new.items() if "journal" not in n} == {
        n: d for n, d in whole.items() if "journal" not in n
    }
    assert report.parts.made == report.parts.planned - len(open_cache(folder / "old").parts)
    assert run(more(folder, tmp_path / "new")).parts.made == 0


@pytest.mark.slow
def test_documents_that_are_all_known_leave_parts_without_rows(folder: Path, tmp_path: Path) -> None:
    same = more(folder, tmp_path / "new", data={"path": str(folder / "corpus.jsonl")})
    report = run(same)
    assert (report.complete, report.known_documents) == (True, 12)
    assert documents_in(tmp_path / "new") == documents_in(folder / "old")
    assert problems_in(tmp_path / "new") == []


def test_a_dry_run_leaves_nothing_and_reports_the_planned_parts(folder: Path, tmp_path: Path) -> None:
    report = run(more(folder, tmp_path / "new"), dry_run=True)
    assert report.parts.planned == len(open_cache(folder / "old").parts) + 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": {"tau": 0.1}}, "cannot be in one cache: --tau: 0.04 and 0.1"),
        ({"sequences": {"length": 64}}, "cannot be in one cache: --seq-len: 96 and 64"),
        ({"hidden": {"pooled": False}}, "cannot be in one cache: layers pooled over documents: "),
    ],
)
def test_another_spec_is_refused_with_what_differs(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(Incompatible) as refusal:
        run(more(folder, tmp_path / "new", **changes))
    assert refusal.value.message.startswith(f"{folder / 'old'} and the new documents {message}")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_into_the_cache_that_is_extended(folder: Path) -> None:
    with pytest.raises(ConfigError, match="inside the source"):
        run(more(folder, folder / "old"))


def test_a_folder_that_is_no_cache_is_not_extended(folder: Path, tmp_path: Path) -> None:
    settings = more(folder, tmp_path / "new").model_copy(update={"extend": str(folder / "teacher")})
    with pytest.raises(ConfigError, match=r"has no manifest.json"):
        run(settings)


@pytest.mark.slow
def test_a_worker_takes_its_own_share_of_the_old_parts_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = extension.adopt_part
    taken: list[int] = []

    def noted(writer: Any, number: int, *rest: Any) -> bool:
        taken.append(number)
        return adopt(writer, number, *rest)

    monkeypatch.setattr(extension, "adopt_part", noted)
    run(more(folder, tmp_path / "new"), shard=1, n_shards=2)
    assert taken == [0, 2]
    taken.clear()
    run(more(folder, tmp_path / "two"), shard=2, n_shards=3)
    assert taken == [2, 0]


@pytest.mark.slow
def test_two_shards_make_the_same_extension_as_one(folder: Path, tmp_path: Path) -> None:
    run(more(folder, tmp_path / "one"))
    run(more(folder, tmp_path / "two"), shard=1, n_shards=2)
    run(more(folder, tmp_path / "two"), shard=0, n_shards=2)
    one, two = digests_of(tmp_path / "one"), digests_of(tmp_path / "two")
    assert {n: d for n, d in one.items() if "journal" not in n} == {n: d for n, d in two.items() if "journal" not in n}
