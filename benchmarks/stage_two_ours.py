"""A run of kdpipe, step by step on demand, and the time of the parts of a step.

In: settings of `kdpipe train`. Out: an `Ours` whose `step` is a complete step: loading, training, guard, log.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from kdpipe.pipeline.batches.prefetch import StepLoader
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.training import loop as loop_module
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training import step as step_module
from kdpipe.pipeline.training.interruptions import stop_on_signals
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.run import plan_run
from kdpipe.pipeline.training.session import open_session
from kdpipe.pipeline.training.step import StepResult
from kdpipe.pipeline.training.train_state import build_train_state
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainSettings

Owned = tuple[Any, str]
OURS: dict[str, Owned] = {
    "loading": (StepLoader, "take"),
    "body, forward": (Student, "states"),
    "head and losses, forward and backward": (HeadLosses, "__call__"),
    "body, backward": (torch.Tensor, "backward"),
    "gradient norm": (step_module, "_gradient_norm"),
    "optimizer": (loop_module, "apply"),
}


class Ours:
    """An open run; `cross_entropy` has the raw value of each step."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.cross_entropy: list[float] = []

    def step(self) -> None:
        """Run one optimizer step."""
        self._loop.train_until(self._loop.state.step + 1)
        last = self._loop.last
        assert isinstance(last, StepResult)
        self.cross_entropy.append(last.terms["ce"].raw)


@contextmanager
def ours(settings: TrainSettings, *, ahead: bool) -> Iterator[Ours]:
    """Open a run; without `ahead` nothing is prefetched, so that the other side is not disturbed."""
    progress = SilentProgress()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        run = plan_run(settings, progress)
        folder = Path(settings.out or "")
        run_folder.claim(folder, run.record, overwrite=True)
        train_state = build_train_state(run, progress)
        session = stack.enter_context(open_session(run, train_state, folder, None, progress, stop))
        if not ahead:
            loader = StepLoader(run.cache, train_state.wants, batch_size=run.micro_batch_size, ahead=0)
            session = replace(session, loader=stack.enter_context(loader))
        yield Ours(Loop(session, LoopState(step=0, place=0)))


@contextmanager
def clocks(owned: dict[str, Owned], spent: dict[str, float]) -> Iterator[None]:
    """Sum the seconds of some functions (cumulative) while the block runs."""
    with ExitStack() as stack:
        for name, (owner, attribute) in owned.items():
            spent[name] = 0.0
            clocked = _clocked(getattr(owner, attribute), spent, name)
            stack.enter_context(mock.patch.object(owner, attribute, clocked))
        yield


def _clocked(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    return call
