"""The teacher of a cache: what is planned from its description, the loaded model, and what is taken from it once.

In: settings and the tokenizer. Out: a `CapturePlan`, then a `CaptureTeacher`, then the tables of the cache.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.hidden_states import PcaFit, hidden_spec
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.targets.target_spec import target_spec
from kdpipe.pipeline.teachers import Table, Teacher, TeacherBackend, TeacherInfo, backend_of
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import FOREIGN_NOTE
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, TargetSpec, Vector, WholeState

DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """What is settled before the teacher is loaded: its description, the targets, and how long sequences are."""

    backend: TeacherBackend
    info: TeacherInfo
    targets: TargetSpec
    hidden: HiddenSpec
    sequence_length: int
    foreign_tokenizer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTeacher:
    """A loaded teacher and what is captured of it; `record` is its description in the manifest."""

    model: Teacher
    record: manifest.TeacherRecord | None
    targets: TargetSpec
    hidden: HiddenSpec
    sequence_length: int
    batch_tokens: int


def plan_capture(
    settings: CaptureSettings, tokenizer: LoadedTokenizer, backend: TeacherBackend | None = None
) -> CapturePlan:
    """Settle targets and sequences from the teacher's description, and refuse what it cannot give."""
    backend = backend or backend_of(settings)
    info, n_ids = backend.describe(), tokenizer.record.vocabulary_size
    _check_vocabulary(info, n_ids)
    targets = target_spec(settings.targets, n_ids, info.output_head, info.full_distribution)
    _check_top_k(info, targets)
    return CapturePlan(
        backend=backend,
        info=info,
        # Details of the head for kind `state` are known once the weights are loaded.
        targets=targets,
        hidden=_hidden_spec(settings, info),
        sequence_length=_sequence_length(settings, info),
    )


def open_teacher(
    settings: CaptureSettings, tokenizer: LoadedTokenizer, capture_plan: CapturePlan | None = None
) -> CaptureTeacher:
    """Load the teacher."""
    capture_plan = capture_plan or plan_capture(settings, tokenizer)
    info, n_ids = capture_plan.info, tokenizer.record.vocabulary_size
    model = capture_plan.backend.load(n_ids)
    if (record := model.record) is not None:
        notes = (*record.notes, FOREIGN_NOTE) if capture_plan.foreign_tokenizer else record.notes
        record = record.model_copy(update={"notes": notes, "backend": settings.teacher.backend})
    return CaptureTeacher(
        model=model,
        record=record,
        targets=target_spec(settings.targets, n_ids, model.output_head, info.full_distribution),
        hidden=capture_plan.hidden,
        sequence_length=capture_plan.sequence_length,
        batch_tokens=info.batch_tokens,
    )


def _check_vocabulary(info: TeacherInfo, n_ids: int) -> None:
    if info.vocabulary_size is not None and info.vocabulary_size < n_ids:
        raise ConfigError(
            f"the vocabulary of {info.name} does not match its tokenizer: {info.vocabulary_size:,} rows for {n_ids:,} "
            "ids",
            hint="give the tokenizer that the model was trained with by --tokenizer",
        )


def _check_top_k(info: TeacherInfo, targets: TargetSpec) -> None:
    most = info.max_top_k
    if most is not None and targets.max_entries > most:
        raise ConfigError(
            f"targets hold up to {targets.max_entries:,} ids per position, {info.name} returns its {most:,} most "
            "probable ids",
            hint=f"give --targets topk --top-k {most} or less",
        )


def _hidden_spec(settings: CaptureSettings, info: TeacherInfo) -> HiddenSpec:
    if info.widths:
        return hidden_spec(settings.hidden, info.widths, settings.seed)
    if settings.hidden.layers:
        layers = ",".join(settings.hidden.layers)
        raise ConfigError(f"--hidden-layers {layers}: {info.name} gives no hidden states", hint="omit --hidden-layers")
    return HiddenSpec()


def _sequence_length(settings: CaptureSettings, info: TeacherInfo) -> int:
    length, most = settings.sequences.length, info.max_positions
    if length is None:
        return min(DEFAULT_LENGTH, most or DEFAULT_LENGTH)
    if most is not None and length > most:
        raise ConfigError(
            f"{info.name} reads at most {most:,} tokens at once, sequences of {length:,} were requested",
            hint=f"give --seq-len {most} or less",
        )
    return length


def fitted_tables(teacher: CaptureTeacher, segments: Iterable[Segment], request: TargetRequest) -> dict[str, Table]:
    """The tables that the teacher gives once for all parts: its head for states, projections fitted to states."""
    tables = dict(teacher.model.head_tables()) if teacher.targets.keep.state_width else {}
    vectors = [vector for vector in teacher.hidden.rows if isinstance(vector.projection, PcaProjection)]
    fits = _fits(teacher, vectors, segments, request) if vectors else {}
    for vector in vectors:
        matrix, mean = fits[vector.layer].result(vector.width)
        tables[f"pca_rows_{vector.layer}"] = matrix.numpy()
        tables[f"pca_rows_{vector.layer}_mean"] = mean.numpy()
    return tables


def _fits(
    teacher: CaptureTeacher, vectors: Sequence[Vector], segments: Iterable[Segment], request: TargetRequest
) -> dict[int, PcaFit]:
    """Projections fitted to whole states of some layers, at every row of the first segment of each document.

    Long documents have many segments; neither time nor memory may depend on how long they are.
    """
    whole = []
    for vector in vectors:
        assert isinstance(vector.projection, PcaProjection)
        width = vector.projection.input_width
        whole.append(Vector(layer=vector.layer, width=width, group=width, projection=WholeState()))
    firsts: dict[int, Segment] = {}
    for segment in segments:
        firsts.setdefault(segment.document, segment)
    chosen = list(firsts.values())
    grouped = [[chosen[i] for i in batch] for batch in batches(chosen, teacher.batch_tokens)]
    states_only = replace(request, hidden=HiddenSpec(rows=tuple(whole)), fidelity_every=0)
    fits = {vector.layer: PcaFit() for vector in whole}
    for result in teacher.model.predict(grouped, states_only):
        for layer, fit in fits.items():
            fit.add(torch.from_numpy(result.block.hidden[layer]))
    return fits
