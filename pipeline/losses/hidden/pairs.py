"""Which layer of the student meets which layer of the teacher.

In: `HiddenLossSettings`, the manifest of a cache, the student's depth, the terms that ever count. Out: `LayerPairs`,
those for states of rows and those for documents' pooled states. By depth, a cached layer t of the teacher's L meets the
student's layer t / L * n, rounded half up; 0 is the embeddings.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from kdpipe.pipeline.losses.terms import HiddenName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import HiddenLossSettings

MAPPED: Final[tuple[HiddenName, ...]] = ("cosine", "correlation", "mse")
OF_ROWS: Final[tuple[HiddenName, ...]] = (*MAPPED, "position_relations", "cka")
OF_DOCUMENTS: Final[tuple[HiddenName, ...]] = ("document_relations",)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerPair:
    """A layer of the student and one that the cache keeps of the teacher."""

    student: int
    teacher: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPairs:
    """What meets: over states of rows, and over pooled states of documents."""

    rows: tuple[LayerPair, ...] = ()
    pooled: tuple[LayerPair, ...] = ()

    @property
    def students(self) -> tuple[int, ...]:
        """The student's layers that are met anywhere."""
        return tuple(sorted({pair.student for pair in (*self.rows, *self.pooled)}))


def layer_pairs(
    settings: HiddenLossSettings, manifest: Manifest, n_student_layers: int, terms: Collection[HiddenName]
) -> LayerPairs:
    """Pair the layers that the terms need: as named by hand, else every cached layer by its depth."""
    rows = _kept("states of rows", terms, OF_ROWS, [vector.layer for vector in manifest.hidden.rows])
    pooled = _kept("pooled states", terms, OF_DOCUMENTS, [vector.layer for vector in manifest.hidden.pooled])
    if settings.pairs:
        named = [_by_hand(pair, n_student_layers) for pair in settings.pairs]
        pairs = _sorted_out(named, rows, pooled)
    else:
        pairs = LayerPairs(
            rows=tuple(_by_depth(layer, manifest, n_student_layers) for layer in rows),
            pooled=tuple(_by_depth(layer, manifest, n_student_layers) for layer in pooled),
        )
    return LayerPairs(rows=_once_a_student(pairs.rows, settings), pooled=pairs.pooled) if settings.router else pairs


def _kept(what: str, terms: Collection[HiddenName], need: Sequence[HiddenName], layers: list[int]) -> list[int]:
    """The cached layers of a sort that the terms need, none if they need none."""
    asking = [name for name in need if name in terms]
    if asking and not layers:
        again = "--hidden-layers 0.5,1.0" if need is OF_ROWS else "--set hidden.pooled=true"
        raise Incompatible(
            f"the cache keeps no {what}, which losses.weights.{asking[0]} compares",
            hint=f"leave the term out, or cache again with {again}",
        )
    return layers if asking else []


def _by_depth(layer: int, manifest: Manifest, n_student_layers: int) -> LayerPair:
    n_layers = manifest.teacher.n_layers if manifest.teacher is not None else None
    if not n_layers:
        raise Incompatible(
            "the cache does not say how many layers its teacher has, so that none can be paired by depth",
            hint=f"name the pairs, for instance --set losses.hidden.pairs={n_student_layers}:{layer}",
        )
    return LayerPair(student=math.floor(layer / n_layers * n_student_layers + 0.5), teacher=layer)


def _by_hand(pair: str, n_student_layers: int) -> LayerPair:
    student, teacher = pair.split(":")
    number = math.floor(float(student) * n_student_layers + 0.5) if "." in student else int(student)
    if number > n_student_layers:
        raise ConfigError(
            f"losses.hidden.pairs names layer {number} of the student in {pair}, it has {n_student_layers}",
            hint=f"name one from 0, the embeddings, to {n_student_layers}, or a share of the depth such as 0.5",
        )
    return LayerPair(student=number, teacher=int(teacher))


def _sorted_out(named: Sequence[LayerPair], rows: Sequence[int], pooled: Sequence[int]) -> LayerPairs:
    """What is named by hand, where the cache keeps it; a layer that it keeps nowhere is refused, and so is a sort of
    states that is compared and has no pair."""
    if len(set(named)) != len(named):
        raise ConfigError("losses.hidden.pairs names a pair of layers twice", hint="name each once")
    for pair in named:
        if pair.teacher not in (*rows, *pooled):
            raise Incompatible(
                f"losses.hidden.pairs names layer {pair.teacher} of the teacher, {_what_is_kept(rows, pooled)}",
                hint="name one that is there, or cache again with --hidden-layers",
            )
    found = LayerPairs(
        rows=tuple(pair for pair in named if pair.teacher in rows),
        pooled=tuple(pair for pair in named if pair.teacher in pooled),
    )
    for what, kept, has in (("states of rows", rows, found.rows), ("pooled states", pooled, found.pooled)):
        if kept and not has:
            raise Incompatible(
                f"losses.hidden.pairs names no layer whose {what} are kept, {_what_is_kept(rows, pooled)}",
                hint="name a pair with one of these, or leave out the term that compares them",
            )
    return found


def _what_is_kept(rows: Sequence[int], pooled: Sequence[int]) -> str:
    sorts = [("states of rows", rows), ("pooled states", pooled)]
    said = [f"{what} of layers {', '.join(map(str, layers))}" for what, layers in sorts if layers]
    return f"the terms find {' and '.join(said) or 'no states'} in the cache"


def _once_a_student(pairs: tuple[LayerPair, ...], settings: HiddenLossSettings) -> tuple[LayerPair, ...]:
    """A router has one mixture a student layer, which starts out at the first teacher layer it is paired with."""
    first: dict[int, LayerPair] = {}
    for pair in pairs:
        if pair.student in first and settings.pairs:
            raise ConfigError(
                f"losses.hidden.pairs names layer {pair.student} of the student twice, and a router mixes all cached "
                "layers for each",
                hint="name each of the student's layers once, with the cached layer that its mixture starts at",
            )
        first.setdefault(pair.student, pair)
    return tuple(first.values())
