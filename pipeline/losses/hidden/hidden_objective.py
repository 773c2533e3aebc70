"""`HiddenObjective`: every loss on hidden states, for one micro-batch, with its trainable maps and router.

In: the student's states by layer, a `MicroBatch` with cached states, coefficients (weight / count). Out: a total to
differentiate, each term's raw sum, numbers for the logs. A term over several pairs is the mean over its pairs.
Everything is float32.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.hidden.grouping import (
    Anchors,
    document_means,
    documents_of,
    find_anchors,
    group_bounds,
    n_groups,
)
from kdpipe.pipeline.losses.hidden.pairs import OVER_DOCUMENTS, OVER_ROWS, LayerPair, layer_pairs
from kdpipe.pipeline.losses.hidden.relations import n_pairs
from kdpipe.pipeline.losses.hidden.router import Router
from kdpipe.pipeline.losses.hidden.vectors import unit
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, HiddenName, function_of
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.losses import HIDDEN_LOSSES, HiddenLoss
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import LossSettings

# A correlation needs two rows, a mixture two layers.
FEWEST_ROWS: Final = 2
FEWEST_LAYERS: Final = 2
OVER_MIXTURES: Final = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.over == "mixtures")
# Separates the maps' random numbers from others drawn with the run's seed.
MAPS: Final = 0x6D617073
# Maps start with outputs of a tenth of their targets' size: gradients through a random map of full size are noise, and
# harmed students (docs/experiments.md).
FIRST_SIZE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenResult:
    """`total` is differentiable; `sums` are raw, over a term's rows, pairs or groups, without gradient."""

    total: Tensor
    sums: dict[HiddenName, Tensor]
    logged: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatchedPair:
    """A pair of layers at the rows of a batch: unit states of both, and the student's mapped states where needed."""

    student_NH: Tensor
    teacher_NW: Tensor
    mapped_NW: Tensor | None
    bounds: list[tuple[int, int]]
    anchors: Anchors | None


@final
class HiddenObjective(nn.Module):
    """Parameters: `maps.*`, a linear map per pair (per student layer with a router), and `router.logits`."""

    def __init__(
        self,
        settings: LossSettings,
        terms: Collection[HiddenName],
        manifest: Manifest,
        student_widths: Sequence[int],
        seed: int,
    ) -> None:
        """`terms`: all that ever have a weight; `student_widths`: of each layer's states, from layer 0 on."""
        super().__init__()
        self._hidden, self._terms = settings.hidden, tuple(name for name in HIDDEN_NAMES if name in terms)
        self._pairs = layer_pairs(settings.hidden, manifest, len(student_widths) - 1, self._terms)
        widths = {vector.layer: vector.width for vector in manifest.hidden.rows}
        self.router = Router(self._pairs.rows, _routed(self._terms, widths)) if settings.hidden.router else None
        if self.router is None and any(name in OVER_MIXTURES for name in self._terms):
            raise ConfigError(
                "losses.weights.router_balance is set, but there is no router",
                hint="add --set losses.hidden.router=true, or remove the weight",
            )
        self.maps = nn.ModuleDict()
        if any(HIDDEN_LOSSES[name].mapped for name in self._terms):
            maps = {self._key(pair): (student_widths[pair.student], widths[pair.teacher]) for pair in self._pairs.rows}
            self.maps.update(_make_maps(maps, seed))

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers whose states the forward pass must return."""
        return self._pairs.students

    def wants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The teacher's layers to read from the cache: for states of rows, for pooled states."""
        rows = self.router.teachers if self.router is not None else _teachers(self._pairs.rows)
        return rows, _teachers(self._pairs.pooled)

    def counts(self, batch: MicroBatch) -> dict[HiddenName, int]:
        """How many rows, pairs or groups each term sums over in a micro-batch."""
        return {name: self._count(name, batch) for name in self._terms}

    def _count(self, name: HiddenName, batch: MicroBatch) -> int:
        match HIDDEN_LOSSES[name].over:
            case "rows":
                return len(batch.places_N)
            case "groups":
                return len(self._row_bounds(batch))
            case "anchor_pairs":
                return int(find_anchors(batch, self._hidden.anchors).pairs_BAA.sum())
            case "document_pairs":
                return n_pairs(self._document_bounds(batch))
            case "mixtures":
                return n_groups(batch, self._hidden.group)

    def forward(
        self, layers: Mapping[int, Tensor], batch: MicroBatch, coefficients: Mapping[HiddenName, float]
    ) -> HiddenResult:
        """The batch's share of the step's loss, for the terms that have a coefficient."""
        values: dict[HiddenName, Tensor] = {}
        device = batch.tokens_BT.device.type
        with torch.autocast(device_type=device, enabled=False):
            if row_names := [name for name in OVER_ROWS if name in coefficients]:
                values |= self._over_rows(layers, batch, row_names)
            for name in (name for name in OVER_DOCUMENTS if name in coefficients):
                values[name] = self._over_documents(name, layers, batch)
            for name in (name for name in OVER_MIXTURES if name in coefficients):
                balance = function_of(HIDDEN_LOSSES[name].function)(self.router)
                values[name] = n_groups(batch, self._hidden.group) * balance
            # An empty slice has the sum 0 and a gradient, whatever the states are.
            total = sum((layer[:0].float().sum() for layer in layers.values()), torch.zeros((), device=device))
            for name, value in values.items():
                total = total + coefficients[name] * value
        logged = self.router.named_weights() if self.router is not None else {}
        return HiddenResult(total=total, sums={name: value.detach() for name, value in values.items()}, logged=logged)

    def _over_rows(
        self, layers: Mapping[int, Tensor], batch: MicroBatch, names: list[HiddenName]
    ) -> dict[HiddenName, Tensor]:
        over = {HIDDEN_LOSSES[name].over for name in names}
        anchors = find_anchors(batch, self._hidden.anchors) if "anchor_pairs" in over else None
        bounds = self._row_bounds(batch) if "groups" in over else []
        teachers = {layer: unit(batch.hidden[layer].float()) for layer in self.wants()[0]}
        students = {pair.student: _rows(layers[pair.student], batch) for pair in self._pairs.rows}
        needs_map = any(HIDDEN_LOSSES[name].mapped for name in names)
        values: dict[HiddenName, list[Tensor]] = {name: [] for name in names}
        for pair in self._pairs.rows:
            matched = _MatchedPair(
                student_NH=students[pair.student],
                teacher_NW=self._target(pair, teachers),
                mapped_NW=self.maps[self._key(pair)](students[pair.student]) if needs_map else None,
                bounds=bounds,
                anchors=anchors,
            )
            for name in names:
                values[name].append(_value(HIDDEN_LOSSES[name], matched))
        return {name: torch.stack(of_pairs).mean() for name, of_pairs in values.items()}

    def _over_documents(self, name: HiddenName, layers: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        bounds, function = self._document_bounds(batch), function_of(HIDDEN_LOSSES[name].function)
        values = [
            function(
                unit(document_means(layers[pair.student], batch)), unit(batch.pooled[pair.teacher].float()), bounds
            )
            for pair in self._pairs.pooled
        ]
        return torch.stack(values).mean()

    def _target(self, pair: LayerPair, teachers: Mapping[int, Tensor]) -> Tensor:
        return teachers[pair.teacher] if self.router is None else self.router.target(pair.student, teachers)

    def _key(self, pair: LayerPair) -> str:
        return f"student{pair.student}" + (f"_teacher{pair.teacher}" if self.router is None else "")

    def _row_bounds(self, batch: MicroBatch) -> list[tuple[int, int]]:
        """Bounds of the groups with enough rows to be compared."""
        bounds = group_bounds(batch.sequence_N, len(batch.tokens_BT), self._hidden.group)
        return [(start, end) for start, end in bounds if end - start >= FEWEST_ROWS]

    def _document_bounds(self, batch: MicroBatch) -> list[tuple[int, int]]:
        return group_bounds(documents_of(batch)[:, 0], len(batch.tokens_BT), self._hidden.group)


def _rows(states_BTH: Tensor, batch: MicroBatch) -> Tensor:
    """The student's states at the trained rows, as unit rows in float32."""
    return unit(states_BTH.flatten(0, 1).index_select(0, batch.places_N).float())


def _value(loss: HiddenLoss, pair: _MatchedPair) -> Tensor:
    """A loss of one pair of layers, summed over rows, groups or pairs of anchors."""
    function = function_of(loss.function)
    student = pair.mapped_NW if loss.mapped else pair.student_NH
    assert student is not None
    if loss.over == "rows":
        return function(student, pair.teacher_NW)
    if loss.over == "groups":
        return _over_groups(function, student, pair.teacher_NW, pair.bounds)
    assert loss.over == "anchor_pairs" and pair.anchors is not None
    return function(student, pair.teacher_NW, pair.anchors) if len(student) else student.sum()


def _over_groups(
    value: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, bounds: list[tuple[int, int]]
) -> Tensor:
    values = [value(student[start:end], teacher[start:end]) for start, end in bounds]
    return torch.stack(values).sum() if values else student[:0].sum()


def _teachers(pairs: Iterable[LayerPair]) -> tuple[int, ...]:
    return tuple(sorted({pair.teacher for pair in pairs}))


def _routed(terms: Collection[HiddenName], widths: Mapping[int, int]) -> tuple[int, ...]:
    """The layers that a router mixes: all with cached states of rows."""
    if not any(name in OVER_ROWS for name in terms):
        raise ConfigError(
            "losses.hidden.router is set, but no loss on states of rows has a weight",
            hint=f"set a weight for one of {', '.join(OVER_ROWS)}, or remove losses.hidden.router",
        )
    layers = tuple(sorted(widths))
    if len(layers) < FEWEST_LAYERS:
        raise Incompatible(
            f"losses.hidden.router needs at least two cached layers; the cache has states of layer {layers[0]} only",
            hint="remove losses.hidden.router, or cache again with more --hidden-layers",
        )
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{widths[layer]} (layer {layer})" for layer in layers)
        raise Incompatible(
            f"losses.hidden.router needs cached layers of equal width; the cache has widths {listed}",
            hint="remove losses.hidden.router, or cache again with one --hidden-dim",
        )
    return layers


def _make_maps(widths: Mapping[str, tuple[int, int]], seed: int) -> dict[str, nn.Linear]:
    """Small random linear maps, drawn on the CPU: equal seeds give equal bits."""
    generator = torch.Generator().manual_seed(seed ^ MAPS)
    maps = {}
    for name, (student_width, width) in widths.items():
        # Created empty, so that nothing is drawn from the global generator.
        linear = nn.Linear(student_width, width, device="meta", dtype=torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            linear.weight.normal_(std=FIRST_SIZE * student_width**-0.5, generator=generator)
            linear.bias.zero_()
        maps[name] = linear
    return maps
