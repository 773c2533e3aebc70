"""The teacher as stage one needs it: who it is, what it is asked, what is taken from it once, and its answers.

In: settings and the tokenizer. Out: a `CaptureTeacher`; for a cache of tokens only, one who says nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch

from kdpipe.pipeline.capture.assemble import without_teacher
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.model_info import ModelInfo, check_lengths, check_vocabulary
from kdpipe.pipeline.targets.hidden_states import PcaFit, hidden_spec
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.targets.target_spec import OutputHead, target_spec
from kdpipe.pipeline.teachers import CaptureResult, Teacher
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.pipeline.teachers.load_teacher import load
from kdpipe.pipeline.teachers.local_teacher import LocalTeacher
from kdpipe.pipeline.teachers.shape import teacher_shape
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import FOREIGN_NOTE
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, State, TargetSpec, Vector, WholeState

DEFAULT_LENGTH = 2048
Table = npt.NDArray[Any]
# Tokens of a batch, padding included: a CPU is busy with few, a GPU needs many.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTeacher:
    """Whoever answers, and what is known of it; `teacher` and `facts` are None for a cache of tokens only."""

    teacher: Teacher | None
    facts: manifest.TeacherRecord | None
    targets: TargetSpec
    hidden: HiddenSpec
    sequence_length: int
    batch_tokens: int

    def answers(self, batches: Iterable[Sequence[Segment]], asked: TargetRequest) -> Iterator[CaptureResult]:
        """Answers, batch after batch."""
        return without_teacher(batches) if self.teacher is None else self.teacher.answers(batches, asked)

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> float | None:
        """What the model's own forward pass over some batches takes, where it runs here."""
        return self.teacher.bare_seconds(batches) if isinstance(self.teacher, LocalTeacher) else None

    def measured(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions."""
        return None if self.teacher is None else self.teacher.measured()


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """What is known of a speaker before its weights are loaded; `shape` is None for a cache of tokens only."""

    shape: ModelInfo | None
    device: torch.device
    dtype: str
    targets: TargetSpec
    hidden: HiddenSpec
    sequence_length: int
    batch_tokens: int
    foreign_tokenizer: bool = False


def look_ahead(settings: CaptureSettings, tokenizer: LoadedTokenizer, shape: ModelInfo | None = None) -> CapturePlan:
    """Refuse early what cannot be: from config and tokenizer alone; a shape that is known is not read again."""
    n_ids = tokenizer.record.vocabulary_size
    own_batch = settings.machine.batch_tokens
    if settings.targets.kind == "none":
        return CapturePlan(
            shape=None,
            device=torch.device("cpu"),
            dtype="float32",
            targets=target_spec(settings.targets, n_ids),
            hidden=HiddenSpec(),
            sequence_length=settings.sequences.length or DEFAULT_LENGTH,
            batch_tokens=own_batch or GPU_BATCH_TOKENS,
        )
    device = devices.choose(settings.machine.devices)[0]
    shape = shape or teacher_shape(settings.teacher)
    check_vocabulary(shape, n_ids)
    dtype = devices.choose_dtype(settings.teacher.dtype, device)
    return CapturePlan(
        shape=shape,
        device=device,
        dtype=dtype,
        # What the head of kind `state` has besides is known once the weights are there.
        targets=target_spec(settings.targets, n_ids, OutputHead(width=shape.last_width, dtype=dtype)),
        hidden=hidden_spec(settings.hidden, shape.widths, settings.seed),
        sequence_length=_sequence_length(settings, shape),
        batch_tokens=own_batch or (CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS),
    )


def open_speaker(
    settings: CaptureSettings, tokenizer: LoadedTokenizer, ahead: CapturePlan | None = None
) -> CaptureTeacher:
    """Load the teacher, on the device that is named or spread over all, unless only tokens are wanted."""
    ahead = ahead or look_ahead(settings, tokenizer)
    teacher, facts, targets = None, None, ahead.targets
    if ahead.shape is not None:
        torch.set_num_threads(devices.n_threads(settings.machine.threads))
        n_ids = tokenizer.record.vocabulary_size
        teacher = LocalTeacher(load(settings.teacher, ahead.shape, devices.choose(settings.machine.devices)), n_ids)
        facts = teacher.facts
        if ahead.foreign_tokenizer:
            facts = facts.model_copy(update={"notes": (*facts.notes, FOREIGN_NOTE)})
        targets = target_spec(settings.targets, n_ids, teacher.output_head)
    return CaptureTeacher(
        teacher=teacher,
        facts=facts,
        targets=targets,
        hidden=ahead.hidden,
        sequence_length=ahead.sequence_length,
        batch_tokens=ahead.batch_tokens,
    )


def _sequence_length(settings: CaptureSettings, shape: ModelInfo) -> int:
    asked = settings.sequences.length
    if asked is None:
        return min(DEFAULT_LENGTH, shape.max_positions or DEFAULT_LENGTH)
    check_lengths(shape, asked)
    return asked


def fitted_tables(speaker: CaptureTeacher, pieces: Iterable[Segment], asked: TargetRequest) -> dict[str, Table]:
    """What is taken from the teacher once for all parts: its head for states, projections fitted to states."""
    tables: dict[str, Table] = {}
    if isinstance(speaker.targets.keep, State):
        assert isinstance(speaker.teacher, LocalTeacher) and speaker.teacher.forward.head is not None
        head = speaker.teacher.forward.head
        tables["output_head"] = head.weight_VH.float().cpu().numpy()
        if head.bias_V is not None:
            tables["output_bias"] = head.bias_V.float().cpu().numpy()
    fitted = [vector for vector in speaker.hidden.rows if isinstance(vector.projection, PcaProjection)]
    fits = _fits(speaker, fitted, pieces, asked) if fitted else {}
    for vector in fitted:
        matrix, mean = fits[vector.layer].result(vector.width)
        tables[f"pca_rows_{vector.layer}"] = matrix.numpy()
        tables[f"pca_rows_{vector.layer}_mean"] = mean.numpy()
    return tables


def _fits(
    speaker: CaptureTeacher, vectors: Sequence[Vector], pieces: Iterable[Segment], asked: TargetRequest
) -> dict[int, PcaFit]:
    """Projections fitted to whole states of some layers, at every row of the first piece of each document.

    Long documents have many pieces, and neither time nor memory may follow from how long they are.
    """
    whole = []
    for vector in vectors:
        assert isinstance(vector.projection, PcaProjection)
        width = vector.projection.input_width
        whole.append(Vector(layer=vector.layer, width=width, group=width, projection=WholeState()))
    firsts: dict[int, Segment] = {}
    for piece in pieces:
        firsts.setdefault(piece.document, piece)
    chosen = list(firsts.values())
    grouped = [[chosen[i] for i in batch] for batch in batches(chosen, speaker.batch_tokens)]
    plain = replace(asked, hidden=HiddenSpec(rows=tuple(whole)), fidelity_every=0)
    fits = {vector.layer: PcaFit() for vector in whole}
    for answer in speaker.answers(grouped, plain):
        for layer, fit in fits.items():
            fit.add(torch.from_numpy(answer.block.hidden[layer]))
    return fits
