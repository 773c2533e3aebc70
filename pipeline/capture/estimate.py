"""What a cache would take, before the teacher runs: positions from a sample of the text, bytes from measured sizes.

In: documents, target spec, what the teacher's config states. Out: counts, bytes per position by array, memory.
"""

from dataclasses import dataclass

from kdpipe.pipeline.capture.buffer_limits import row_bytes, waiting_sequences, window_rows
from kdpipe.pipeline.capture.capture_teacher import CapturePlan
from kdpipe.pipeline.capture.size_table import sizes_of, token_bytes
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.part_plan import rows_per_part
from kdpipe.pipeline.documents.tokenize import DocumentCounts
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan
from kdpipe.schemas.capture_report import MemoryEstimate
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

SAMPLE_DOCUMENTS = 64
# Encoding, an open chunk per array, the tokens of two parts: benchmarks/cache.py measures 144 MiB with the interpreter.
WRITER_BYTES = 96 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DataExtent:
    """Amounts of data by split."""

    documents: dict[str, int]
    rows: dict[str, int]
    positions: dict[str, int]
    parts: dict[str, int]
    sequences: int


def extent_for(n_tokens: int, sequence_length: int) -> DataExtent:
    """A number of tokens of any text, all of them trained."""
    n_parts = max(1, round(n_tokens / rows_per_part(n_tokens)))
    return DataExtent(
        documents={},
        rows={"train": n_tokens},
        positions={"train": n_tokens},
        parts={"train": n_parts},
        sequences=max(1, round(n_tokens / sequence_length)),
    )


def scaled(extent: DataExtent, n_tokens: int) -> DataExtent:
    """The same kind of text with another number of tokens."""
    factor = n_tokens / max(sum(extent.rows.values()), 1)
    target = rows_per_part(n_tokens)

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
    """Rows and positions of all documents, estimated from a tokenized sample."""
    counts = DocumentCounts()
    segments = list(corpus.sample_segments("train", SAMPLE_DOCUMENTS, plan.sequence_length, counts))
    kept = counts.tokens / max(counts.tokens + counts.masked_tokens, 1)
    trained = counts.positions / max(counts.tokens, 1)
    documents: dict[str, int] = {split: n for split, n in corpus.splits.items() if n}
    rows: dict[str, int] = {
        split: round(float(corpus.expected_tokens(split, plan.sequence_length).sum()) * kept)
        for split, n in corpus.splits.items()
        if n
    }
    mean = counts.tokens / max(len(segments), 1)
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
    """Estimated bytes per position by array, with a `total`; and ids per position. Vectors have an exact size."""
    arrays = default_arrays(targets, hidden, vocabulary_size)
    sizes, entries = sizes_of(targets, vocabulary_size)
    sizes["hidden"] = 0.0
    for name in ("hidden", "state"):
        if (array := getattr(arrays, name)) is not None:
            sizes[name] = array.row_bytes * rows_per_position
    pooled = sum(vector.n_bytes for vector in hidden.pooled) / max(document_rows, 1.0)
    sizes["sequences"] = (token_bytes(vocabulary_size) + pooled) * rows_per_position
    return sizes | {"total": sum(sizes.values())}, entries


def memory_of(capture_plan: CapturePlan) -> MemoryEstimate:
    """Bytes that one worker holds at once: on the teacher's device, and on the host until rows are written."""
    info, kept, length = capture_plan.info, (capture_plan.targets, capture_plan.hidden), capture_plan.sequence_length
    n_rows = window_rows(*kept, info.batch_tokens) + waiting_sequences(*kept, length) * length
    parts = {
        "weights": info.weight_bytes,
        "activations": int(info.batch_tokens * info.activation_bytes),
        "logits_chunk": info.logits_bytes,
        "waiting_rows": n_rows * row_bytes(*kept) if capture_plan.targets.keep.has_teacher else 0,
        "writer": WRITER_BYTES,
    }
    return MemoryEstimate(**parts, total=sum(parts.values()))
