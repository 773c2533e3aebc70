"""Which layer of the student is compared with which layer of the teacher.

In: `HiddenLossSettings`, the manifest of a cache, the student's depth, all terms with a weight. Out: `LayerPairs` for
states of rows and for documents' pooled states. By depth, layer t of the teacher's L is paired with the student's layer
t / L * n, rounded half up; 0 is the embeddings.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from kdpipe.pipeline.losses.terms import HiddenName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.losses import HIDDEN_LOSSES
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import HiddenLossSettings

OVER_ROWS: Final = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.compares_rows)
OVER_DOCUMENTS: Final = tuple(name for name, loss in HIDDEN_LOSSES.items() if loss.over == "document_pairs")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerPair:
    """A layer of the student and a cached layer of the teacher."""

    student: int
    teacher: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPairs:
    """Pairs for states of rows, and for pooled states of documents."""

    rows: tuple[LayerPair, ...] = ()
    pooled: tuple[LayerPair, ...] = ()

    @property
    def students(self) -> tuple[int, ...]:
        """All layers of the student in a pair."""
        return tuple(sorted({pair.student for pair in (*self.rows, *self.pooled)}))


def layer_pairs(
    settings: HiddenLossSettings, manifest: Manifest, n_student_layers: int, terms: Collection[HiddenName]
) -> LayerPairs:
    """Pair the layers that the terms need: as set in `losses.hidden.pairs`, else every cached layer by depth."""
    rows = _cached_layers("states of rows", terms, OVER_ROWS, [vector.layer for vector in manifest.hidden.rows])
    pooled = _cached_layers("pooled states", terms, OVER_DOCUMENTS, [vector.layer for vector in manifest.hidden.pooled])
    if settings.pairs:
        named = [_explicit_pair(pair, n_student_layers) for pair in settings.pairs]
        pairs = _split_by_states(named, rows, pooled)
    else:
        pairs = LayerPairs(
            rows=tuple(_by_depth(layer, manifest, n_student_layers) for layer in rows),
            pooled=tuple(_by_depth(layer, manifest, n_student_layers) for layer in pooled),
        )
    return LayerPairs(rows=_first_pairs(pairs.rows, settings), pooled=pairs.pooled) if settings.router else pairs


def _cached_layers(
    what: str, terms: Collection[HiddenName], need: Sequence[HiddenName], layers: list[int]
) -> list[int]:
    """The cached layers for the terms of `need`; none without such a term."""
    needing = [name for name in need if name in terms]
    if needing and not layers:
        again = "--hidden-layers 0.5,1.0" if need is OVER_ROWS else "--set hidden.pooled=true"
        raise Incompatible(
            f"the cache has no {what}, which losses.weights.{needing[0]} compares",
            hint=f"remove the weight, or cache again with {again}",
        )
    return layers if needing else []


def _by_depth(layer: int, manifest: Manifest, n_student_layers: int) -> LayerPair:
    n_layers = manifest.teacher.n_layers if manifest.teacher is not None else None
    if not n_layers:
        raise Incompatible(
            "layers cannot be paired by depth: the cache does not record the teacher's number of layers",
            hint=f"set the pairs explicitly, e.g. --set losses.hidden.pairs={n_student_layers}:{layer}",
        )
    return LayerPair(student=math.floor(layer / n_layers * n_student_layers + 0.5), teacher=layer)


def _explicit_pair(pair: str, n_student_layers: int) -> LayerPair:
    student, teacher = pair.split(":")
    number = math.floor(float(student) * n_student_layers + 0.5) if "." in student else int(student)
    if number > n_student_layers:
        raise ConfigError(
            f"losses.hidden.pairs: {pair} uses student layer {number}; the student has {n_student_layers}",
            hint=f"use 0 (the embeddings) to {n_student_layers}, or a share of the depth such as 0.5",
        )
    return LayerPair(student=number, teacher=int(teacher))


def _split_by_states(named: Sequence[LayerPair], rows: Sequence[int], pooled: Sequence[int]) -> LayerPairs:
    """Explicit pairs, for the states that the cache has of their layer; refuses layers without any cached states, and
    compared states without a pair."""
    if len(set(named)) != len(named):
        raise ConfigError("duplicate pair of layers in losses.hidden.pairs", hint="remove the duplicate")
    for pair in named:
        if pair.teacher not in (*rows, *pooled):
            raise Incompatible(
                f"losses.hidden.pairs uses teacher layer {pair.teacher}; {_cached_states(rows, pooled)}",
                hint="use a cached layer, or cache again with --hidden-layers",
            )
    pairs = LayerPairs(
        rows=tuple(pair for pair in named if pair.teacher in rows),
        pooled=tuple(pair for pair in named if pair.teacher in pooled),
    )
    for what, cached, paired in (("states of rows", rows, pairs.rows), ("pooled states", pooled, pairs.pooled)):
        if cached and not paired:
            raise Incompatible(
                f"losses.hidden.pairs has no layer with cached {what}; {_cached_states(rows, pooled)}",
                hint="add a pair with one of these layers, or remove the weight of the loss that compares them",
            )
    return pairs


def _cached_states(rows: Sequence[int], pooled: Sequence[int]) -> str:
    kinds = [("states of rows", rows), ("pooled states", pooled)]
    parts = [f"{what} of layers {', '.join(map(str, layers))}" for what, layers in kinds if layers]
    return f"the cache has {' and '.join(parts) or 'no states'} for these losses"


def _first_pairs(pairs: tuple[LayerPair, ...], settings: HiddenLossSettings) -> tuple[LayerPair, ...]:
    """A router has one mixture per student layer, initialized at the first teacher layer it is paired with."""
    first: dict[int, LayerPair] = {}
    for pair in pairs:
        if pair.student in first and settings.pairs:
            raise ConfigError(
                f"losses.hidden.pairs has student layer {pair.student} twice; a router has one "
                "mixture of all cached layers for each",
                hint="list each student layer once, with the cached layer its mixture is initialized at",
            )
        first.setdefault(pair.student, pair)
    return tuple(first.values())
