"""`HiddenObjective`: every loss on hidden states, for one micro-batch, with the maps and the router they learn.

In: the student's states by layer, a `MicroBatch` with cached states, coefficients (weight / count). Out: a total to
differentiate, each term's raw sum, what is logged. A term over several pairs is the mean over its pairs. Everything is
float32.
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
from kdpipe.pipeline.losses.hidden.pairs import MAPPED, OF_DOCUMENTS, OF_ROWS, LayerPair, layer_pairs
from kdpipe.pipeline.losses.hidden.relations import document_relations, n_pairs, position_relations
from kdpipe.pipeline.losses.hidden.router import Router
from kdpipe.pipeline.losses.hidden.vectors import correlation, cosine, linear_cka, mse, unit
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, HiddenName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import LossSettings

# One row correlates with nothing, one layer is no mixture.
FEWEST_ROWS: Final = 2
FEWEST_LAYERS: Final = 2
# Keeps the maps' numbers apart from others that are drawn from the run's seed.
MAPS: Final = 0x6D617073
# Maps begin with answers of a tenth of their targets' size: what a random map of full size asks of a student is noise,
# and harmed it (docs/experiments.md).
FIRST_SIZE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenResult:
    """`total` is to be differentiated; `sums` are raw values over a term's rows, pairs or groups, without gradient."""

    total: Tensor
    sums: dict[HiddenName, Tensor]
    logged: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatchedPair:
    """A pair of layers at the rows of a batch: unit states of both, and the student's mapped where that is needed."""

    student_NH: Tensor
    teacher_NW: Tensor
    mapped_NW: Tensor | None
    bounds: list[tuple[int, int]]
    anchors: Anchors | None


@final
class HiddenObjective(nn.Module):
    """Its parameters are `maps.*`, a linear map a pair (a student layer where a router mixes), and `router.logits`."""

    def __init__(
        self,
        settings: LossSettings,
        terms: Collection[HiddenName],
        manifest: Manifest,
        student_widths: Sequence[int],
        seed: int,
    ) -> None:
        """`terms` are those that ever have a weight; `student_widths` of each layer's states, from layer 0 on."""
        super().__init__()
        self._hidden, self._terms = settings.hidden, tuple(name for name in HIDDEN_NAMES if name in terms)
        self._pairs = layer_pairs(settings.hidden, manifest, len(student_widths) - 1, self._terms)
        widths = {vector.layer: vector.width for vector in manifest.hidden.rows}
        self.router = Router(self._pairs.rows, _routed(self._terms, widths)) if settings.hidden.router else None
        if self.router is None and "router_balance" in self._terms:
            raise ConfigError(
                "losses.weights.router_balance has a weight, and there is no router",
                hint="give --set losses.hidden.router=true, or leave the weight out",
            )
        self.maps = nn.ModuleDict()
        if any(name in MAPPED for name in self._terms):
            maps = {self._key(pair): (student_widths[pair.student], widths[pair.teacher]) for pair in self._pairs.rows}
            self.maps.update(_make_maps(maps, seed))

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers that have to be kept in its forward pass."""
        return self._pairs.students

    def wants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The teacher's layers to be read of the cache: states of rows, pooled states."""
        rows = self.router.teachers if self.router is not None else _teachers(self._pairs.rows)
        return rows, _teachers(self._pairs.pooled)

    def counts(self, batch: MicroBatch) -> dict[HiddenName, int]:
        """How many rows, pairs or groups each term sums over in a micro-batch."""
        return {name: self._count(name, batch) for name in self._terms}

    def _count(self, name: HiddenName, batch: MicroBatch) -> int:
        if name in ("cosine", "mse"):
            return len(batch.places_N)
        if name == "position_relations":
            return int(find_anchors(batch, self._hidden.anchors).pairs_BAA.sum())
        if name == "document_relations":
            return n_pairs(self._document_bounds(batch))
        if name == "router_balance":
            return n_groups(batch, self._hidden.group)
        return len(self._row_bounds(batch))

    def forward(
        self, layers: Mapping[int, Tensor], batch: MicroBatch, coefficients: Mapping[HiddenName, float]
    ) -> HiddenResult:
        """The batch's share of the step's loss, for the terms that have a coefficient."""
        found: dict[HiddenName, Tensor] = {}
        device = batch.tokens_BT.device.type
        with torch.autocast(device_type=device, enabled=False):
            if any(name in OF_ROWS for name in coefficients):
                found |= self._over_rows(layers, batch, [name for name in OF_ROWS if name in coefficients])
            if any(name in OF_DOCUMENTS for name in coefficients):
                found["document_relations"] = self._over_documents(layers, batch)
            if self.router is not None and "router_balance" in coefficients:
                found["router_balance"] = n_groups(batch, self._hidden.group) * self.router.balance()
            # An empty slice has the sum 0 and a gradient, whatever the states are.
            total = sum((layer[:0].float().sum() for layer in layers.values()), torch.zeros((), device=device))
            for name, value in found.items():
                total = total + coefficients[name] * value
        logged = self.router.named_weights() if self.router is not None else {}
        return HiddenResult(total=total, sums={name: one.detach() for name, one in found.items()}, logged=logged)

    def _over_rows(
        self, layers: Mapping[int, Tensor], batch: MicroBatch, names: list[HiddenName]
    ) -> dict[HiddenName, Tensor]:
        anchors = find_anchors(batch, self._hidden.anchors) if "position_relations" in names else None
        bounds = self._row_bounds(batch) if "correlation" in names or "cka" in names else []
        teachers = {layer: unit(batch.hidden[layer].float()) for layer in self.wants()[0]}
        students = {pair.student: _rows(layers[pair.student], batch) for pair in self._pairs.rows}
        needs_map = any(name in MAPPED for name in names)
        found: dict[HiddenName, list[Tensor]] = {name: [] for name in names}
        for pair in self._pairs.rows:
            met = _MatchedPair(
                student_NH=students[pair.student],
                teacher_NW=self._target(pair, teachers),
                mapped_NW=self.maps[self._key(pair)](students[pair.student]) if needs_map else None,
                bounds=bounds,
                anchors=anchors,
            )
            for name in names:
                found[name].append(_value(name, met))
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _over_documents(self, layers: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        bounds = self._document_bounds(batch)
        values = [
            document_relations(
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
        """Of the groups that have rows enough to be compared."""
        bounds = group_bounds(batch.sequence_N, len(batch.tokens_BT), self._hidden.group)
        return [(start, end) for start, end in bounds if end - start >= FEWEST_ROWS]

    def _document_bounds(self, batch: MicroBatch) -> list[tuple[int, int]]:
        return group_bounds(documents_of(batch)[:, 0], len(batch.tokens_BT), self._hidden.group)


def _rows(states_BTH: Tensor, batch: MicroBatch) -> Tensor:
    """The student's states at the rows that are learnt from, as unit rows in float32."""
    return unit(states_BTH.flatten(0, 1).index_select(0, batch.places_N).float())


def _value(name: HiddenName, met: _MatchedPair) -> Tensor:
    if name == "position_relations":
        assert met.anchors is not None
        if not len(met.student_NH):
            return met.student_NH.sum()
        return position_relations(met.student_NH, met.teacher_NW, met.anchors)
    if name == "cka":
        return _over_groups(linear_cka, met.student_NH, met.teacher_NW, met.bounds)
    assert met.mapped_NW is not None
    if name == "correlation":
        return _over_groups(correlation, met.mapped_NW, met.teacher_NW, met.bounds)
    return cosine(met.mapped_NW, met.teacher_NW) if name == "cosine" else mse(met.mapped_NW, met.teacher_NW)


def _over_groups(
    value: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, bounds: list[tuple[int, int]]
) -> Tensor:
    values = [value(student[start:end], teacher[start:end]) for start, end in bounds]
    return torch.stack(values).sum() if values else student[:0].sum()


def _teachers(pairs: Iterable[LayerPair]) -> tuple[int, ...]:
    return tuple(sorted({pair.teacher for pair in pairs}))


def _routed(terms: Collection[HiddenName], widths: Mapping[int, int]) -> tuple[int, ...]:
    """The layers that a router mixes: all whose rows are cached."""
    if not any(name in OF_ROWS for name in terms):
        raise ConfigError(
            "losses.hidden.router mixes teacher layers for losses on states of rows, and none of these has a weight",
            hint=f"give one of {', '.join(OF_ROWS)} a weight, or leave the router out",
        )
    layers = tuple(sorted(widths))
    if len(layers) < FEWEST_LAYERS:
        raise Incompatible(
            f"losses.hidden.router mixes teacher layers, and the cache keeps rows of layer {layers[0]} alone",
            hint="leave the router out, or cache again with more --hidden-layers",
        )
    if len(set(widths.values())) > 1:
        kept = ", ".join(f"{widths[layer]} of layer {layer}" for layer in layers)
        raise Incompatible(
            f"losses.hidden.router mixes vectors of one width, and the cache keeps {kept}",
            hint="leave the router out, or cache again with one --hidden-dim",
        )
    return layers


def _make_maps(widths: Mapping[str, tuple[int, int]], seed: int) -> dict[str, nn.Linear]:
    """Small linear maps, drawn on the CPU: equal seeds make equal bits."""
    generator = torch.Generator().manual_seed(seed ^ MAPS)
    maps = {}
    for name, (student_width, width) in widths.items():
        # Made without numbers, so that none are drawn from the generator that others use.
        one = nn.Linear(student_width, width, device="meta", dtype=torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            one.weight.normal_(std=FIRST_SIZE * student_width**-0.5, generator=generator)
            one.bias.zero_()
        maps[name] = one
    return maps
