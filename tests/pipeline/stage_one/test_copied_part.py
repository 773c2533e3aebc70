"""A part that is a copy of another is found at the deepest level; documents that the data have twice are not."""

import shutil
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.reader import open_cache
from kdpipe.cache.verify import verify_cache
from support.corpora import TEXTS, write_jsonl
from support.damage import edit_json, reseal
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
    settings = settings_for(folder, targets={"kind": kind}, sequences={"part_rows": 1024})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    cache = open_cache(tmp_path / "cache")
    digests = [digest for i in range(len(cache)) for digest in cache.digests(i)]
    assert len(set(digests)) < len(digests) and len(cache.parts) > 2
    assert verify_cache(tmp_path / "cache", "deep").ok


def test_a_part_that_is_a_copy_of_another_is_a_problem(folder: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(folder / "cache", forged)
    plan = open_cache(forged).manifest.plan
    numbers = [(a, b) for b in range(plan.n_parts) for a in range(b)]
    source, target = next((a, b) for a, b in numbers if plan.part(a).n_documents <= plan.part(b).n_documents)
    shutil.rmtree(forged / layout.part_dir(target))
    shutil.copytree(forged / layout.part_dir(source), forged / layout.part_dir(target))
    own = plan.part(target).model_dump()
    own["part"] = own.pop("number")
    edit_json(forged / layout.part_dir(target) / layout.PART_RECORD, lambda record: record.update(own))
    reseal(forged)
    assert verify_cache(forged, "full").ok
    problems = verify_cache(forged, "deep").problems
    assert [problem.part for problem in problems] == [target]
    assert (
        "documents are copies of others, draws included" in problems[0].what and f"in part {source}" in problems[0].what
    )
