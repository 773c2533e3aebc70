"""A run's student as a folder for others: merged, cast, read again."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from kdpipe.cli import main
from kdpipe.pipeline import export as story
from kdpipe.pipeline.export import export
from kdpipe.pipeline.students import export_folder, saving
from kdpipe.pipeline.students.model_card import rendered
from kdpipe.pipeline.students.saving import save_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.errors import ConfigError
from support.children import Child
from support.corpora import small_tokenizer
from support.gates import Gate
from support.models import tiny_llama, tiny_model
from support.students import CARD, IDS, student

ROW = torch.tensor([[(7 * place) % 290 + 3 for place in range(40)]])


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process is for the slow tests alone: each takes seconds to begin."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(export_folder, "check_reload", lambda *words, **options: 0.0)


def logits_of(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found: np.ndarray = model(ROW, use_cache=False).logits[0].float().numpy()
    return found


def run_of(folder: Path, found: Student, card: str = "# card\n") -> Path:
    tokenizer = small_tokenizer(folder / "tokenizer")
    save_student(found, folder / "run" / "final", {path.name: path.read_bytes() for path in tokenizer.iterdir()}, card)
    return folder / "run"


def test_a_student_is_cast_to_one_type(tmp_path: Path) -> None:
    found = student("tiny")
    run = run_of(tmp_path, found)
    report = export(run, None, "bfloat16")
    assert (report.folder, report.dtype, report.merged) == (str(run / "export"), "bfloat16", False)
    assert report.parameters == found.n_parameters()
    assert report.bytes == sum(path.stat().st_size for path in (run / "export").iterdir())
    assert json.loads((run / "export" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "export")
    assert all(
        torch.equal(each, found.model.state_dict()[name].bfloat16()) for name, each in model.state_dict().items()
    )


def test_tokenizer_and_card_go_along_byte_for_byte(tmp_path: Path) -> None:
    run = run_of(tmp_path, student("tiny"))
    export(run, tmp_path / "out", None)
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (run / "final" / name).read_bytes()
    np.testing.assert_array_equal(logits_of(tmp_path / "out"), logits_of(run / "final"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_merged(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = student(tiny_model(family, tmp_path / "base", (IDS.count, 64, 2)), lora=True)
    with torch.no_grad():
        for each in found.trainable().values():
            each.normal_(std=0.1)
        due = found.logits(ROW)[0].numpy()
    card = rendered(CARD).replace("finetune", "adapter")
    report = export(run_of(tmp_path, found, card), None, None)
    assert (report.merged, report.dtype) == (True, "float32")
    np.testing.assert_allclose(logits_of(Path(report.folder)), due, rtol=0, atol=1e-4 * np.abs(due).max())
    assert np.abs(logits_of(tmp_path / "base") - due).max() > 0.1
    assert 'base_model_relation: "finetune"' in (Path(report.folder) / "README.md").read_text()


@pytest.mark.slow
def test_what_was_exported_is_read_again_in_a_fresh_process(tmp_path: Path) -> None:
    assert 0 < export(run_of(tmp_path, student("tiny")), None, "bfloat16").difference < 5e-2


@pytest.mark.slow
def test_an_adapter_finds_its_base_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "base", vocabulary=IDS.count)
    run = run_of(tmp_path, student("./base", lora=True))
    monkeypatch.chdir("/")
    assert export(run, None, None).merged


def test_a_folder_that_was_saved_may_be_named_itself(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", vocabulary=IDS.count)
    assert export(folder, tmp_path / "out", "float16").dtype == "float16"


def test_a_student_that_cannot_be_exported_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run") as caught:
        export(tmp_path / "none", None, None)
    assert caught.value.exit_code == 2
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="has no student yet") as caught:
        export(tmp_path / "run", None, None)
    assert "run kdpipe train again" in str(caught.value.hint)
    run = run_of(tmp_path, student("tiny"))
    (run / "export").mkdir()
    (run / "export" / "mine").write_text("")
    with pytest.raises(ConfigError, match="export already exists") as caught:
        export(run, None, None)
    assert "--out" in str(caught.value.hint)
    double = transformers.AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float64)
    double.save_pretrained(tmp_path / "double")
    with pytest.raises(ConfigError, match="float64"):
        export(tmp_path / "double", None, None)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("locks", "n_rounds"),
    [
        (True, 5),
        pytest.param(False, 5, marks=pytest.mark.slow),
        pytest.param(True, 100, marks=pytest.mark.soak),
        pytest.param(False, 100, marks=pytest.mark.soak),
    ],
)
def test_of_two_exports_into_one_folder_one_wins(
    tmp_path: Path, locks: bool, n_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:  # the rename alone decides
        monkeypatch.setattr(story, "locked", lambda *_, **__: nullcontext())
    runs = [run_of(tmp_path / name, student("tiny", seed=seed), f"# {name}\n") for seed, name in enumerate("ab")]
    for number in range(n_rounds):
        out, gate = tmp_path / str(number), Gate(2)

        def work(run: Path, out: Path = out, gate: Gate = gate) -> str:
            torch.set_num_threads(1)
            gate.pass_through()
            return export(run, out, None).folder

        children = [Child(partial(work, run)) for run in runs]
        gate.wait()
        gate.open()
        ended = [child.wait() for child in children]
        gate.close()
        assert sorted(each.code for each in ended) == [0, 2], ended
        (lost,) = (each for each in ended if each.code)
        assert "is in use by process" in lost.output or "already exists" in lost.output
        (won,) = (run for run, each in zip(runs, ended, strict=True) if not each.code)
        for name in ("README.md", "model.safetensors"):
            assert (out / name).read_bytes() == (won / "final" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", *map(str, range(n_rounds))}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_an_export_that_was_killed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, student("tiny"))

    def work() -> None:
        monkeypatch.setattr(saving, "_copy_own_code", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        export(run, None, None)

    child = Child(work)
    assert child.wait().code == -signal.SIGKILL
    assert not (run / "export").exists()
    assert f"took over the lock of process {child.pid}, which has ended" in export(run, None, None).notes
    assert {path.name for path in run.iterdir()} == {"final", "export"}


def test_an_adapter_without_its_base_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = tiny_llama(tmp_path / "base", vocabulary=IDS.count)
    run = run_of(tmp_path, student(base, lora=True))
    base.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="base"):
        export(run, None, None)
    config = run / "final" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="base_model_name_or_path"):
        export(run, None, None)


def test_the_command_reports_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, student("tiny"))
    assert main.run(["export", str(run), "--to", "hf", "--dtype", "float16"]) == 0
    messages = capsys.readouterr().out
    assert "111,680 parameters in float16" in messages
    assert f'AutoModelForCausalLM.from_pretrained("{run / "export"}")' in messages
    assert "TokenizersBackend" in messages
    assert main.run(["export", str(run), "--to", "hf", "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
    assert main.run(["export", str(run), "--to", "hf"]) == 2
    assert main.run(["export", str(run), "--to", "gguf"]) == 2
    capsys.readouterr()
    assert main.run(["export", str(run), "--to", "hf", "--out", "/"]) == 2
    assert "/ is the root of a file system" in capsys.readouterr().err
