"""The teacher as stage one needs it: who it is, what it is asked, what is taken from it once, and its answers.

In: settings and the tokenizer. Out: a `Speaker`; for a cache of tokens only, one who says nothing.
Before it: `pipeline/teachers`, `pipeline/targets`, `pipeline/hidden.py`. After it: `identity.py`, `parts.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.pipeline.capture.sequences import without_teacher
from kdpipe.pipeline.data.pieces import Piece
from kdpipe.pipeline.data.tokenizer import LoadedTokenizer
from kdpipe.pipeline.hidden import fit_pca, hidden_spec
from kdpipe.pipeline.targets.spec import OutputHead, target_spec
from kdpipe.pipeline.teachers import Answer, Asked, Teacher, devices
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.pipeline.teachers.loading import load
from kdpipe.pipeline.teachers.local import LocalTeacher
from kdpipe.pipeline.teachers.shapes import ModelShape, check_lengths, check_vocabulary, read_shape
from kdpipe.schemas import manifest
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.stage_one import StageOne
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, State, TargetSpec, Vector, WholeState

DEFAULT_LENGTH = 2048
Table = npt.NDArray[Any]
_DTYPES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
# Tokens of a batch, padding included: a CPU is busy with few, a GPU needs many.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Whoever answers, and what is known of it; `teacher` and `facts` are None for a cache of tokens only."""

    teacher: Teacher | None
    facts: manifest.Teacher | None
    targets: TargetSpec
    hidden: HiddenSpec
    sequence_length: int
    batch_tokens: int

    def answers(self, batches: Iterable[Sequence[Piece]], asked: Asked) -> Iterator[Answer]:
        """Answers, batch after batch."""
        return without_teacher(batches) if self.teacher is None else self.teacher.answers(batches, asked)

    def measured(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions."""
        return None if self.teacher is None else self.teacher.measured()


def open_speaker(settings: StageOne, tokenizer: LoadedTokenizer) -> Speaker:
    """Load the teacher, on the one device that is named, unless only tokens are wanted."""
    if settings.targets.kind == "none":
        return Speaker(
            teacher=None,
            facts=None,
            targets=target_spec(settings.targets, tokenizer.record.vocabulary_size),
            hidden=HiddenSpec(),
            sequence_length=settings.sequences.length or DEFAULT_LENGTH,
            batch_tokens=settings.machine.batch_tokens or GPU_BATCH_TOKENS,
        )
    torch.set_num_threads(devices.n_threads(settings.machine.threads))
    on = devices.choose(settings.machine.devices)
    shape = read_shape(settings.teacher)
    check_vocabulary(shape, tokenizer.record.vocabulary_size)
    length = _sequence_length(settings, shape)
    hidden = hidden_spec(settings.hidden, shape.n_layers, shape.width, settings.seed)
    if settings.targets.kind != "state":  # whose head is known once the weights are there
        target_spec(settings.targets, tokenizer.record.vocabulary_size)
    teacher = LocalTeacher(load(settings.teacher, shape, on), tokenizer.record.vocabulary_size)
    small = on[0].type == "cpu"
    return Speaker(
        teacher=teacher,
        facts=teacher.facts,
        targets=target_spec(settings.targets, tokenizer.record.vocabulary_size, _output_head(teacher, shape)),
        hidden=hidden,
        sequence_length=length,
        batch_tokens=settings.machine.batch_tokens or (CPU_BATCH_TOKENS if small else GPU_BATCH_TOKENS),
    )


def _sequence_length(settings: StageOne, shape: ModelShape) -> int:
    asked = settings.sequences.length
    if asked is None:
        return min(DEFAULT_LENGTH, shape.max_positions or DEFAULT_LENGTH)
    check_lengths(shape, asked)
    return asked


def _output_head(teacher: LocalTeacher, shape: ModelShape) -> OutputHead | None:
    head = teacher.forward.head
    if head is None or not head.is_plain:
        return None
    return OutputHead(
        width=shape.width,
        dtype=_DTYPES[head.weight_VH.dtype],
        bias=head.bias_V is not None,
        soft_cap=head.soft_cap,
        logit_scale=head.scale,
    )


def fitted_tables(speaker: Speaker, pieces: Iterable[Piece], asked: Asked) -> dict[str, Table]:
    """What is taken from the teacher once for all parts: its head for states, projections fitted to states."""
    tables: dict[str, Table] = {}
    if isinstance(speaker.targets.keep, State):
        assert isinstance(speaker.teacher, LocalTeacher) and speaker.teacher.forward.head is not None
        head = speaker.teacher.forward.head
        tables["output_head"] = head.weight_VH.float().cpu().numpy()
        if head.bias_V is not None:
            tables["output_bias"] = head.bias_V.float().cpu().numpy()
    fitted = [vector for vector in speaker.hidden.rows if isinstance(vector.projection, PcaProjection)]
    if fitted:
        states = _states(speaker, fitted, list(pieces), asked)
        for vector in fitted:
            matrix, mean = fit_pca(torch.from_numpy(states[vector.layer]), vector.width)
            tables[f"pca_rows_{vector.layer}"] = matrix.numpy()
            tables[f"pca_rows_{vector.layer}_mean"] = mean.numpy()
    return tables


def _states(
    speaker: Speaker, vectors: Sequence[Vector], pieces: Sequence[Piece], asked: Asked
) -> dict[int, npt.NDArray[np.float32]]:
    """Whole states of some layers at every row of some pieces."""
    whole = []
    for vector in vectors:
        assert isinstance(vector.projection, PcaProjection)
        width = vector.projection.input_width
        whole.append(Vector(layer=vector.layer, width=width, group=width, projection=WholeState()))
    grouped = [[pieces[i] for i in batch] for batch in batches(pieces, speaker.batch_tokens)]
    plain = replace(asked, hidden=HiddenSpec(rows=tuple(whole)), fidelity_every=0)
    answers = list(speaker.answers(grouped, plain))
    return {v.layer: np.concatenate([answer.block.hidden[v.layer] for answer in answers]) for v in whole}
