"""What stage one would make and take, before any weights are loaded; with a probe, how long it would take too.

In: the settings of `kdpipe plan`. Out: a `PlanReport`.
"""

import math

from kdpipe.pipeline.capture.capture_teacher import CapturePlan
from kdpipe.pipeline.capture.estimate import DataExtent, bytes_per_position, extent_for, extent_of, memory_of, scaled
from kdpipe.pipeline.capture.inputs import Inputs, read_inputs
from kdpipe.pipeline.capture.preflight import look_first
from kdpipe.pipeline.capture.speed_probe import ProbedSpeed, run_probe
from kdpipe.pipeline.capture.workers import one_device_each
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError

GUESSED = "entries and bytes are estimates for a teacher with an entropy of 2 to 3 nats; --probe measures this teacher"
ANY_TEXT = "no data are named: every token counts as a position"
# A document of the synthetic kind, where there are no data to look at.
DOCUMENT_ROWS = 500.0


def plan(settings: CaptureSettings, *, tokens: int | None, probe_seconds: float | None, watch: Watch) -> PlanReport:
    """The plan for some data, for a number of tokens, or for a number of tokens of such data."""
    _check(settings, tokens, probe_seconds)
    tokenizer, ahead = look_first(settings, watch)
    inputs = read_inputs(settings, watch, tokenizer) if settings.data.path is not None else None
    extent, document_rows = _extent(settings, inputs, ahead, tokens)
    rows, positions = sum(extent.rows.values()), sum(extent.positions.values())
    sizes, entries = bytes_per_position(
        ahead.targets, ahead.hidden, tokenizer.record.vocabulary_size, rows / max(positions, 1), document_rows
    )
    notes = [ANY_TEXT] if inputs is None else []
    workers = one_device_each(settings)
    probed = _probe(workers[0], inputs, probe_seconds)
    if probed is not None:
        sizes, entries = probed.bytes_per_position, probed.entries_per_position
    elif ahead.targets.has_entries:
        notes.append(GUESSED)
    return PlanReport(
        teacher=(settings.teacher.display_name or settings.teacher.name) if ahead.shape is not None else None,
        n_parameters=None if ahead.shape is None else ahead.shape.n_parameters,
        documents=extent.documents,
        positions=extent.positions,
        sequences=extent.sequences,
        parts=extent.parts,
        positions_per_part=round(positions / max(sum(extent.parts.values()), 1)),
        entries_per_position=entries,
        bytes_per_position=sizes,
        bytes=round(sizes["total"] * positions),
        second_caches=_second_caches(ahead, tokenizer.record.vocabulary_size, positions, rows, document_rows),
        memory=memory_of(ahead),
        probe=None if probed is None else probed.report(),
        workers=len(workers),
        hours=None if probed is None else positions / (len(workers) * probed.positions_per_second) / 3600,
        break_even_runs=None if probed is None else _break_even(probed),
        notes=tuple(notes),
    )


def _second_caches(
    ahead: CapturePlan, vocabulary_size: int, positions: int, rows: int, document_rows: float
) -> dict[str, int]:
    """What a cache for each other temperature would take: draws serve the one temperature that they were made for."""
    targets, found = ahead.targets, {}
    if not targets.has_draws:
        return {}
    for temperature in sorted({1.0, *targets.temperatures} - {targets.target_temperature}):
        other = targets.model_copy(update={"target_temperature": temperature, "draw_values": temperature != 1.0})
        sizes, _ = bytes_per_position(other, ahead.hidden, vocabulary_size, rows / max(positions, 1), document_rows)
        found[repr(temperature)] = round(sizes["total"] * positions)
    return found


def _check(settings: CaptureSettings, tokens: int | None, probe_seconds: float | None) -> None:
    """Refuse what there is nothing to plan or to probe for."""
    has_data = settings.data.path is not None
    if not has_data and tokens is None:
        raise ConfigError("there is nothing to plan for", hint="give --data, or --tokens N, or both")
    if probe_seconds is not None and not has_data:
        raise ConfigError("a probe needs documents to read", hint="give --data too")
    if probe_seconds is not None and settings.targets.kind == "none":
        raise ConfigError("targets of kind none have no teacher to probe", hint="leave --probe out")


def _extent(
    settings: CaptureSettings, inputs: Inputs | None, ahead: CapturePlan, tokens: int | None
) -> tuple[DataExtent, float]:
    """How much there is, and the rows of a document."""
    if inputs is None:
        assert tokens is not None
        return extent_for(tokens, ahead.sequence_length), DOCUMENT_ROWS
    sequences = settings.sequences
    planned = inputs.corpus.plan(ahead.sequence_length, packed=sequences.pack, part_rows=sequences.part_rows)
    found = extent_of(inputs.corpus, planned)
    document_rows = sum(found.rows.values()) / max(sum(found.documents.values()), 1)
    return (found if tokens is None else scaled(found, tokens)), document_rows


def _probe(settings: CaptureSettings, inputs: Inputs | None, seconds: float | None) -> ProbedSpeed | None:
    return None if seconds is None or inputs is None else run_probe(settings, inputs, seconds)


def _break_even(probed: ProbedSpeed) -> int | None:
    """Student runs from which on a cache takes less of the teacher's time than a teacher that runs along.

    Every such run costs a bare forward pass; the cache costs one, with what caching adds, and reading it hardly
    anything.
    """
    if probed.overhead_ratio is None:
        return None
    return max(1, math.floor(probed.overhead_ratio) + 1)
