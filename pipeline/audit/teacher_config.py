"""Whether a teacher can be that of a cache at all: depth, width, vocabulary and length, by its description alone.

In: a `TeacherInfo` and a manifest. Out: one sentence per difference. No weights are loaded: a model of another size is
another teacher.
"""

from collections.abc import Iterator
from typing import assert_never

from kdpipe.pipeline.teachers import TeacherInfo
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import PcaProjection, RandomProjection, WholeState


def teacher_info_differences(info: TeacherInfo, manifest: Manifest) -> list[str]:
    """Every difference between a teacher's description and the teacher of a cache."""
    differences = [*_ids(info, manifest)]
    if info.widths:
        differences = [*_layers(info, manifest), *_widths(info, manifest), *differences]
    return [f"{info.name} {what}" for what in differences]


def _layers(info: TeacherInfo, manifest: Manifest) -> Iterator[str]:
    n_layers = len(info.widths) - 1
    stated = manifest.teacher.n_layers if manifest.teacher is not None else None
    deepest = max((vector.layer for vector in (*manifest.hidden.pooled, *manifest.hidden.rows)), default=0)
    own = "1 layer" if n_layers == 1 else f"{n_layers:,} layers"
    if stated is not None and stated != n_layers:
        yield f"has {own}, the teacher of the cache has {stated:,}"
    if deepest > n_layers:
        yield f"has {own}, the cache has states of layer {deepest:,}"


def _widths(info: TeacherInfo, manifest: Manifest) -> Iterator[str]:
    stated = manifest.teacher.hidden_size if manifest.teacher is not None else None
    if stated is not None and stated != info.widths[0]:
        yield f"has a hidden size of {info.widths[0]:,}, the teacher of the cache has {stated:,}"
        return
    state_width = manifest.targets.keep.state_width
    widths = [("last states", state_width, info.widths[-1])] if state_width else []
    for vector in (*manifest.hidden.pooled, *manifest.hidden.rows):
        if vector.layer >= len(info.widths):
            continue
        own = info.widths[vector.layer]
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
            yield f"has states of {own:,} numbers, the cache has {what} of {width:,}"


def _ids(info: TeacherInfo, manifest: Manifest) -> Iterator[str]:
    n_ids, longest = manifest.vocabulary_size, manifest.plan.sequence_length
    if info.vocabulary_size is not None and info.vocabulary_size < n_ids:
        yield f"has {info.vocabulary_size:,} rows in its vocabulary, the cache has {n_ids:,} ids"
    if info.max_positions is not None and info.max_positions < longest:
        yield f"reads at most {info.max_positions:,} tokens at once, the cache has sequences of up to {longest:,}"
