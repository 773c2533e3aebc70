"""`import kdpipe`: what it loads, how it refuses wrong keywords, and both stages from Python.

New processes run in the repository root, where Python finds the folder kdpipe/ itself.
"""

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kdpipe
from kdpipe.cli import capture_options, train_options
from kdpipe.schemas.errors import ConfigError
from support.source import ROOT
from support.stage_one import make_inputs
from support.tiny import make_cache


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kdpipe_and_its_cache_loads_no_torch() -> None:
    code = "import sys, kdpipe, kdpipe.cache; kdpipe.open_cache, kdpipe.train; print('torch' in sys.modules)"
    assert output("-c", code).strip() == "False"


def test_the_module_is_the_command() -> None:
    assert "cache-teacher" in output("-m", "kdpipe", "--help")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"batchsize": 1}, "batch_size"),
        ({"learning_rate": 1}, "lr"),
        ({"optimizer": {"lrr": 1}}, "optimizer.lr"),
        ({"guard": "standrd"}, "standard"),
        ({"router_lr": 1}, None),
    ],
)
def test_a_wrong_keyword_is_refused_with_the_nearest_name(wrong: dict[str, Any], nearest: str | None) -> None:
    train: Any = kdpipe.train
    with pytest.raises(ConfigError) as caught:
        train(cache="c", student="tiny", out="o", **wrong)
    error = caught.value
    assert error.nearest == nearest and error.hint is not None
    assert str(error) == f"{error.message}\nhint: {error.hint}"


def test_flags_in_messages_are_keywords() -> None:
    with pytest.raises(ConfigError) as caught:
        kdpipe.train(student="tiny")
    assert "cache=DIR" in str(caught.value) and "--" not in str(caught.value)


def test_a_wrong_path_is_refused_with_the_cache_of_a_similar_name(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    with pytest.raises(ConfigError) as caught:
        kdpipe.open_cache(tmp_path / "cahce")
    assert caught.value.nearest == str(tmp_path / "cache")
    with pytest.raises(ConfigError) as caught:
        kdpipe.open_cache(tmp_path / "other")
    assert caught.value.nearest is None


@pytest.mark.parametrize("name", ["cache_teacher", "evaluate", "plan", "train"])
def test_help_and_tab_list_every_keyword(name: str) -> None:
    function = getattr(kdpipe, name)
    signature = inspect.signature(function)
    assert all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values())
    if name != "evaluate":
        page = pydoc.plain(pydoc.render_doc(function))
        flags = {"train": train_options.FLAGS}.get(name, capture_options.FLAGS)
        keywords = {"cache" if f.name == "--from-cache" else f.name[2:].replace("-", "_") for f in flags}
        assert keywords <= set(signature.parameters)
        assert all(f"\n        {keyword} " in page for keyword in keywords)
        assert "--" not in page


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
    options: Any = {"cache": cache, "student": "tiny", "batch_size": 2, "threads": 1, "progress": False}
    run = kdpipe.train(**options, out=tmp_path / "run", max_steps=2, evaluation={"every": 1})
    other = kdpipe.train(**options, out=tmp_path / "other", max_steps=2, mode="output")
    assert run.report is not None and run.report.steps == 2
    frame = run.metrics().to_pandas()
    assert run.metrics()[0]["step"] == 1
    assert frame["step"].max() == 2 and {"loss", "terms.ce.raw"} <= set(frame.columns)
    assert run.model().num_parameters() == run.report.n_parameters
    assert len(run.tokenizer()) == cache.manifest.vocabulary_size
    report = kdpipe.evaluate(cache=cache, student=run, batch_size=2, devices="cpu", progress=False)
    assert report.positions > 0 and report.kl_teacher is not None
    assert len(kdpipe.compare(run, other).runs) == 2
    assert "n_parameters" in run._repr_html_() and "<table" in run.metrics()._repr_html_()
    assert all(
        "<table>" in shown._repr_html_() and len(repr(shown)) < 200 for shown in (plan, report, cache, run.report)
    )
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
    assert len(capsys.readouterr().out.splitlines()) == 4
