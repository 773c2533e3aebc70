"""Stage two without the teacher: its folder is gone, its code is never imported, and memory is less than its weights.

The student is trained in a child process under an audit hook that sees every import and every file that is opened.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from support.corpora import TEXTS, small_tokenizer, write_jsonl
from support.stage_one import VOCABULARY
from support.stage_one import run as run_stage_one
from support.stage_one import settings_for as stage_one_settings
from support.stage_two import settings_for

# About a gigabyte of weights in four wide layers, which a process that trains a small student stays well below.
LARGE = {"hidden_size": 1024, "intermediate_size": 22_000, "num_hidden_layers": 4}
CHILD = """
import gc, json, sys

seen = {"import": set(), "open": set()}

def hear(event, words):
    if event == "import":
        seen["import"].add(words[0])
    elif event == "open" and isinstance(words[0], (str, bytes)):
        path = words[0].decode() if isinstance(words[0], bytes) else words[0]
        seen["open"].add(path)

sys.addaudithook(hear)

import torch
from kdpipe.pipeline.train import train
from kdpipe.schemas.train_settings import TrainSettings, TrainOptions
from support.recording import RecordingProgress

most = 0

class Counting(RecordingProgress):
    def update(self, update):
        global most
        super().update(update)
        alive = {id(o): o.numel() for o in gc.get_objects() if isinstance(o, torch.nn.Parameter)}
        most = max(most, sum(alive.values()))

report = train(TrainSettings.model_validate_json(sys.argv[1]), TrainOptions(), Counting())
high = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({
    "imports": sorted(seen["import"]), "opened": sorted(seen["open"]), "parameters": most,
    "student": report.n_parameters, "peak": high, "reported_peak": report.memory.peak_process, "steps": report.steps,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of a large teacher, which is then deleted."""
    folder = tmp_path_factory.mktemp("no-teacher")
    config = transformers.LlamaConfig(
        **LARGE, vocab_size=VOCABULARY, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256
    )
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder / "teacher")
    small_tokenizer(folder / "teacher", vocabulary=VOCABULARY)
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in TEXTS[:12]])
    hidden = {"layers": ("0.5", "1.0"), "dim": 16}
    run_stage_one(stage_one_settings(folder, hidden=hidden, machine={"batch_tokens": 256}))
    size = sum(path.stat().st_size for path in (folder / "teacher").glob("*.safetensors"))
    (folder / "size").write_text(str(size))
    shutil.rmtree(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def heard(folder: Path) -> dict[str, Any]:
    """What the child did."""
    changes: dict[str, Any] = {"losses": {"weights": {"mse": 0.1}, "hidden": {"router": True}}}
    settings = settings_for(folder, run={"max_steps": 4, "batch_size": 4, "accumulate": 1}, **changes)
    words = [sys.executable, "-c", CHILD, settings.model_dump_json()]
    (folder / "scratch").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(folder / "scratch")}
    child = subprocess.run(words, env=environment, text=True, capture_output=True, check=False)
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    assert found["steps"] == 4
    return found


@pytest.mark.slow
def test_no_code_of_teachers_or_targets_is_imported(heard: dict[str, Any]) -> None:
    first_stage = ("teachers", "targets", "capture", "cache_teacher", "hidden", "fidelity", "small_teacher")
    banned = tuple(f"kdpipe.pipeline.{name}" for name in first_stage)
    ours = [name for name in heard["imports"] if name.startswith("kdpipe.pipeline")]
    assert "kdpipe.pipeline.train" in ours
    assert not [name for name in ours if any(name == one or name.startswith(f"{one}.") for one in banned)]


@pytest.mark.slow
def test_no_file_outside_cache_student_and_output_is_opened(folder: Path, heard: dict[str, Any]) -> None:
    ours = [str(folder / name) for name in ("cache", "student.json", "run", "scratch")]
    # What Python, its libraries and the system open for themselves.
    theirs = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc", "/sys", "/dev", "/etc", "/usr"]
    opened = [os.path.abspath(path) for path in heard["opened"]]
    assert any(path.startswith(ours[0]) for path in opened) and any(path.startswith(ours[2]) for path in opened)
    odd = [path for path in opened if not path.startswith(tuple(ours + theirs))]
    # The folder in which the run's is made is opened to make that durable; that the cache is good is remembered.
    remembered = str(Path(os.environ["XDG_CACHE_HOME"]) / "kdpipe" / "checked")
    assert [path for path in odd if path != str(folder) and not path.startswith(remembered)] == []
    assert not [path for path in heard["opened"] if str(folder / "teacher") in path]


@pytest.mark.slow
def test_no_parameters_but_the_students_are_alive(heard: dict[str, Any]) -> None:
    # A map from 32 to 16 for each of the two layers that a router mixes for, and its 2 by 2 logits.
    assert heard["student"] <= heard["parameters"] <= heard["student"] + 2 * (32 * 16 + 16) + 4


@pytest.mark.slow
def test_peak_memory_is_below_the_teachers_size(folder: Path, heard: dict[str, Any]) -> None:
    teacher = int((folder / "size").read_text())
    assert heard["peak"] < teacher
    assert heard["reported_peak"] == pytest.approx(heard["peak"], rel=0.05)
