"""Default optimizer and learning rates by kind and size of student.

In: `OptimizerSettings` as given, kind and size of the student. Out: settings without open defaults, and their reason as
a line. The numbers come from `benchmarks/optimizer_sweep.py`: learning rates fall with a power of the number of
parameters, which interpolates between the sizes that were measured.
"""

from dataclasses import dataclass
from typing import Final, Literal

from kdpipe.schemas.choices import OptimizerName
from kdpipe.schemas.counts import compact
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import LARGEST_RATE, LearningRates, OptimizerSettings

StudentKind = Literal["fresh", "pretrained", "lora"]
MOMENTUM: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Peak learning rates at a million parameters, and the powers of the size by which they fall.

    `power` is for fewer parameters, `large_power` for more; that of tables is then `large_tables_power`.
    """

    matrices: float
    tables: float
    vectors: float
    power: float
    large_power: float
    large_tables_power: float

    def at(self, n_parameters: int) -> "Defaults":
        """The learning rates at a size, to two digits, more than any sweep resolves."""
        size = n_parameters / 1e6
        powers = (self.large_power, self.large_tables_power) if size > 1 else (self.power, self.power)
        factor, tables_factor = (size**-power for power in powers)
        matrices, vectors, tables = (
            float(f"{lr:.2g}") for lr in (factor * self.matrices, factor * self.vectors, tables_factor * self.tables)
        )
        flat = {"power": 0.0, "large_power": 0.0, "large_tables_power": 0.0}
        return Defaults(matrices=matrices, tables=tables, vectors=vectors, **flat)


def _defaults(matrices: float, tables: float, power: float, large: float, large_tables: float) -> Defaults:
    """Vectors have the learning rate of matrices."""
    return Defaults(
        matrices=matrices,
        tables=tables,
        vectors=matrices,
        power=power,
        large_power=large,
        large_tables_power=large_tables,
    )


DEFAULT_OPTIMIZER: Final[dict[StudentKind, OptimizerName]] = {"fresh": "muon", "pretrained": "adamw", "lora": "adamw"}
# docs/experiments.md#optimizer-and-learning-rates
DEFAULTS: Final[dict[tuple[StudentKind, OptimizerName], Defaults]] = {
    ("fresh", "muon"): _defaults(0.015, 0.1, 0.4, 0.2, 0.9),
    ("fresh", "adamw"): _defaults(0.003, 0.03, 0.4, 0.4, 0.4),
    ("pretrained", "muon"): _defaults(0.003, 0.03, 0.65, 0.65, 0.65),
    ("pretrained", "adamw"): _defaults(0.003, 0.03, 0.65, 0.65, 0.65),
    ("lora", "muon"): _defaults(0.006, 0.006, 0.4, 0.4, 0.4),
    ("lora", "adamw"): _defaults(0.006, 0.006, 0.4, 0.4, 0.4),
}


def fill_defaults(
    settings: OptimizerSettings, student: StudentKind, n_parameters: int, *, factor: float = 1.0
) -> OptimizerSettings:
    """Fill in optimizer, learning rates and momentum; default learning rates are scaled by `factor`."""
    kind = settings.kind or DEFAULT_OPTIMIZER[student]
    if settings.momentum is not None and kind != "muon":
        raise ConfigError(
            f"optimizer.momentum is for muon, but {student} students are trained with {kind}",
            hint="give --optimizer muon, or omit it",
        )
    defaults = DEFAULTS[student, kind].at(n_parameters)
    lr = settings.lr if settings.lr is not None else factor * defaults.matrices
    scale = lr / defaults.matrices
    own = settings.rates
    values = {
        "matrices": own.matrices or lr,
        "tables": own.tables or scale * defaults.tables,
        "vectors": own.vectors or scale * defaults.vectors,
    }
    if too_large := [name for name, value in values.items() if value > LARGEST_RATE]:
        name = too_large[0]
        raise ConfigError(
            f"optimizer.lr {lr:g} scales the learning rate of {name} to {values[name]:g}, above {LARGEST_RATE:g}",
            hint=f"give a smaller --lr, or set optimizer.rates.{name}",
        )
    momentum = settings.momentum or MOMENTUM if kind == "muon" else None
    rates = LearningRates(**values, maps=own.maps, router=own.router)
    return settings.model_copy(update={"kind": kind, "lr": lr, "rates": rates, "momentum": momentum})


def reason(given: OptimizerSettings, settled: OptimizerSettings, student: StudentKind, n_parameters: int) -> str:
    """The choice and its reason, such as `fresh, 2.6 M parameters: adamw 0.0001, tables 0.0001, ...`."""
    rates, others = settled.rates, "" if settled.kind == "adamw" else " (adamw)"
    names = [name for name in ("kind", "lr") if getattr(given, name) is not None]
    names += [f"rates.{name}" for name in ("matrices", "tables", "vectors") if getattr(given.rates, name) is not None]
    by = f"; set: {', '.join(f'optimizer.{name}' for name in names)}" if names else ""
    return (
        f"{student}, {compact(n_parameters)} parameters: {settled.kind} {rates.matrices:.3g}, "
        f"tables {rates.tables:.3g}, vectors {rates.vectors:.3g}{others}{by}"
    )


def rates_reason(given: OptimizerSettings, student: StudentKind, n_parameters: int) -> str:
    """Why the learning rates are what they are: set, or the defaults for a student."""
    names = ["optimizer.lr"] if given.lr is not None else []
    names += [f"optimizer.rates.{name}" for name in ("matrices", "tables", "vectors") if getattr(given.rates, name)]
    kind = {"fresh": "random init", "pretrained": "pretrained", "lora": "LoRA"}[student]
    default = f"default for {kind} with {compact(n_parameters)} parameters"
    return f"learning rates: {default}" if not names else f"learning rates: {' and '.join(names)} set, others follow"
