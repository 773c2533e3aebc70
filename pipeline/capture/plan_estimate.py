"""The estimate of `kdpipe plan`: size and memory from the teacher's config, time from a probe.

In: settings whose paths were checked. Out: a `PlanReport`.
"""

import math

from kdpipe.pipeline.capture.capture_teacher import CapturePlan
from kdpipe.pipeline.capture.estimate import DataExtent, bytes_per_position, extent_for, extent_of, memory_of, scaled
from kdpipe.pipeline.capture.inputs import Inputs, read_inputs
from kdpipe.pipeline.capture.preflight import check_before_reading
from kdpipe.pipeline.capture.speed_probe import ProbedSpeed, run_probe
from kdpipe.pipeline.capture.workers import worker_settings
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.progress import Progress, Task, running

ESTIMATED = (
    "entries and bytes are estimates for a teacher with an entropy of 2 to 3 nats; --probe measures this teacher"
)
ANY_TEXT = "no --data given: every token counts as a position"
# Assumed rows per document without --data.
DOCUMENT_ROWS = 500.0


def plan_report(
    settings: CaptureSettings, *, tokens: int | None, probe_seconds: float | None, progress: Progress
) -> PlanReport:
    """The report for some documents, for a number of tokens, or for a number of tokens of such documents."""
    tokenizer, capture_plan = check_before_reading(settings, progress)
    inputs = read_inputs(settings, progress, tokenizer) if settings.data.path is not None else None
    extent, document_rows = _extent(settings, inputs, capture_plan, tokens)
    rows, positions = sum(extent.rows.values()), sum(extent.positions.values())
    sizes, entries = bytes_per_position(
        capture_plan.targets,
        capture_plan.hidden,
        tokenizer.record.vocabulary_size,
        rows / max(positions, 1),
        document_rows,
    )
    notes = [ANY_TEXT] if inputs is None else []
    workers = worker_settings(settings)
    with running(progress, Task(name="probe teacher")):
        probed = _probe(workers[0], inputs, probe_seconds)
    if probed is not None:
        sizes, entries = probed.bytes_per_position, probed.entries_per_position
    elif capture_plan.targets.has_entries:
        notes.append(ESTIMATED)
    return PlanReport(
        teacher=capture_plan.info.name and (settings.teacher.display_name or capture_plan.info.name),
        n_parameters=capture_plan.info.n_parameters,
        documents=extent.documents,
        positions=extent.positions,
        sequences=extent.sequences,
        parts=extent.parts,
        positions_per_part=round(positions / max(sum(extent.parts.values()), 1)),
        entries_per_position=entries,
        bytes_per_position=sizes,
        bytes=round(sizes["total"] * positions),
        second_caches=_second_caches(capture_plan, tokenizer.record.vocabulary_size, positions, rows, document_rows),
        memory=memory_of(capture_plan),
        probe=None if probed is None else probed.report(),
        workers=len(workers),
        hours=None if probed is None else positions / (len(workers) * probed.positions_per_second) / 3600,
        break_even_runs=None if probed is None else _break_even(probed),
        notes=tuple(notes),
    )


def _second_caches(
    capture_plan: CapturePlan, vocabulary_size: int, positions: int, rows: int, document_rows: float
) -> dict[str, int]:
    """Bytes of a cache for each other temperature: draws serve only the temperature that they were made at."""
    targets, sizes_by_temperature = capture_plan.targets, {}
    if not targets.has_draws:
        return {}
    for temperature in sorted({1.0, *targets.temperatures} - {targets.target_temperature}):
        other = targets.model_copy(update={"target_temperature": temperature, "draw_values": temperature != 1.0})
        sizes, _ = bytes_per_position(
            other, capture_plan.hidden, vocabulary_size, rows / max(positions, 1), document_rows
        )
        sizes_by_temperature[repr(temperature)] = round(sizes["total"] * positions)
    return sizes_by_temperature


def _extent(
    settings: CaptureSettings, inputs: Inputs | None, capture_plan: CapturePlan, tokens: int | None
) -> tuple[DataExtent, float]:
    """How much there is, and the mean rows per document."""
    if inputs is None:
        assert tokens is not None
        return extent_for(tokens, capture_plan.sequence_length), DOCUMENT_ROWS
    sequences = settings.sequences
    planned = inputs.corpus.plan(capture_plan.sequence_length, packed=sequences.pack, part_rows=sequences.part_rows)
    extent = extent_of(inputs.corpus, planned)
    document_rows = sum(extent.rows.values()) / max(sum(extent.documents.values()), 1)
    return (extent if tokens is None else scaled(extent, tokens)), document_rows


def _probe(settings: CaptureSettings, inputs: Inputs | None, seconds: float | None) -> ProbedSpeed | None:
    return None if seconds is None or inputs is None else run_probe(settings, inputs, seconds)


def _break_even(probed: ProbedSpeed) -> int | None:
    """Student runs from which on a cache costs less than running the teacher in each of them.

    Each such run costs one bare forward pass; the cache costs one with caching, and almost nothing to read.
    """
    if probed.overhead_ratio is None:
        return None
    return max(1, math.floor(probed.overhead_ratio) + 1)
