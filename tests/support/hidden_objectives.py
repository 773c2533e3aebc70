"""A `HiddenObjective` beside its float64 twin: both compute the same terms of the same batch.

In: terms, settings, a batch, a student's states. Out: sums, counts, gradients by name.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.losses.terms import HiddenName
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import LossSettings
from support.hidden_batches import STUDENT_LAYERS, STUDENT_WIDTH, manifest_with
from support.hidden_twins import TWINS, Case

# By depth, layers 6 and 12 of 12 meet layers 2 and 4 of 4.
PAIRS = ((2, 6), (4, 12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A term's sum and count, and the gradient of the sum by name: `student2`, `maps...`, `router.logits`."""

    value: Tensor
    count: int
    gradients: Mapping[str, Tensor]


def losses_with(**hidden: Any) -> LossSettings:
    """Settings of losses, those of hidden states given."""
    return LossSettings.model_validate({"hidden": {"group": 2, "anchors": 5} | hidden})


def objective_with(
    terms: Collection[HiddenName], settings: LossSettings | None = None, manifest: Manifest | None = None, seed: int = 0
) -> HiddenObjective:
    """Over the small student; maps have a bias and the mixtures are uneven, so that every part of both is tested."""
    made = HiddenObjective(
        settings or losses_with(), terms, manifest or manifest_with(), [STUDENT_WIDTH] * (STUDENT_LAYERS + 1), seed
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.endswith("weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def ask(
    objective: HiddenObjective, name: HiddenName, batches: Sequence[MicroBatch], states: Sequence[Mapping[int, Tensor]]
) -> Answer:
    """The sum of one term over micro-batches, with gradients that add up; states of 16 bits are met under autocast."""
    count = sum(objective.counts(batch).get(name, 0) for batch in batches)
    objective.zero_grad()
    value = torch.zeros(())
    for batch, layers in zip(batches, states, strict=True):
        half = next(iter(layers.values())).dtype != torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            result = objective(layers, batch, {name: 1.0})
        result.total.backward()
        assert torch.equal(result.total.detach(), result.sums[name])
        value = value + result.sums[name]
    inputs: dict[str, list[Tensor]] = {}
    for layers in states:
        for layer, states_BTH in layers.items():
            grad = states_BTH.grad if states_BTH.grad is not None else torch.zeros_like(states_BTH)
            inputs.setdefault(f"student{layer}", []).append(grad)
    found = {layer: torch.cat(parts) for layer, parts in inputs.items()}
    found |= {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in objective.named_parameters()}
    return Answer(value=value, count=count, gradients={n: g.detach().clone() for n, g in found.items()})


def ask_twin(objective: HiddenObjective, name: HiddenName, batch: MicroBatch, layers: Mapping[int, Tensor]) -> Answer:
    """The same by the twin, from the objective's parameters in float64."""
    doubles = {layer: states.detach().double().requires_grad_() for layer, states in layers.items()}
    parameters = {n: p.detach().double().requires_grad_() for n, p in objective.named_parameters()}
    values, counts = [], []
    for row, (student, teacher) in enumerate(PAIRS):
        case = _case(doubles[student], batch, parameters, row, teacher)
        value, count = TWINS[name](case)
        values.append(value)
        counts.append(count)
    total = torch.stack(values).mean()
    inputs = {f"student{layer}": states for layer, states in doubles.items()} | parameters
    gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True) if total.requires_grad else []
    found = {
        n: gradient if gradient is not None else torch.zeros_like(tensor)
        for (n, tensor), gradient in zip(inputs.items(), gradients or [None] * len(inputs), strict=True)
    }
    return Answer(value=total.detach(), count=counts[0], gradients=found)


def _case(states_BTH: Tensor, batch: MicroBatch, parameters: Mapping[str, Tensor], row: int, teacher: int) -> Case:
    student = PAIRS[row][0]
    logits = parameters.get("router.logits")
    key = f"maps.student{student}" + ("" if logits is not None else f"_teacher{teacher}")
    mixture = {}
    if logits is not None:
        exps = logits[row].exp()
        mixture = {layer: weight for (_, layer), weight in zip(PAIRS, exps / exps.sum(), strict=True)}
    return Case(
        states_BTH=states_BTH,
        batch=batch,
        teacher=teacher,
        group=2,
        anchors=5,
        map=(parameters[f"{key}.weight"], parameters[f"{key}.bias"]) if f"{key}.weight" in parameters else None,
        mixture=mixture,
        logits_SL=logits,
    )
