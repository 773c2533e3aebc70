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
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.prepare import look, prepare
from kdpipe.pipeline.training.session import open_desk
from kdpipe.pipeline.training.step import StepResult
from kdpipe.pipeline.training.stop_signals import listening
from kdpipe.pipeline.watch import SilentTrainWatch
from kdpipe.schemas.checkpoint import LoopState
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
        self._loop.go_on(self._loop.state.step + 1)
        last = self._loop.last
        assert isinstance(last, StepResult)
        self.cross_entropy.append(last.terms["ce"].raw)


@contextmanager
def ours(settings: TrainSettings, *, ahead: bool) -> Iterator[Ours]:
    """Open a run; without `ahead` nothing is prefetched, so that the other side is not disturbed."""
    watch = SilentTrainWatch()
    with ExitStack() as stack:
        stop = stack.enter_context(listening())
        prospect = look(settings, watch)
        folder = Path(settings.out or "")
        run_folder.claim(folder, prospect.record, overwrite=True)
        prepared = prepare(prospect, watch)
        desk = stack.enter_context(open_desk(prepared, folder, None, watch))
        around = desk.around(stop)
        if not ahead:
            loader = StepLoader(prospect.cache, prepared.wants, batch_size=prospect.portion, ahead=0)
            around = replace(around, loader=stack.enter_context(loader))
        yield Ours(Loop(prepared, LoopState(step=0, place=0), around))


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
