"""`import kdpipe`: what it loads, and how it refuses wrong keywords.

Run in a new process in the repository root, where Python finds the folder kdpipe/ itself.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdpipe
from support.source import ROOT
from support.stage_one import make_inputs


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kdpipe_and_its_cache_loads_no_torch() -> None:
    code = "import sys, kdpipe, kdpipe.cache; kdpipe.open_cache, kdpipe.train; print('torch' in sys.modules)"
    assert output("-c", code).strip() == "False"


def test_the_module_is_the_command() -> None:
    assert "cache-teacher" in output("-m", "kdpipe", "--help")


def test_a_wrong_keyword_is_refused_with_the_right_name() -> None:
    code = """
import kdpipe
from kdpipe.schemas.errors import ConfigError
for wrong in ({"learning_rate": 1}, {"batchsize": 1}, {"optimizer": {"lrr": 1}}):
    try:
        kdpipe.train(cache="c", student="tiny", out="o", **wrong)
    except ConfigError as error:
        print(error)
"""
    peer, near, nested = output("-c", code).splitlines()
    assert "optimizer.lr" in peer
    assert "'batch_size'" in near
    assert "'optimizer.lr'" in nested


def test_a_missing_name_is_an_attribute_error() -> None:
    assert output("-c", "import kdpipe; print(hasattr(kdpipe, 'nothing'), 'plan' in dir(kdpipe))").split() == [
        "False",
        "True",
    ]


@pytest.mark.slow
def test_both_stages_run_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_inputs(tmp_path)
    teacher, data = tmp_path / "teacher", tmp_path / "corpus.jsonl"
    plan = kdpipe.plan(teacher=teacher, data=data, seq_len=96, devices="cpu", progress=False)
    assert plan.bytes > 0
    cache = kdpipe.cache_teacher(
        teacher=teacher, data=data, out=tmp_path / "cache", seq_len=96, devices="cpu",
        val_fraction=0.3, progress=False,
    )  # fmt: skip
    assert cache.n_positions > 0 and cache.cache_id is not None
    options = {"cache": tmp_path / "cache", "student": "tiny", "batch_size": 2, "threads": 1, "progress": False}
    run = kdpipe.train(**options, out=tmp_path / "run", max_steps=2, evaluation={"every": 1})
    other = kdpipe.train(**options, out=tmp_path / "other", max_steps=2, mode="output")
    assert run.report is not None and run.report.steps == 2
    frame = run.metrics()
    assert frame["step"].max() == 2 and {"loss", "evaluation"} <= set(frame.columns)
    assert run.model().num_parameters() == run.report.n_parameters
    assert len(run.tokenizer()) == cache.manifest.vocabulary_size
    report = kdpipe.evaluate(cache=tmp_path / "cache", student=run, batch_size=2, progress=False)
    assert report.positions > 0 and report.kl_teacher is not None
    assert len(kdpipe.compare(run, other).runs) == 2
    assert "parameters" in run._repr_html_()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDPIPE_MACHINE__THREADS", "1")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/python.md", "exec"), {"__name__": "example"})
    assert len(capsys.readouterr().out.splitlines()) == 3
