"""A few real steps of a student on a cache, which are discarded: their memory and time.

In: a planned `Run`. Out: checks; a student that cannot fit is not loaded.
"""

import time
from statistics import median

import torch

from kdpipe.pipeline.batches.prefetch import StepLoader, loading_threads
from kdpipe.pipeline.models.devices import UNKNOWN_FREE, free_memory, usable_cpus
from kdpipe.pipeline.models.memory import peak_device_bytes, peak_process_bytes, process_bytes
from kdpipe.pipeline.training.interruptions import StopRequest, explain_out_of_memory
from kdpipe.pipeline.training.optimizers import set_learning_rate
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.schedules import lr_factor
from kdpipe.pipeline.training.step import apply, forward_backward
from kdpipe.pipeline.training.thread_choice import choose_threads
from kdpipe.pipeline.training.train_state import TrainState, build_train_state
from kdpipe.schemas.counts import counted, duration, size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running

# Steps after the first, which allocates memory; fewer once they have taken so many seconds.
N_STEPS, MAX_SECONDS = 3, 60.0
# float32 weights, gradients and the two moments of AdamW; Muon has one.
BYTES_PER_PARAMETER = {"adamw": 16, "muon": 12}
# More use of the available memory than this leaves no room for longer sequences and the evaluation.
FULL_SHARE = 0.9
LESS_MEMORY = "use a smaller student or --gradient-checkpointing"


def trial_steps(run: Run, progress: Progress) -> list[Check]:
    """Memory and time of a step; of an epoch, by its number of steps."""
    available = free_memory(run.device)
    estimated = run.student.shape.n_parameters * BYTES_PER_PARAMETER[run.settings.optimizer.kind or "adamw"]
    if estimated > available:
        return [memory_check(estimated, available, str(run.device))]
    before = process_bytes() or 0
    try:
        with explain_out_of_memory(run.settings, "in a trial step"):
            state = build_train_state(run, progress)
            torch.set_num_threads(choose_threads(run, state, None, StopRequest(progress.message, {})).n)
            seconds, findings = _timed_steps(run, state, progress)
    except KdpipeError as error:
        return [problem("training memory", error.message, error.hint or LESS_MEMORY)]
    if findings:
        do = "try --precision fp32, and check the cache with kdpipe cache verify"
        return [problem("training step", f"not finite: {findings[0]}", do)]
    peak = peak_device_bytes(run.device)
    if peak is None:
        peak, available = peak_process_bytes() or 0, available + before
    return [_memory(peak, available, run), _time(seconds, run)]


def memory_check(needed: int, available: int, device: str) -> Check:
    """An estimate of weights, gradients and moments against the memory of a device."""
    what = f"weights, gradients and optimizer need {size(needed)}"
    if available < UNKNOWN_FREE:
        what += f", {device} has {size(available)} available"
    if needed > available:
        return problem("training memory", what, "use a smaller student, --lora, or a larger machine")
    return passed("training memory", what)


def _timed_steps(run: Run, state: TrainState, progress: Progress) -> tuple[list[float], list[str]]:
    """Seconds of each step after the first, and what is not finite."""
    plan, order = run.plan, state.orders[run.curriculum.order_at(0).order]
    seconds: list[float] = []
    loader = StepLoader(
        run.cache,
        state.wants,
        batch_size=run.micro_batch_size,
        ahead=run.settings.machine.ahead,
        threads=loading_threads(usable_cpus()),
        pin=run.device.type == "cuda",
    )
    with loader, running(progress, Task(name="trial steps", unit="steps", total=1 + N_STEPS)):
        for step in range(1 + N_STEPS):
            started = time.perf_counter()
            batch = loader.take(step * plan.step_size, (step + 1) * plan.step_size, order)
            set_learning_rate(state.optimizer, lr_factor(run.settings.schedule, plan, step))
            result = forward_backward(state, batch, run.curriculum.at(step))
            if result.findings:
                return seconds, [str(finding) for finding in result.findings]
            apply(state, result, run.guard.clip)
            seconds.append(time.perf_counter() - started)
            progress.update(TaskUpdate(done=step + 1))
            if sum(seconds) > MAX_SECONDS:
                break
    return seconds[1:] or seconds, []


def _memory(peak: int, available: int, run: Run) -> Check:
    what = f"peak {size(peak)} in a trial step of {counted(run.plan.step_size, 'sequence')} on {run.device}"
    if available >= UNKNOWN_FREE:
        return passed("training memory", what)
    what += f", {size(available)} available"
    if peak > FULL_SHARE * available:
        return warning("training memory", what, f"{LESS_MEMORY}, or --set machine.portion=1")
    return passed("training memory", what)


def _time(seconds: list[float], run: Run) -> Check:
    per_step = median(seconds)
    steps = counted(run.plan.n_steps, "step")
    return passed(
        "training time",
        f"{duration(per_step)} per step on {_processor(run.device)}; one epoch of {steps} takes about "
        f"{duration(per_step * run.plan.n_steps)}, without evaluations",
    )


def _processor(device: torch.device) -> str:
    return counted(torch.get_num_threads(), "CPU thread") if device.type == "cpu" else str(device)
