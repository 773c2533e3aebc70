"""Tasks through the real lm-eval, on a local file; without the library its install line is shown."""

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from kdpipe.cli import console
from kdpipe.pipeline.evaluation.tasks import check_tasks, run_tasks
from kdpipe.schemas.errors import ConfigError, KdpipeError
from support.corpora import small_tokenizer
from support.lm_task import local_task
from support.models import tiny_llama


def test_without_the_library_its_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs lm-eval, which is not installed") as caught:
        check_tasks(["hellaswag"])
    assert caught.value.hint == "pip install 'kdpipe[eval]'"


def test_a_missing_task_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml"):
        check_tasks([str(tmp_path / "mine.yaml")])


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="hellaswagg") as caught:
        check_tasks(["hellaswagg"])
    assert "did you mean hellaswag" in str(caught.value.hint)
    with pytest.raises(ConfigError) as caught:
        check_tasks(["qqqqqqqqqqqqq"])
    assert caught.value.hint == "`lm-eval ls tasks` lists them"
    check_tasks(["hellaswag"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["humaneval", "humaneval_instruct", "mbpp_plus", "cruxeval_input_08", "longproc"])
def test_a_task_that_executes_code_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match=rf"--tasks {task}.* executes code") as caught:
        check_tasks(["hellaswag", task])
    assert caught.value.exit_code == 2
    assert task in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "unsafe_code: true",
        "include: base.yaml",
        "metric_list: [{metric: code_eval}]",
        "process_docs: !function missing.function\nunsafe_code: true",
    ],
)
def test_a_task_file_that_executes_code_is_refused(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"task: mine\n{lines}\n", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("unsafe_code: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--tasks .*mine.yaml \(mine\) executes code"):
        check_tasks([str(path)])


@pytest.mark.slow
def test_a_task_file_with_invalid_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml cannot be read") as caught:
        check_tasks([str(path)])
    assert caught.value.exit_code == 2


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Any]:
    folder = small_tokenizer(tiny_llama(tmp_path / "model"))
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.slow
def test_a_local_task_has_the_accuracy_of_the_model(
    tmp_path: Path,
    model: tuple[Any, Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    console.set_up(debug=False)
    path, questions = local_task(tmp_path / "task", "mine")
    check_tasks([str(path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        result = run_tasks(*model, [str(path)], limit=None, batch_size=2)
    hits = [surest(*model, one["question"], one["choices"]) == one["gold"] for one in questions]
    assert result["mine"]["acc"] == pytest.approx(sum(hits) / len(hits))
    assert "acc_stderr" in result["mine"]
    assert capfd.readouterr().out == ""
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]
    assert "lm_eval" in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_tasks(*model, [str(path)], limit=1, batch_size=2)["mine"]["acc"] in (0.0, 1.0)


def surest(model: Any, tokenizer: Any, question: str, choices: list[str]) -> int:
    """The choice of the highest log-probability behind a question."""
    scores = []
    for choice in choices:
        before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (question, f"{question} {choice}"))
        n = before.shape[1]
        logq = model(whole).logits[0].detach().log_softmax(-1)
        scores.append(float(sum(logq[t - 1, whole[0, t]] for t in range(n, whole.shape[1]))))
    return scores.index(max(scores))


@pytest.mark.slow
def test_a_task_that_fails_is_named(tmp_path: Path, model: tuple[Any, Any]) -> None:
    path, _ = local_task(tmp_path / "task", "mine")
    (path.parent / "data.jsonl").unlink()
    with warnings.catch_warnings(), pytest.raises(KdpipeError, match=r"lm-eval could not run .*mine.yaml") as caught:
        warnings.simplefilter("ignore")
        run_tasks(*model, [str(path)], limit=None, batch_size=2)
    assert "download its data" in str(caught.value.hint)
