"""Stage two on small real things: a cache made by stage one, settings, and the whole story run on them.

In: a folder. Out: caches, settings that `train` takes, what it makes. Child processes import this by name.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdpipe.pipeline.train import train
from kdpipe.schemas.progress import TaskUpdate
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings
from support import stage_one
from support.recording import RecordingProgress

STUDENT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "attention_dropout": 0.1,
}


class Stopping(RecordingProgress):
    """A `Progress` that sends this process a signal after some step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self._step, self._number = step, number

    def update(self, update: TaskUpdate) -> None:
        super().update(update)
        if self.open_tasks[-1].name == "train" and update.done == self._step:
            os.kill(os.getpid(), self._number)


class StepMeeting(RecordingProgress):
    """A `Progress` that calls a function after the first step."""

    def __init__(self, meet: Callable[[], None]) -> None:
        super().__init__()
        self._meet = meet

    def update(self, update: TaskUpdate) -> None:
        super().update(update)
        if self.open_tasks[-1].name == "train" and update.done == 1:
            self._meet()


def make_cache(folder: Path, out: str = "cache", **changes: dict[str, Any]) -> Path:
    """A cache of a small random teacher with hidden summaries, packed sequences and a validation split."""
    if not (folder / "teacher").is_dir():
        stage_one.make_inputs(folder, n_documents=60)
    sections = {"hidden": {"layers": ("0.5", "1.0"), "dim": 16}, **changes}
    sections["targets"] = {"temperatures": (2.0, 4.0)} | sections.get("targets", {})
    stage_one.run(stage_one.settings_for(folder, out, **sections))
    return folder / out


def settings_for(folder: Path, out: str = "run", kept: str = "cache", **changes: dict[str, Any]) -> TrainSettings:
    """The settings of a small run: 6 steps of 2 batches of 4; `changes` by section."""
    config = folder / "student.json"
    if not config.exists():
        config.write_text(json.dumps(STUDENT))
    sections: dict[str, dict[str, Any]] = {
        "cache": {"path": str(folder / kept)},
        "student": {"name": str(config)},
        "run": {"max_steps": 6, "batch_size": 4, "accumulate": 2},
        # A random teacher is unsure: its exact ids hold little at other temperatures.
        "losses": {"allow_coarse": True},
        "optimizer": {"kind": "adamw", "lr": 3e-3, "rates": {"tables": 3e-3}},
        "schedule": {"warmup": 0.2},
        "evaluation": {"every": 3, "limit": 4},
        "saving": {"every": 3},
        "machine": {"device": "cpu", "threads": 1},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    return TrainSettings.model_validate_json(json.dumps({**sections, "out": str(folder / out)}))


def run(settings: TrainSettings, progress: RecordingProgress | None = None, **options: Any) -> TrainReport:
    """Run the story."""
    return train(settings, TrainOptions(**options), progress or RecordingProgress())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(out: Path) -> dict[str, Tensor]:
    """The weights of the student that a run ended with."""
    return dict(load_file(out / "final" / "model.safetensors"))


def history(out: Path) -> list[tuple[int, str, float | None]]:
    """Each line of metrics.jsonl as its step, what it is, and its loss."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line.get("verdict") or next(name for name in ("evaluation", "metrics_gap") if name in line),
         line.get("evaluation", line).get("loss", line.get("loss_shifted")))
        for line in lines
    ]  # fmt: skip


def losses(out: Path) -> list[tuple[int, float]]:
    """Each accepted step of metrics.jsonl with its loss."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line.get("verdict") == "accept"]
