"""Weights & Biases: a run in OUT/wandb, offline unless WANDB_MODE or WANDB_API_KEY is set.

In: numbers of steps. Out: OUT/wandb, which `wandb sync` uploads.
"""

import os
import secrets
import shlex
from collections.abc import Mapping
from typing import Any, final

import wandb

from kdpipe.pipeline.training.trackers import PROJECT, TrackedRun, stored_id


@final
class WeightsAndBiases:
    """One run, which keeps its id when it is resumed."""

    def __init__(self, run: TrackedRun) -> None:
        folder = self._folder = run.folder / "wandb"
        identity = stored_id(run, "wandb", lambda: secrets.token_hex(4))
        for name in ("CACHE", "CONFIG", "DATA"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / name.lower()))
        is_set_up = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=identity,
            resume="allow" if is_set_up else None,
            dir=str(run.folder),
            config=dict(run.config),
            mode=None if is_set_up else "offline",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
        )

    @property
    def location(self) -> str:
        if self._run.disabled:
            return "off: WANDB_MODE is disabled"
        if self._run.url:
            return f"view: {self._run.url}"
        # A resumed run has a folder for each start, which are uploaded in order.
        return f"offline; upload: wandb sync {shlex.quote(str(self._folder))}/offline-run-*"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._run.finish()
