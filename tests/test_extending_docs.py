"""docs/extending.md: its code blocks are files and table entries, and each new member works through its table."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from kdpipe.cache.format import codecs
from kdpipe.cache.opening import open_cache
from kdpipe.cache.stores import dispatch
from kdpipe.pipeline import interop
from kdpipe.pipeline.interop.source_files import source_files
from kdpipe.pipeline.losses.terms import LossOptions
from kdpipe.pipeline.training import trackers
from kdpipe.schemas import losses, member_tables
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.interop import ImportSettings
from kdpipe.schemas.targets import TargetSpec
from support import tiny
from support.loss_twins import Asked, largest_ids, merged, softmax, student_logits, targets, world
from support.losses import ours
from support.recording import RecordingProgress
from support.reducing import reduce_rows
from support.source import ROOT
from support.stage_one import make_inputs, run, settings_for

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds the member of a heading: its file to the path, its entry to the table."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(heading: str, table: MutableMapping[str, Any]) -> None:
        section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
        names: dict[str, Any] = vars(losses) | vars(dispatch) | vars(member_tables)
        for block in blocks:
            if file := re.match(r"# (\w+)\.py\n", block):
                (tmp_path / f"{file[1]}.py").write_text(block)
                exec(f"from {file[1]} import *", names)
            else:
                name, entry = re.fullmatch(r'\w+\["(\w+)"\] = (.+)\n', block, re.S).groups()  # type: ignore[union-attr]
                monkeypatch.setitem(table, name, eval(entry, names))

    return add


def test_a_loss_is_added_through_the_table(member: Any) -> None:
    member("A loss", cast("MutableMapping[str, Any]", losses.LOGIT_LOSSES))
    w = world(seed=5)
    exact = largest_ids(w, [3] * len(w.labels_N))
    term = Asked(name="hellinger", coefficient=0.5, temperature=1.0, exact=exact)
    _, result = ours(
        w, [term], targets(w, exact, draws=0), dtype=torch.float64, loss_options=LossOptions(tail_weight=0.0)
    )
    p = merged(softmax(w.teacher_NV), exact)
    q = merged(softmax(student_logits(w, w.states_NH, w.weight_VH, w.bias_V)), exact)
    expected = (p.sqrt() - q.sqrt()).square().sum() / 2
    assert result.total == pytest.approx(0.5 * float(expected), rel=1e-5)


def test_a_teacher_backend_is_added_through_the_table(member: Any, tmp_path: Path) -> None:
    member("A teacher backend", member_tables.TEACHER_BACKENDS)
    make_inputs(tmp_path, n_documents=6)
    settings = settings_for(tmp_path, targets={"kind": "topk", "top_k": 5})
    backend = settings.teacher.model_copy(update={"backend": "uniform"})
    report = run(settings.model_copy(update={"teacher": backend}))
    cache = open_cache(tmp_path / "cache")
    assert report.complete and cache.manifest.teacher is not None and cache.manifest.teacher.name == "uniform"
    size = cache.manifest.tokenizer.vocabulary_size
    np.testing.assert_allclose(cache[0].logprobs, -np.log(size), atol=1 / 16)


def test_a_target_kind_is_added_through_the_table(member: Any) -> None:
    member("A target kind", member_tables.TARGET_KINDS)
    minp = import_module("my_kind").MinP(share=0.25)
    spec = TargetSpec.model_construct(keep=minp, target_temperature=1.0)
    rows = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02]]))
    reduced = reduce_rows(spec, rows, torch.tensor([1, 0]))
    assert reduced.n_exact_R.tolist() == [3, 1]
    assert reduced.ids_RK[0, :3].tolist() == [0, 1, 2]


NEW_KIND = """
import sys
from kdpipe.schemas.member_tables import TARGET_KINDS, TargetKindRow
{row}
from kdpipe.cli.main import run
sys.exit(max(run(line.split()) for line in {lines!r}))
"""


@pytest.mark.slow
def test_a_new_target_kind_is_planned_cached_verified_and_trained_from(member: Any, tmp_path: Path) -> None:
    member("A target kind", member_tables.TARGET_KINDS)
    make_inputs(tmp_path, n_documents=12)
    inputs = "--teacher teacher --data corpus.jsonl --seq-len 64 --targets minp --set targets.max_entries=7"
    lines = [
        f"plan {inputs}",
        f"cache-teacher {inputs} --out cache",
        "cache inspect cache",
        "cache verify cache --level full --against teacher --sample 2",
        "train --from-cache cache --student tiny --max-steps 2 --batch-size 2 --out run",
    ]
    row = re.search(r"^TARGET_KINDS.*$", PAGE, re.M)
    assert row is not None
    program = NEW_KIND.format(row=row[0], lines=lines)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert ended.returncode == 0
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_bytes())
    assert manifest["targets"]["keep"] == {"kind": "minp", "max_entries": 7, "share": 0.1}


def test_a_codec_is_added_through_the_table(member: Any) -> None:
    member("An array codec", cast("MutableMapping[str, Any]", codecs.CODECS))
    codec = codecs.CODECS["deflate"](level=6)  # type: ignore[index]
    values = np.arange(500, dtype=np.uint32) % 7
    into = np.empty_like(values)
    codec.decode(codec.encode(values), into)
    np.testing.assert_array_equal(into, values)
    for data in (codec.encode(values)[:-3], codec.encode(values[:-1]), b"nonsense"):
        with pytest.raises(CacheDamaged):
            codec.decode(data, into)


def test_an_import_format_is_added_through_the_table(member: Any, tmp_path: Path) -> None:
    member("An import format", cast("MutableMapping[str, Any]", interop.FORMATS))
    row = {"tokens": [3, 4, 5], "ids": [[4, 1], [5], []], "logprobs": [[-0.5, -1.0], [-0.25], []]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    settings = ImportSettings.model_construct(source_format="pairs")  # type: ignore[arg-type]
    source = interop.open_format(settings, source_files(str(tmp_path / "rows.jsonl"), None, 1 << 20))
    read = source.read(row)
    assert read.trained.tolist() == [True, True, False]
    assert read.ids.counts.tolist() == [2, 1, 0]


def test_a_tracker_is_added_through_the_table(member: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    member("A tracker", cast("MutableMapping[str, Any]", trackers.TRACKERS))
    run = trackers.TrackedRun(name="a", folder=tmp_path, config={}, step=2)
    progress = RecordingProgress()
    opened = trackers.Trackers(["my_tracker"], run, progress)
    opened.write({"step": 3, "loss": 1.5})
    opened.finish()
    assert capsys.readouterr().out.splitlines() == ["run a from step 2", "3 1.5", "finished"]
    assert not progress.warnings and progress.messages[-1].endswith("view: this terminal")


def test_a_store_is_added_through_the_table(member: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member("A store", cast("MutableMapping[str, Any]", dispatch.STORES))
    monkeypatch.setitem(sys.modules, "kdpipe.cache.stores.my_store", import_module("my_store"))
    with tiny.unsynced():
        tiny.make_cache(tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "cache.zip", "w") as archive:
        for name in tiny.files_of(tmp_path / "cache"):
            archive.write(tmp_path / "cache" / name, name)
    store = dispatch.open_store(f"archive://{tmp_path}/cache.zip")
    manifest = (tmp_path / "cache" / "manifest.json").read_bytes()
    assert store.read("manifest.json", len(manifest)) == bytes(store.view("manifest.json", len(manifest))) == manifest
    assert "manifest.json" in store.names("") and store.size("none.json") is None
    assert set(store.walk("parts")) == {name for name in tiny.files_of(tmp_path / "cache") if name.startswith("parts/")}
