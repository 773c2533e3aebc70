"""The optimizer of a run: Muon for matrices and AdamW for the rest, or AdamW for everything.

In: `OptimizerSettings` without open defaults, and the trainable parameters. Out: a torch optimizer whose groups hold
their peak learning rate, and its moments as named tensors, for checkpoints. Groups are matrices, tables and vectors of
the student, maps of hidden states, and the router; each has its own learning rate and weight decay.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, assert_never, final

import torch
from torch import Tensor, nn

from kdpipe.pipeline.training.muon import Muon
from kdpipe.schemas.choices import OptimizerName, Role
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.train_settings import OptimizerSettings

GroupName = Role | Literal["maps", "router"]
GROUPS: Final[tuple[GroupName, ...]] = ("matrices", "tables", "vectors", "maps", "router")
# 1e-8 underflows in float16, and a second moment that has underflowed would divide by 0.
EPSILON: Final = {torch.float16: 1e-4}
# Where torch has AdamW in one kernel; 28 M float32 parameters on one CPU core: 19 ms, 98 ms with foreach.
FUSED_ON: Final = ("cuda", "cpu", "xpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """Parameters by name: the student's with their roles, maps of hidden states, the router's."""

    student: Mapping[str, nn.Parameter]
    roles: Mapping[str, Role]
    maps: Mapping[str, nn.Parameter] = field(default_factory=dict)
    router: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All trainable parameters under unique names."""
        parts = {"student": self.student, "maps": self.maps, "router": self.router}
        return {
            f"{part}.{name}": parameter
            for part, parameters in parts.items()
            for name, parameter in parameters.items()
            if parameter.requires_grad
        }

    def groups(self) -> dict[GroupName, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by group, without empty groups."""
        groups: dict[GroupName, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
        for full, parameter in self.named.items():
            part, _, name = full.partition(".")
            group: GroupName = self.roles[name] if part == "student" else "maps" if part == "maps" else "router"
            groups[group].append((full, parameter))
        return {name: members for name, members in groups.items() if members}


def make_optimizer(settings: OptimizerSettings, trainable: Trainable) -> torch.optim.Optimizer:
    """Build the optimizer of a run."""
    groups = trainable.groups()
    if not groups:
        raise KdpipeError("no trainable parameters: all are frozen", hint="unfreeze some, or train with --lora")
    optimizers: list[torch.optim.Optimizer] = []
    assert settings.kind is not None
    matrices = groups.pop("matrices") if settings.kind == "muon" and "matrices" in groups else []
    if matrices:
        optimizers.append(Muon([_group("matrices", "muon", matrices, settings)], momentum=settings.momentum or 0.0))
    if groups:
        optimizers.append(
            _adamw(settings, [_group(name, "adamw", members, settings) for name, members in groups.items()])
        )
    return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)


def _group(
    name: GroupName, optimizer: OptimizerName, members: list[tuple[str, nn.Parameter]], settings: OptimizerSettings
) -> dict[str, Any]:
    lr = getattr(settings.rates, name) or settings.rates.vectors
    return {
        "params": members,
        "lr": lr,
        "base_lr": lr,
        "weight_decay": decay_of(name, settings),
        "group": name,
        "optimizer": optimizer,
    }


def decay_of(name: GroupName, settings: OptimizerSettings) -> float:
    """The weight decay of a group: its own, or the default of its kind."""
    match name:
        case "matrices" | "tables":
            own = getattr(settings.decays, name)
            return settings.weight_decay if own is None else float(own)
        case "vectors":
            return settings.decays.vectors or 0.0
        case "maps" | "router":
            return settings.weight_decay
        case _:
            assert_never(name)


def _adamw(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    parameters = [parameter for group in groups for _, parameter in group["params"]]
    fused = all(parameter.device.type in FUSED_ON for parameter in parameters)
    return torch.optim.AdamW(
        groups,
        betas=(settings.beta1, settings.beta2),
        eps=max((EPSILON.get(parameter.dtype, 1e-8) for parameter in parameters), default=1e-8),
        fused=fused,
    )


@final
class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers that step together and share their groups and states."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads
        for part in self._parts:
            part.step(closure)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to a factor of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each group, for the log."""
    return {group["group"]: group["lr"] for group in optimizer.param_groups}


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Drop all moments."""
    optimizer.state.clear()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The whole state of an optimizer, as tensors named PARAMETER:KEY."""
    return {
        f"{name}:{key}": value
        for name, parameter, _ in _members(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the tensors of `moments` to the bit; names or shapes of another optimizer are refused."""
    left: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(":")
        left.setdefault(name, {})[key] = value
    reset_moments(optimizer)
    for name, parameter, group in _members(optimizer):
        for key, value in left.pop(name, {}).items():
            _check_moment(name, value, parameter, is_count=key == "step")
            # torch counts steps on the CPU unless the kernel that reads them runs elsewhere.
            device = parameter.device if key != "step" or group.get("fused") else torch.device("cpu")
            optimizer.state[parameter][key] = value.to(device, copy=True)
    if left:
        raise KdpipeError(
            f"the checkpoint has optimizer state for {min(left)}, which is not trainable in this run",
            hint="resume with the original settings",
        )


def _check_moment(name: str, value: Tensor, parameter: nn.Parameter, *, is_count: bool) -> None:
    if value.shape != (torch.Size() if is_count else parameter.shape):
        raise KdpipeError(
            f"the optimizer state for {name} has shape {list(value.shape)}, expected {list(parameter.shape)}",
            hint="resume with the original settings",
        )


def _members(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Each parameter with its name and group."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group
