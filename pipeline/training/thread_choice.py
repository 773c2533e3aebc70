"""How many threads a run computes with: `auto` times a few forward and backward passes with one and with all cores.

In: a prepared run and the checkpoint that it is resumed from. Out: a number, and its reason for a person to read.
Passes are timed on the model itself, since a copy of a large one takes as much memory again. No optimizer step is made;
gradients are dropped, and buffers, attributes of modules and random generators are put back to the bit.
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
from kdpipe.pipeline.training import state_tensors as states
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.schedules import StepPlan
from kdpipe.pipeline.training.step import forward_backward
from kdpipe.pipeline.training.stop_signals import StopRequest
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.errors import Interrupted

# Passes that are timed with each number of threads, after one that is not.
ROUNDS: Final = 3
# A run has at least so many times the passes that measuring takes: on most machines it wins more than a tenth.
WORTH: Final = 10
# Where a module of torch keeps what it consists of.
OWN: Final = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadChoice:
    """Threads, and why so many."""

    n: int
    reason: str


def choose_threads(prepared: PreparedRun, begun: LoopState | None, stop: StopRequest) -> ThreadChoice:
    """The threads that are asked for, those of the steps before, or the faster of one and all."""
    asked, n_cpus = prepared.settings.machine.threads, usable_cpus()
    if asked != "auto":
        return ThreadChoice(n=asked, reason="machine.threads is set")
    device = prepared.prospect.device
    if device.type != "cpu":
        return ThreadChoice(n=n_cpus, reason=f"all usable cores; steps are made on {device}")
    if begun is not None and begun.threads is not None:
        n = min(begun.threads, n_cpus)
        return ThreadChoice(n=n, reason=f"as before step {begun.step:,}" if n == begun.threads else "all usable cores")
    if n_cpus == 1:
        return ThreadChoice(n=1, reason="one usable core")
    needed = WORTH * 2 * (1 + ROUNDS)
    if (n_passes := passes_of(prepared.plan, prepared.prospect.portion)) < needed:
        short = f"the run has {n_passes:,} forward passes, and timing pays from {needed:,} on"
        return ThreadChoice(n=n_cpus, reason=f"all usable cores; {short}")
    seconds = seconds_per_pass(prepared, (1, n_cpus), stop)
    n_micro = -(-prepared.plan.step_size // prepared.prospect.portion)
    told = ", ".join(f"{n_micro * each:.3g} s with {n}" for n, each in seconds.items())
    return ThreadChoice(n=min(seconds, key=lambda n: (seconds[n], n)), reason=f"a step takes {told}")


def passes_of(plan: StepPlan, portion: int) -> int:
    """Forward passes of a whole run."""
    return plan.n_steps * -(-plan.step_size // portion)


def seconds_per_pass(prepared: PreparedRun, numbers: tuple[int, ...], stop: StopRequest) -> dict[int, float]:
    """The shortest time of a forward and backward pass with each number of threads, taken in turn."""
    train_state = replace(prepared.train_state, scaler=None)
    batch, terms = _first_batch(prepared), prepared.curriculum.at(0)
    seconds: dict[int, list[float]] = {n: [] for n in numbers}
    before = torch.get_num_threads()
    with unchanged(train_state.model, train_state.device):
        try:
            for number in range(1 + ROUNDS):
                for n in numbers:
                    torch.set_num_threads(n)
                    began = perf_counter()
                    forward_backward(train_state, batch, terms)
                    if number:
                        seconds[n].append(perf_counter() - began)
                    if stop.asked:
                        raise Interrupted(
                            "stopped before the first step", hint="run the same command again to start it"
                        )
        finally:
            torch.set_num_threads(before)
    return {n: min(each) for n, each in seconds.items()}


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever is computed with a model that has no gradients leaves it, and the random generators, as they were."""
    random = states.random_tensors(device)
    modules = [(module, _attributes(module), _buffers(module)) for module in model.modules()]
    try:
        yield
    finally:
        states.restore_random(random, device)
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
    """What is remembered outside of parameters and buffers, such as the longest sequence so far."""
    return {
        name: copy.copy(value) if type(value) in (list, dict, set) and name not in OWN else value
        for name, value in module.__dict__.items()
    }


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Each buffer with a copy of its values."""
    return {name: (value, None if value is None else value.detach().clone()) for name, value in module._buffers.items()}


def _first_batch(prepared: PreparedRun) -> StepBatch:
    """The first micro-batch of the run, read beside the loader of the run."""
    order = prepared.orders[prepared.curriculum.order_at(0).order]
    size = min(prepared.prospect.portion, prepared.plan.size_of(0))
    numbers = order.at(np.arange(size)).tolist()
    batch = make_batch(prepared.prospect.cache, numbers, prepared.wants)
    return StepBatch(batches=(batch,), begin=0, end=size)
