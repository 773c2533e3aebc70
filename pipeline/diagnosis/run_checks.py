"""Checks of a training run, from its config.yaml and metrics.jsonl; imports no torch unless a loss is coarse.

In: a run folder. Out: one check for each question about the run. Thresholds leave room around the numbers of
healthy runs (docs/experiments.md, numbers of healthy runs).
"""

from collections.abc import Callable
from pathlib import Path

from kdpipe.pipeline.diagnosis.run_metrics import RunMetrics
from kdpipe.schemas.counts import counted, size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import KdpipeError

# Fewer steps are all warm-up: their loss has no trend.
FEW_STEPS = 20
# Standard errors between the means of two windows.
NOISE = 3.0
# The last window above the best one, as a share.
RISEN_AGAIN = 1.1
# At this learning rate the update of a float32 weight is lost in rounding.
ZERO_RATE = 1e-12
RATE_AT_END = 0.5
LITTLE_SHARE = 0.01
EVAL_GAP = 1.25
SKIPPED_SHARE = 0.05
MEMORY_GROWTH = 1.25
WAITING_SHARE = 0.25


def check_run(folder: Path) -> list[Check]:
    run = RunMetrics(folder)
    if len(run.steps) < FEW_STEPS:
        return [warning("steps", f"{len(run.steps)} steps, fewer than {FEW_STEPS}", "train longer"), skips(run)]
    checks: tuple[Callable[[RunMetrics], Check], ...] = (
        loss, learning_rate, schedule, terms, temperature, validation, skips, memory, waiting,
    )  # fmt: skip
    return [check(run) for check in checks]


def loss(run: RunMetrics) -> Check:
    """Whether the loss falls by more than its noise, and stays near its best."""
    if run.data_order:
        return passed("loss", f"not judged: the data are ordered by {run.data_order}")
    trend = run.trend()
    if trend is None:
        return passed("loss", "not judged: the last phase of the losses has too few steps")
    what = f"mean {trend.first:.4g} in the first steps, {trend.last:.4g} in the last"
    do = "lower the learning rate (--lr), and check that it is not 0"
    if trend.fall < -NOISE:
        return problem("loss", f"rising: {what}", do)
    if trend.fall < NOISE:
        return warning("loss", f"not falling by more than its noise: {what}", do)
    if trend.rise > NOISE and trend.last > RISEN_AGAIN * trend.best:
        return warning("loss", f"rose again from {trend.best:.4g}: {what}", "lower the learning rate (--lr)")
    return passed("loss", f"falling: {what}")


def learning_rate(run: RunMetrics) -> Check:
    """Zero is expected only at the end of a schedule."""
    inner = run.steps[: -max(1, len(run.steps) // 50)]
    zero = {name: sum(line["rates"][name] < ZERO_RATE for line in inner) for name in run.steps[0]["rates"]}
    groups = [f"{name} in {n} of {counted(len(inner), 'step')}" for name, n in zero.items() if n > 1]
    if groups:
        do = "set --lr, or optimizer.rates of these groups"
        return problem("learning rate", f"zero, so that nothing is trained: {', '.join(groups)}", do)
    return passed("learning rate", f"up to {max(max(line['rates'].values()) for line in run.steps):.2g}")


def schedule(run: RunMetrics) -> Check:
    """Whether a run that stopped had reached the decay of its schedule."""
    kind, floor = run.settings.get("schedule.kind"), run.settings.get("schedule.floor") or 0.0
    peak = max(max(line["rates"].values()) for line in run.steps)
    share = max(run.steps[-1]["rates"].values()) / peak if peak else 0.0
    done = counted(run.steps[-1]["step"], "step")
    what = f"{kind}, learning rate at {share:.0%} of its peak after {done}"
    if run.is_running:
        return passed("schedule", f"{what}; the run is in progress")
    if run.is_finished or kind == "constant" or share < max(RATE_AT_END, floor):
        return passed("schedule", what)
    do = f"re-run the command to resume, or start another run with --max-steps {run.steps[-1]['step']}"
    return warning("schedule", f"longer than the run, which stopped: {what}", do)


def terms(run: RunMetrics) -> Check:
    """Whether each term that has a weight at some step contributes to the loss there."""
    weights = {name: term["weight"] for line in run.steps for name, term in line["terms"].items()}
    shares = run.shares()
    what = ", ".join(f"{name} {share:.1%} (weight {weights[name]:.3g})" for name, share in shares.items())
    small = [name for name, share in shares.items() if share < LITTLE_SHARE]
    if small:
        do = f"raise losses.weights of {', '.join(small)}, or remove the term"
        return warning("terms", f"out of balance, shares of the loss: {what}", do)
    return passed("terms", f"shares of the loss: {what}")


def temperature(run: RunMetrics) -> Check:
    """Whether the cache holds enough of the teacher's mass at the temperatures of coarse terms."""
    coarse = {line["temperature"] for line in run.steps if any("_coarse" in name for name in line["terms"])}
    if not coarse:
        return passed("temperature", f"{run.steps[-1]['temperature']:g}")
    from kdpipe.cache.opening import open_cache
    from kdpipe.pipeline.training.coarse_targets import LEAST_MASS, masses_at, remedy

    path = str(run.settings.get("cache.path"))
    try:
        cache = open_cache(path, "train", allow_partial=True)
        masses = masses_at(cache, sorted(coarse))
    except KdpipeError as error:
        shown = ", ".join(f"{value:g}" for value in sorted(coarse))
        do = "make the cache available, then run kdpipe doctor again"
        return warning("temperature", f"{shown}: coarse, and its mass is unknown: {error.message}", do)
    what = ", ".join(
        f"{value:g}: the exact ids hold {mass:.0%} of the teacher's mass" for value, mass in masses.items()
    )
    least = min(masses, key=lambda value: masses[value])
    if masses[least] < LEAST_MASS:
        return warning("temperature", f"{what}, the rest is one bin", remedy(path, cache.manifest, least))
    return passed("temperature", what)


def validation(run: RunMetrics) -> Check:
    losses, trained = run.validation(), run.last_loss()
    if not losses or trained is None:
        return passed("validation", "no evaluation yet")
    what = f"loss {losses[-1]:.4g} (best {min(losses):.4g}), {trained:.4g} in training"
    if trained > 0 and losses[-1] > EVAL_GAP * trained:
        return warning("validation", what, "overfitting: fewer --epochs, more data, or more --weight-decay")
    return passed("validation", what)


def skips(run: RunMetrics) -> Check:
    total = len(run.skips) + len(run.steps)
    what = f"{len(run.skips)} of {counted(total, 'step')} skipped or undone by the guard"
    if total and len(run.skips) > SKIPPED_SHARE * total:
        return problem("skips", what, "lower --lr, or lengthen --warmup; the reasons are in metrics.jsonl")
    return passed("skips", what)


def memory(run: RunMetrics) -> Check:
    peak = max(line.get("device_bytes") or line.get("memory_bytes") or 0 for line in run.steps)
    growth = run.memory_growth()
    if growth is None:
        return passed("memory", "not recorded on this system")
    what = f"peak {size(peak)}, {growth - 1:.0%} more in the last quarter of steps than in the second"
    if growth > MEMORY_GROWTH:
        return warning("memory", f"growing: {what}", "use a smaller --batch-size with --accumulate")
    return passed("memory", what)


def waiting(run: RunMetrics) -> Check:
    share = run.waiting_share()
    what = f"{share:.0%} of the time spent waiting for the cache"
    if share > WAITING_SHARE:
        return warning("data", what, "copy the cache to a local disk (kdpipe cache copy)")
    return passed("data", what)
