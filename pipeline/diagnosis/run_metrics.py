"""What a run has written, and the numbers by which `run_checks` judges it; imports no torch.

In: the folder of a run. Out: accepted steps, evaluations, and numbers that `benchmarks/healthy_runs.py` prints too.
"""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple, final

from kdpipe.cache.durable.lock import check_free
from kdpipe.pipeline.config_file import read_file
from kdpipe.schemas.errors import ConfigError, LockHeld
from kdpipe.schemas.settings import by_dotted_name

Line = dict[str, Any]
# Steps at each end of a run whose mean is compared: a tenth of the run, or at least so many.
LEAST_WINDOW = 5


class Trend(NamedTuple):
    """Mean losses of the first, the best and the last window, and their differences in standard errors."""

    first: float
    best: float
    last: float
    fall: float
    rise: float


@final
class RunMetrics:
    """The accepted steps and the evaluations of a run."""

    def __init__(self, folder: Path) -> None:
        config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
        for path in (config, metrics):
            if not path.is_file():
                what = f"is not a run: it has no {path.name}" if folder.is_dir() else "does not exist"
                raise ConfigError(f"{folder} {what}", hint="give the --out directory of kdpipe train")
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
        self.is_running = _is_locked(folder)

    @property
    def data_order(self) -> str:
        """The order of the data if it is not shuffled at some step, else nothing."""
        phases = self.settings.get("run.phases") or ()
        orders = [self.settings.get("run.order"), *(phase.get("order") for phase in phases)]
        return next((order for order in orders if order not in (None, "shuffled")), "")

    def losses(self) -> list[float]:
        """The loss of each step at the weights of the last one, so that steps of different weights compare.

        Steps at another temperature or without a term of the last are left out; if these are more than half, terms that
        some steps lack are left out instead.
        """
        last = self.steps[-1]
        lines = [line["terms"] for line in self.steps if line["temperature"] == last["temperature"]]
        names = last["terms"].keys()
        whole = [terms for terms in lines if terms.keys() >= names]
        if 2 * len(whole) >= len(lines):
            return _sums(whole, names, last["terms"])
        return _sums(lines, names & set.intersection(*map(set, lines)), last["terms"])

    def last_loss(self) -> float | None:
        """The mean loss of the last steps, with the terms and weights of the last one, as evaluations compute it."""
        last = self.steps[-1]["terms"]
        lines = [line["terms"] for line in self.steps[-window_of(self.steps) :]]
        losses = _sums([terms for terms in lines if terms.keys() == last.keys()], last.keys(), last)
        return fmean(losses) if losses else None

    def trend(self) -> Trend | None:
        """How the loss changed; None if too few steps compare."""
        losses = self.losses()
        size = window_of(losses)
        if len(losses) < 2 * size:
            return None
        windows = [losses[begin : begin + size] for begin in range(0, len(losses) - size + 1, size)]
        first, last = losses[:size], losses[-size:]
        best = min(windows, key=fmean)
        return Trend(fmean(first), fmean(best), fmean(last), -_difference(first, last), _difference(best, last))

    def shares(self) -> dict[str, float]:
        """The mean share of each term in the loss, over the steps where it has a weight."""
        shares: dict[str, list[float]] = {}
        for line in self.steps:
            for name, term in line["terms"].items():
                if term.get("weight"):
                    shares.setdefault(name, []).append(abs(term.get("share") or 0.0))
        return {name: fmean(values) for name, values in shares.items()}

    def validation(self) -> list[float]:
        values = [evaluation.get("loss", evaluation.get("loss_shifted")) for evaluation in self.evaluations]
        return [value for value in values if value is not None]

    def memory_growth(self) -> float | None:
        """Peak memory of the last quarter of steps over that of the second; the first still allocates buffers."""
        sizes = [line.get("device_bytes") or line.get("memory_bytes") or 0 for line in self.steps]
        before = fmean(sizes[len(sizes) // 4 : len(sizes) // 2])
        return fmean(sizes[-len(sizes) // 4 :]) / before if before else None

    def waiting_share(self) -> float:
        return fmean(line.get("waiting_share") or 0.0 for line in self.steps)


def window_of(values: Sequence[object]) -> int:
    return max(LEAST_WINDOW, len(values) // 10)


def _sums(lines: Sequence[Line], names: Iterable[str], last: Line) -> list[float]:
    """The sum of some terms in each line, had they the weights of the last; only finite ones."""
    named = sorted(names)
    finite = [terms for terms in lines if all(terms[name]["weighted"] is not None for name in named)]
    return [
        sum(terms[name]["weighted"] * last[name]["weight"] / terms[name]["weight"] for name in named)
        for terms in finite
        if named
    ]


def _difference(before: Sequence[float], after: Sequence[float]) -> float:
    """How many standard errors the mean rose by; 0 without a change."""
    change = fmean(after) - fmean(before)
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return change / error if error else math.copysign(math.inf, change) if change else 0.0


def _is_locked(folder: Path) -> bool:
    try:
        check_free(folder)
    except (LockHeld, ConfigError):
        return True
    return False
