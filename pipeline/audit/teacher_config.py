"""Whether a model can be the teacher of a cache at all: depth, width, vocabulary and length, by its config alone.

In: the shape of a model and a manifest. Out: a sentence for everything in which they differ. The weights are not
needed: a model of another shape is another teacher, and asking it for states that it does not have would fail.
"""

from collections.abc import Iterator
from typing import assert_never

from kdpipe.pipeline.models.model_info import ModelInfo
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import PcaProjection, RandomProjection, State, WholeState


def differences_of_shape(shape: ModelInfo, manifest: Manifest) -> list[str]:
    """Everything that tells a model from the teacher of a cache; nothing where it may be the same."""
    return [
        f"{shape.name} {what}"
        for what in (*_layers(shape, manifest), *_widths(shape, manifest), *_ids(shape, manifest))
    ]


def _layers(shape: ModelInfo, manifest: Manifest) -> Iterator[str]:
    stated = manifest.teacher.n_layers if manifest.teacher is not None else None
    deepest = max((vector.layer for vector in (*manifest.hidden.pooled, *manifest.hidden.rows)), default=0)
    own = "1 layer" if shape.n_layers == 1 else f"{shape.n_layers:,} layers"
    if stated is not None and stated != shape.n_layers:
        yield f"has {own}, the teacher of the cache has {stated:,}"
    if deepest > shape.n_layers:
        yield f"has {own}, the cache keeps states of layer {deepest:,}"


def _widths(shape: ModelInfo, manifest: Manifest) -> Iterator[str]:
    stated = manifest.teacher.hidden_size if manifest.teacher is not None else None
    if stated is not None and stated != shape.width:
        yield f"has a hidden size of {shape.width:,}, the teacher of the cache has {stated:,}"
        return
    keep = manifest.targets.keep
    widths = [("last states", keep.width, shape.last_width)] if isinstance(keep, State) else []
    for vector in (*manifest.hidden.pooled, *manifest.hidden.rows):
        if vector.layer > shape.n_layers:
            continue
        own = shape.widths[vector.layer]
        match vector.projection:
            case WholeState():
                widths.append((f"states of layer {vector.layer}", vector.width, own))
            case PcaProjection(input_width=width):
                widths.append((f"a projection of states of layer {vector.layer}", width, own))
            case RandomProjection():  # takes states of any width
                pass
            case _ as never:
                assert_never(never)
    for what, width, own in widths:
        if width != own:
            yield f"has states of {own:,} numbers, the cache keeps {what} of {width:,}"


def _ids(shape: ModelInfo, manifest: Manifest) -> Iterator[str]:
    n_ids, longest = manifest.vocabulary_size, manifest.plan.sequence_length
    if shape.vocabulary_size < n_ids:
        yield f"has {shape.vocabulary_size:,} rows in its vocabulary, the cache has {n_ids:,} ids"
    if shape.max_positions is not None and shape.max_positions < longest:
        yield f"reads at most {shape.max_positions:,} tokens at once, the cache has sequences of up to {longest:,}"
