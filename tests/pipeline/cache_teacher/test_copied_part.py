"""A part that is a copy of another is found at the deepest level; documents that the data have twice are not."""

import json
import shutil
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from support.corpora import TEXTS, write_jsonl
from support.damage import copy_part
from support.stage_one import make_inputs, run, settings_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of several parts whose data have every document twice."""
    folder = tmp_path_factory.mktemp("copied")
    make_inputs(folder)
    write_jsonl(folder / "corpus.jsonl", [{"text": text, "category": "even"} for text in TEXTS[:12] * 2])
    run(settings_for(folder, sequences={"part_rows": 1024}, data={"val_fraction": 0}))
    return folder


@pytest.mark.parametrize("kind", ["threshold", "sampled"])
def test_documents_that_the_data_have_twice_are_no_problem(folder: Path, tmp_path: Path, kind: str) -> None:
    settings = settings_for(folder, targets={"kind": kind}, sequences={"part_rows": 1024}, data={"val_fraction": 0})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    cache = open_cache(tmp_path / "cache")
    digests = [digest for i in range(len(cache)) for digest in cache.digests(i)]
    assert len(set(digests)) < len(digests) and len(cache.parts) > 2
    report = verify_cache(tmp_path / "cache", "deep")
    (note,) = report.notes
    assert (report.problems, note.part, note.file) == ((), None, "parts")
    assert "train: 12 documents are duplicates of an earlier one (12 in the data): document 12 is" in note.what


@pytest.mark.parametrize("kind", ["topk", "none"])
def test_a_copied_part_is_named_where_no_draws_tell(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS[:24]])
    settings = settings_for(
        folder,
        targets={"kind": kind},
        sequences={"part_rows": 1024},
        data={"path": str(path), "val_fraction": 0},
        teacher={"name": None, "tokenizer": str(folder / "teacher")} if kind == "none" else {},
    )
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    plan = open_cache(tmp_path / "cache").manifest.plan
    assert plan.splits[0].duplicates == 0 and plan.n_parts >= 4
    source, target = next((a, a + 1) for a in range(3) if plan.part(a).n_documents <= plan.part(a + 1).n_documents)
    copy_part(tmp_path / "cache", source, target)
    assert verify_cache(tmp_path / "cache", "full").ok
    assert main.run(["cache", "verify", str(tmp_path / "cache"), "--level", "deep", "--json"]) == 3
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.keys() == {"part", "file", "what", "do"} and problem["part"] == target
    n = plan.part(source).n_documents
    assert f"{n} documents are duplicates of an earlier one, 0 in the data: {n} of part {target};" in problem["what"]


def test_a_part_that_is_a_copy_of_another_is_a_problem(folder: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(folder / "cache", forged)
    plan = open_cache(forged).manifest.plan
    numbers = [(a, b) for b in range(plan.n_parts) for a in range(b)]
    source, target = next((a, b) for a, b in numbers if plan.part(a).n_documents <= plan.part(b).n_documents)
    copy_part(forged, source, target)
    assert verify_cache(forged, "full").ok
    problems = verify_cache(forged, "deep").problems
    assert [problem.part for problem in problems] == [target]
    assert (
        "documents are copies of others, draws included" in problems[0].what and f"in part {source}" in problems[0].what
    )
