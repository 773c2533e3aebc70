"""What a cache would take, from sizes alone: positions from a sample of the text, bytes from a synthetic teacher.

In: documents, target spec, the teacher's shape. Out: counts, bytes a position by array, memory. The synthetic teacher's
targets go through the real writer, so that codecs and checksums count as they will; only how sure the teacher is
remains a guess.
"""

from dataclasses import dataclass
from typing import Any

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import create_cache
from kdpipe.pipeline.capture.buffer_limits import row_bytes, waiting_sequences, window_rows
from kdpipe.pipeline.capture.capture_teacher import CapturePlan
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.part_plan import rows_of_a_part
from kdpipe.pipeline.documents.tokenize import DocumentCounts
from kdpipe.pipeline.models.model_info import DTYPE_BYTES
from kdpipe.pipeline.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables
from kdpipe.pipeline.teachers.reading import CPU_LOGITS_BYTES, GPU_LOGITS_BYTES
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan
from kdpipe.schemas.capture_report import MemoryEstimate
from kdpipe.schemas.targets import HiddenSpec, Sampled, TargetSpec, Threshold, TopK, TopP

SAMPLE_DOCUMENTS = 64
SYNTHETIC_DOCUMENTS = 120
# Encoding, an open chunk an array, the tokens of two parts: benchmarks/cache.py sees 144 MiB with the interpreter.
WRITER_BYTES = 96 << 20
# Numbers of a token that live at once in a layer: states, queries, keys, values, and a feed-forward of four widths.
LIVE_WIDTHS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class DataExtent:
    """How much there is, by split."""

    documents: dict[str, int]
    rows: dict[str, int]
    positions: dict[str, int]
    parts: dict[str, int]
    sequences: int


def extent_for(n_tokens: int, sequence_length: int) -> DataExtent:
    """So many tokens of any text, all of them learnt."""
    n_parts = max(1, round(n_tokens / rows_of_a_part(n_tokens)))
    return DataExtent(
        documents={},
        rows={"train": n_tokens},
        positions={"train": n_tokens},
        parts={"train": n_parts},
        sequences=max(1, round(n_tokens / sequence_length)),
    )


def scaled(extent: DataExtent, n_tokens: int) -> DataExtent:
    """The same kind of text, so many tokens of it."""
    factor = n_tokens / max(sum(extent.rows.values()), 1)
    target = rows_of_a_part(n_tokens)

    def times(counts: dict[str, int]) -> dict[str, int]:
        return {split: round(n * factor) for split, n in counts.items()}

    rows = times(extent.rows)
    return DataExtent(
        documents=times(extent.documents),
        rows=rows,
        positions=times(extent.positions),
        parts={split: max(1, round(n / target)) for split, n in rows.items()},
        sequences=max(1, round(extent.sequences * factor)),
    )


def extent_of(corpus: Corpus, plan: CachePlan) -> DataExtent:
    """Rows and positions of documents that are not tokenized yet, from those of a sample."""
    counts = DocumentCounts()
    pieces = list(corpus.sample_segments("train", SAMPLE_DOCUMENTS, plan.sequence_length, counts))
    kept = counts.tokens / max(counts.tokens + counts.masked_tokens, 1)
    trained = counts.positions / max(counts.tokens, 1)
    documents: dict[str, int] = {split: n for split, n in corpus.splits.items() if n}
    rows: dict[str, int] = {
        split: round(float(corpus.expected_tokens(split, plan.sequence_length).sum()) * kept)
        for split, n in corpus.splits.items()
        if n
    }
    mean = counts.tokens / max(len(pieces), 1)
    per_sequence = plan.sequence_length if plan.packed else mean
    return DataExtent(
        documents=documents,
        rows=rows,
        positions={split: round(n * trained) for split, n in rows.items()},
        parts={split.name: len(split.bounds) - 1 for split in plan.splits},
        sequences=sum(max(1, round(n / per_sequence)) for n in rows.values()),
    )


def bytes_per_position(
    targets: TargetSpec, hidden: HiddenSpec, vocabulary_size: int, rows_per_position: float, document_rows: float
) -> tuple[dict[str, float], float | None]:
    """By array, with a total; and the ids a position. Arrays with a vector a row have an exact size."""
    arrays = default_arrays(targets, hidden, vocabulary_size)
    recipe = _recipe(targets, vocabulary_size)
    with scratch_folder("kdpipe-plan-", "writing a made-up part to measure its bytes") as folder:
        manifest = synthetic_manifest(recipe)
        cache = create_cache(f"{folder}/cache", manifest)
        cache.publish_tables(synthetic_tables(recipe))
        with cache.part(0) as part:
            for sequence, block in synthetic_part(recipe, manifest, 0):
                part.add(sequence, block)
        cache.seal()
        summary = inspect_cache(cache.path)
    sizes = {name: size for name, size in summary.bytes_per_position.items() if name not in ("total", "overhead")}
    sizes["sequences"] *= rows_per_position * summary.positions / summary.rows
    for name in ("hidden", "state"):
        array = getattr(arrays, name)
        if array is not None:
            sizes[name] = array.row_bytes * rows_per_position
    pooled = sum(vector.n_bytes for vector in hidden.pooled)
    sizes["sequences"] += pooled * rows_per_position / max(document_rows, 1.0)
    if targets.keep.kind == "state":
        sizes |= dict.fromkeys(("id", "logprob", "counts"), 0.0)
    entries = summary.entries_per_position
    return sizes | {"total": sum(sizes.values())}, entries.mean if entries and targets.has_entries else None


def _recipe(targets: TargetSpec, vocabulary_size: int) -> Recipe:
    keep = targets.keep
    own: dict[str, Any] = {}
    if isinstance(keep, Threshold):
        own = {"tau": keep.tau, "max_entries": keep.max_entries}
    elif isinstance(keep, Sampled):
        own = {"draws": keep.draws}
    elif isinstance(keep, TopK):
        own = {"top_k": keep.k}
    elif isinstance(keep, TopP):
        own = {"top_p": keep.p, "max_entries": min(keep.max_entries, 512)}
    return Recipe(
        kind="threshold" if keep.kind == "state" else keep.kind,
        vocabulary_size=vocabulary_size,
        documents={"train": SYNTHETIC_DOCUMENTS},
        documents_per_part=SYNTHETIC_DOCUMENTS,
        temperatures=targets.temperatures,
        target_temperature=targets.target_temperature,
        draw_values=targets.draw_values,
        boundary=targets.boundary,
        hidden=False,
        **own,
    )


def memory_of(ahead: CapturePlan) -> MemoryEstimate:
    """Bytes at once, of one worker: on the teacher's device, and on the host for answers that wait and to write."""
    weights = activations = logits = answers = 0
    if ahead.shape is not None:
        on_cpu = ahead.device.type == "cpu"
        weights = ahead.shape.parameter_bytes(ahead.dtype)
        activations = int(ahead.batch_tokens * ahead.shape.width * LIVE_WIDTHS * DTYPE_BYTES[ahead.dtype])
        logits = 2 * (CPU_LOGITS_BYTES if on_cpu else GPU_LOGITS_BYTES)
        kept, length = (ahead.targets, ahead.hidden), ahead.sequence_length
        n_rows = window_rows(*kept, ahead.batch_tokens) + waiting_sequences(*kept, length) * length
        answers = n_rows * row_bytes(*kept)
    parts = {
        "weights": weights,
        "activations": activations,
        "logits_chunk": logits,
        "answers": answers,
        "writer": WRITER_BYTES,
    }
    return MemoryEstimate(**parts, total=sum(parts.values()))
