"""Which optimizer and learning rates a student gets when nothing is said, and why.

In: `Optimizer` settings as given, what is known of the student. Out: settings in which everything is settled, and the
reason for a person to read. `benchmarks/optimizer_sweep.py` searches for better numbers by size of student.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from kdpipe.schemas.choices import OptimizerName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.stage_two import Optimizer, Rates

StudentKind = Literal["fresh", "pretrained", "lora"]
MOMENTUM: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Peak learning rates of a kind of student."""

    matrices: float
    tables: float
    vectors: float


DEFAULT_OPTIMIZER: Final[dict[StudentKind, OptimizerName]] = {"fresh": "adamw", "pretrained": "adamw", "lora": "adamw"}
# A Muon step has the root mean square of an AdamW step, so both start from the same learning rates.
DEFAULTS: Final[dict[StudentKind, Defaults]] = {
    "fresh": Defaults(matrices=1e-4, tables=1e-4, vectors=1e-4),
    "pretrained": Defaults(matrices=2e-5, tables=2e-5, vectors=2e-5),
    "lora": Defaults(matrices=2e-5, tables=2e-5, vectors=2e-5),
}


def settle(settings: Optimizer, student: StudentKind, *, factor: float = 1.0) -> Optimizer:
    """Settings with optimizer, learning rates and momentum filled in; `factor` is the guard preset's, on defaults."""
    kind = settings.kind or DEFAULT_OPTIMIZER[student]
    if settings.momentum is not None and kind != "muon":
        raise ConfigError(
            f"optimizer.momentum is for muon, and {student} students are trained with {kind}",
            hint="give --optimizer muon, or leave it out",
        )
    defaults = DEFAULTS[student]
    lr = settings.lr if settings.lr is not None else factor * defaults.matrices
    scale = lr / defaults.matrices
    own = settings.rates
    rates = Rates(
        matrices=own.matrices or lr,
        tables=own.tables or scale * defaults.tables,
        vectors=own.vectors or scale * defaults.vectors,
        maps=own.maps,
        router=own.router,
    )
    momentum = settings.momentum or MOMENTUM if kind == "muon" else None
    return settings.model_copy(update={"kind": kind, "lr": lr, "rates": rates, "momentum": momentum})


def reason(given: Optimizer, settled: Optimizer, student: StudentKind, n_parameters: int) -> str:
    """The choice and what it follows from, as in `fresh, 2.6 M parameters: adamw 0.0001, tables 0.0001, ...`."""
    rates, others = settled.rates, "" if settled.kind == "adamw" else " (adamw)"
    said = [name for name in ("kind", "lr") if getattr(given, name) is not None]
    said += [f"rates.{name}" for name in ("matrices", "tables", "vectors") if getattr(given.rates, name) is not None]
    by = f"; set: {', '.join(f'optimizer.{name}' for name in said)}" if said else ""
    return (
        f"{student}, {_millions(n_parameters)} parameters: {settled.kind} {rates.matrices:.3g}, "
        f"tables {rates.tables:.3g}, vectors {rates.vectors:.3g}{others}{by}"
    )


def shares(optimizer: torch.optim.Optimizer) -> str:
    """How much of what is trained each group holds, and which optimizer moves it."""
    sizes = {
        (group["optimizer"], group["group"]): sum(each.numel() for each in group["params"])
        for group in optimizer.param_groups
    }
    total = sum(sizes.values())
    lines = [f"{by} moves {_millions(n)} of {name} ({n / total:.0%})" for (by, name), n in sizes.items()]
    return ", ".join(lines)


def _millions(n: int) -> str:
    return f"{n / 1e6:.3g} M" if n < 1e9 else f"{n / 1e9:.3g} B"
