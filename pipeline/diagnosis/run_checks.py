"""Checks of a training run, from its config.yaml and metrics.jsonl; imports no torch.

In: a run folder. Out: one check for each question about the run. Thresholds are in docs/doctor.md.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from kdpipe.pipeline.config_file import read_file
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import by_dotted_name

Line = dict[str, Any]
# Fewer steps are all warm-up: their loss has no trend.
FEW_STEPS = 20
LITTLE_SHARE = 0.01
SKIPPED_SHARE = 0.05
WAITING_SHARE = 0.25
MEMORY_GROWTH = 1.25
EVAL_GAP = 1.25
RATE_AT_END = 0.5


class RunMetrics:
    """The accepted steps and the evaluations of a run."""

    def __init__(self, folder: Path) -> None:
        config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
        for path in (config, metrics):
            if not path.is_file():
                raise ConfigError(f"{folder}: no {path.name}", hint="give the --out directory of kdpipe train")
        self.settings = by_dotted_name(read_file(config))
        lines: list[Line] = []
        with metrics.open(encoding="utf-8") as file:
            for text in file:
                # A killed run can leave half a last line.
                with suppress(ValueError):
                    lines.append(json.loads(text))
        self.steps = [line for line in lines if line.get("verdict") == "accept" and "terms" in line]
        self.skips = [line for line in lines if line.get("verdict") in ("skip", "rollback", "stop")]
        self.evaluations = [line["evaluation"] for line in lines if "evaluation" in line and not line.get("undone")]
        self.is_finished = (folder / "final").is_dir()

    def losses(self) -> list[float]:
        values = (line.get("loss", line.get("loss_shifted")) for line in self.steps)
        return [value for value in values if value is not None]


def check_run(folder: Path) -> list[Check]:
    run = RunMetrics(folder)
    if len(run.steps) < FEW_STEPS:
        return [warning("steps", f"{len(run.steps)} steps, fewer than {FEW_STEPS}", "train longer"), skips(run)]
    checks: tuple[Callable[[RunMetrics], Check], ...] = (
        loss, learning_rate, schedule, terms, temperature, evaluation_gap, skips, memory, waiting,
    )  # fmt: skip
    return [check(run) for check in checks]


def loss(run: RunMetrics) -> Check:
    first, last = _ends(run.losses())
    what = f"{first:.4g} in the first tenth of steps, {last:.4g} in the last"
    if last < first:
        return passed("loss", what)
    do = "try a tenth of the learning rate (--lr), and check that --mode and --temperature stayed the same"
    return problem("loss", f"not falling: {what}", do)


def learning_rate(run: RunMetrics) -> Check:
    """Zero is expected only at the end of a schedule."""
    inner = run.steps[: -max(1, len(run.steps) // 50)]
    zero = {name: sum(line["rates"][name] == 0 for line in inner) for name in run.steps[0]["rates"]}
    repeated = {name: n for name, n in zero.items() if n > 1}
    if repeated:
        what = ", ".join(f"{name} in {n} of {len(inner)} steps" for name, n in repeated.items())
        return problem("learning rate", f"zero: {what}", "set optimizer.lr, or optimizer.rates of this group")
    return passed("learning rate", f"up to {max(max(line['rates'].values()) for line in run.steps):.2g}")


def schedule(run: RunMetrics) -> Check:
    kind = run.settings.get("schedule.kind")
    peak = max(max(line["rates"].values()) for line in run.steps)
    share = max(run.steps[-1]["rates"].values()) / peak if peak else 0.0
    what = f"{kind}, learning rate at {share:.0%} of its peak after {run.steps[-1]['step']} steps"
    if not run.is_finished or kind == "constant" or share < RATE_AT_END:
        return passed("schedule", what)
    return warning("schedule", f"longer than the run: {what}", "set --max-steps to the steps that are trained")


def terms(run: RunMetrics) -> Check:
    names = run.steps[-1]["terms"]
    last = run.steps[-max(1, len(run.steps) // 10) :]
    shares = {name: fmean(line["terms"].get(name, {}).get("share") or 0.0 for line in last) for name in names}
    what = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    small = [n for n, share in shares.items() if share < LITTLE_SHARE and names[n].get("weight")]
    if small:
        do = f"raise losses.weights of {', '.join(small)}, or remove the term"
        return warning("terms", f"out of balance, shares of the loss: {what}", do)
    return passed("terms", f"shares of the loss: {what}")


def temperature(run: RunMetrics) -> Check:
    coarse = sorted({name for line in run.steps for name in line["terms"] if "_coarse" in name})
    what = f"{run.steps[-1]['temperature']:g}"
    if coarse:
        do = "use a temperature that the cache stores (kdpipe cache inspect), or cache the teacher at this one"
        return warning("temperature", f"{what}: ids beyond the stored ones share one bin ({', '.join(coarse)})", do)
    return passed("temperature", what)


def evaluation_gap(run: RunMetrics) -> Check:
    values = [e.get("loss", e.get("loss_shifted")) for e in run.evaluations]
    losses = [value for value in values if value is not None]
    if not losses:
        return passed("validation", "no evaluation yet")
    train = _ends(run.losses())[1]
    what = f"validation loss {losses[-1]:.4g} (best {min(losses):.4g}), training loss {train:.4g}"
    if train > 0 and losses[-1] > EVAL_GAP * train:
        return warning("validation", what, "overfitting: fewer --epochs, more data, or more weight decay")
    return passed("validation", what)


def skips(run: RunMetrics) -> Check:
    total = len(run.skips) + len(run.steps)
    what = f"{len(run.skips)} of {total} steps skipped or undone by the guard"
    if total and len(run.skips) > SKIPPED_SHARE * total:
        return problem("skips", what, "lower --lr, or lengthen schedule.warmup; the reasons are in metrics.jsonl")
    return passed("skips", what)


def memory(run: RunMetrics) -> Check:
    """The second half of the run against its second quarter, since buffers are still allocated in the first."""
    sizes = [line.get("device_bytes") or line.get("memory_bytes") or 0 for line in run.steps]
    before, after = fmean(sizes[len(sizes) // 4 : len(sizes) // 2]), fmean(sizes[-len(sizes) // 4 :])
    what = f"{before / 1e9:.2f} GB in the second quarter of steps, {after / 1e9:.2f} GB in the last"
    if before and after > MEMORY_GROWTH * before:
        return warning("memory", f"growing: {what}", "use a smaller --batch-size with --accumulate")
    return passed("memory", what)


def waiting(run: RunMetrics) -> Check:
    share = fmean(line.get("waiting_share") or 0.0 for line in run.steps)
    what = f"{share:.0%} of the time spent waiting for the cache"
    if share > WAITING_SHARE:
        return warning("data", what, "copy the cache to a local disk (kdpipe cache copy)")
    return passed("data", what)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    n = max(1, len(values) // 10)
    return fmean(values[:n]), fmean(values[-n:])
