"""The optimizer of a run: AdamW, or Muon for the matrices of the layers with AdamW for the rest, as one.

In: `Optimizer` settings and what is learnt, by name. Out: a torch optimizer whose groups know their base rate, and its
moments as named tensors, for checkpoints. Before it: `pipeline/students/student.py`. After it: `step.py`,
`checkpoints.py`. Only matrices decay; norms, biases and other vectors do not.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.stage_two import Optimizer

# DESIGN 4.
TRAINED_RATE: Final = 2e-5
FRESH_RATE: Final = 1e-4
# Below the smallest float16 nothing of 1e-8 is left, and a second moment that has underflowed divides by it.
EPSILON: Final = {torch.float16: 1e-4}
# Where torch has AdamW in one kernel; 28 M float32 parameters on one CPU core: 19 ms, 98 ms with foreach.
FUSED_ON: Final = ("cuda", "cpu", "xpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What is learnt, by name: the student's own, maps of hidden states, the router's.

    `tables` names the student's embeddings and head: matrices that are no layer's, so that Muon leaves them alone.
    """

    student: Mapping[str, nn.Parameter]
    tables: Collection[str] = ()
    maps: Mapping[str, nn.Parameter] = field(default_factory=dict)
    router: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All that moves, each under its own name."""
        groups = {"student": self.student, "maps": self.maps, "router": self.router}
        return {
            f"{group}.{name}": parameter
            for group, parameters in groups.items()
            for name, parameter in parameters.items()
            if parameter.requires_grad
        }


def base_rate(settings: Optimizer, *, fresh: bool, factor: float = 1.0) -> float:
    """The rate of the student: as said, or `factor` of what suits a fresh or a trained one."""
    return settings.lr if settings.lr is not None else factor * (FRESH_RATE if fresh else TRAINED_RATE)


def make_optimizer(settings: Optimizer, learnt: Learnt, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of a run whose student learns at a rate."""
    rates = {"student": lr, "maps": settings.maps_lr or lr, "router": settings.router_lr or lr}
    tables = {f"student.{name}" for name in learnt.tables}
    muon: list[tuple[str, nn.Parameter]] = []
    groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in learnt.named.items():
        kind = name.partition(".")[0]
        if settings.kind == "muon" and kind == "student" and parameter.ndim == 2 and name not in tables:
            muon.append((name, parameter))
        else:
            groups.setdefault((kind, parameter.ndim >= 2), []).append((name, parameter))
    made: list[torch.optim.Optimizer] = []
    if muon:
        made.append(_muon(settings, muon, settings.muon_lr or lr))
    if groups:
        decay = settings.weight_decay
        made.append(_adamw(settings, [_group(n, m, rates[n[0]], decay if n[1] else 0.0) for n, m in groups.items()]))
    if not made:
        raise KdpipeError("nothing is to be learnt: every parameter is frozen", hint="free some, or leave --lora on")
    return made[0] if len(made) == 1 else Together(made)


def _group(key: tuple[str, bool], members: list[tuple[str, nn.Parameter]], lr: float, decay: float) -> dict[str, Any]:
    return {"params": members, "lr": lr, "base_lr": lr, "weight_decay": decay, "kind": key[0]}


def _adamw(settings: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    parameters = [parameter for group in groups for _, parameter in group["params"]]
    fused = all(parameter.device.type in FUSED_ON for parameter in parameters)
    return torch.optim.AdamW(
        groups,
        betas=(settings.beta1, settings.beta2),
        eps=max((EPSILON.get(parameter.dtype, 1e-8) for parameter in parameters), default=1e-8),
        fused=fused,
    )


def _muon(settings: Optimizer, members: list[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Muon:
    """Its steps have the size of AdamW's (Moonlight, arXiv 2502.16982), so that rates mean the same for any shape."""
    group = _group(("muon", True), members, lr, settings.weight_decay)
    # The rate is in the group; torch's types want the argument.
    return torch.optim.Muon(
        [group],
        lr=lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )


@final
class Together(torch.optim.Optimizer):
    """Several optimizers that step as one: groups and states are those of its parts."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads
        """Let each part take its step."""
        for part in self._parts:
            part.step(closure)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to a factor of its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of each kind of group, for the log."""
    return {group["kind"]: group["lr"] for group in optimizer.param_groups}


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Begin again with fresh moments."""
    optimizer.state.clear()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that an optimizer remembers, as tensors named PARAMETER:WHAT."""
    return {
        f"{name}:{key}": value
        for name, parameter, _ in _members(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Remember what `moments` gave, to the bit; names or shapes of another optimizer are refused."""
    left: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(":")
        left.setdefault(name, {})[key] = value
    forget(optimizer)
    for name, parameter, group in _members(optimizer):
        for key, value in left.pop(name, {}).items():
            _check_moment(name, value, parameter, is_count=key == "step")
            # torch counts steps on the CPU unless the kernel that reads them runs elsewhere.
            device = parameter.device if key != "step" or group.get("fused") else torch.device("cpu")
            optimizer.state[parameter][key] = value.to(device, copy=True)
    if left:
        raise KdpipeError(
            f"the optimizer's state speaks of {min(left)}, which this run does not learn",
            hint="resume with the settings that the run began with",
        )


def _check_moment(name: str, value: Tensor, parameter: nn.Parameter, *, is_count: bool) -> None:
    if value.shape != (torch.Size() if is_count else parameter.shape):
        raise KdpipeError(
            f"the optimizer's state of {name} has the shape {list(value.shape)}, the parameter {list(parameter.shape)}",
            hint="resume with the settings that the run began with",
        )


def _members(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Each parameter with its name and group."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group
