"""The number of CPU threads of a run: `auto` times forward and backward passes with one core and with all cores.

In: a `Run`, its `TrainState` and the checkpoint it resumes from. Out: a number, and the reason for it. Passes are timed
on the model itself, since a copy of a large one takes as much memory again. No optimizer step is made; gradients are
dropped, and buffers, attributes of modules and random generators are put back to the bit.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.collate import make_batch
from kdpipe.pipeline.batches.micro_batch import StepBatch
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.training import state_tensors
from kdpipe.pipeline.training.interruptions import StopRequest
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.schedules import StepPlan
from kdpipe.pipeline.training.step import forward_backward
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.errors import Interrupted

# Timed passes per number of threads, after one of warm-up.
ROUNDS: Final = 3
# Time only runs of at least so many times the passes that timing takes: on most machines it gains over a tenth.
WORTH: Final = 10
# Attributes of torch modules that hold their parts.
OWN: Final = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadChoice:
    n: int
    reason: str


def choose_threads(run: Run, train_state: TrainState, resumed: LoopState | None, stop: StopRequest) -> ThreadChoice:
    """The setting, else the number used before the resumed checkpoint, else the faster of one and all cores."""
    setting, device, n_cpus = run.settings.machine.threads, run.device, usable_cpus()
    if setting != "auto":
        return ThreadChoice(n=setting, reason="machine.threads is set")
    if device.type != "cpu":
        return ThreadChoice(n=n_cpus, reason=f"all usable cores; training runs on {device}")
    if resumed is not None and resumed.threads is not None:
        n = min(resumed.threads, n_cpus)
        return ThreadChoice(
            n=n, reason=f"as before step {resumed.step:,}" if n == resumed.threads else "all usable cores"
        )
    if n_cpus == 1:
        return ThreadChoice(n=1, reason="one usable core")
    needed = WORTH * 2 * (1 + ROUNDS)
    if (n_passes := n_passes_of(run.plan, run.micro_batch_size)) < needed:
        short = f"the run has {n_passes:,} forward passes, and timing pays off from {needed:,}"
        return ThreadChoice(n=n_cpus, reason=f"all usable cores; {short}")
    seconds = seconds_per_pass(run, train_state, (1, n_cpus), stop)
    n_micro_batches = -(-run.plan.step_size // run.micro_batch_size)
    times = ", ".join(f"{n_micro_batches * per_pass:.3g} s with {n}" for n, per_pass in seconds.items())
    return ThreadChoice(n=min(seconds, key=lambda n: (seconds[n], n)), reason=f"a step takes {times}")


def n_passes_of(plan: StepPlan, micro_batch_size: int) -> int:
    """Forward passes of a whole run."""
    return plan.n_steps * -(-plan.step_size // micro_batch_size)


def seconds_per_pass(
    run: Run, train_state: TrainState, numbers: tuple[int, ...], stop: StopRequest
) -> dict[int, float]:
    """The shortest time of a forward and backward pass for each number of threads, timed in turns."""
    train_state = replace(train_state, scaler=None)
    batch, terms = first_batch(run, train_state), run.curriculum.at(0)
    seconds: dict[int, list[float]] = {n: [] for n in numbers}
    before = torch.get_num_threads()
    with unchanged(train_state.model, train_state.device):
        try:
            for turn in range(1 + ROUNDS):
                for n in numbers:
                    torch.set_num_threads(n)
                    started = perf_counter()
                    forward_backward(train_state, batch, terms)
                    if turn:
                        seconds[n].append(perf_counter() - started)
                    if stop.requested:
                        raise Interrupted(
                            "interrupted before the first step", hint="run the same command again to start it"
                        )
        finally:
            torch.set_num_threads(before)
    return {n: min(timed) for n, timed in seconds.items()}


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore model and random generators after a computation; gradients are dropped."""
    random = state_tensors.random_tensors(device)
    modules = [(module, _attributes(module), _buffers(module)) for module in model.modules()]
    try:
        yield
    finally:
        state_tensors.restore_random(random, device)
        for parameter in model.parameters():
            parameter.grad = None
        for module, attributes, buffers in modules:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
            for name, (buffer, value) in buffers.items():
                if buffer is not None and value is not None:
                    with torch.no_grad():
                        buffer.copy_(value)
                module._buffers[name] = buffer
            for name in module._buffers.keys() - buffers.keys():
                del module._buffers[name]


def _attributes(module: nn.Module) -> dict[str, object]:
    """Attributes besides parameters and buffers, such as the longest sequence so far."""
    return {
        name: copy.copy(value) if type(value) in (list, dict, set) and name not in OWN else value
        for name, value in module.__dict__.items()
    }


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    return {name: (value, None if value is None else value.detach().clone()) for name, value in module._buffers.items()}


def first_batch(run: Run, train_state: TrainState) -> StepBatch:
    """The first micro-batch of the run."""
    order = train_state.orders[run.curriculum.order_at(0).order]
    size = min(run.micro_batch_size, run.plan.size_of(0))
    batch = make_batch(run.cache, order.at(np.arange(size)).tolist(), train_state.wants)
    return StepBatch(batches=(batch,), begin=0, end=size)
