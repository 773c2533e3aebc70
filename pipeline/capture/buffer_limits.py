"""How much of the teacher's output may wait in memory before it is written, bounded in bytes.

In: what is kept of a row. Out: rows and sequences. They depend on the spec alone, not on free memory: which documents
the teacher reads in one batch follows from them, and must be the same on every machine.
"""

from kdpipe.schemas.targets import HiddenSpec, TargetSpec

# Documents are sorted by length within this many batches: enough for little padding.
WINDOW_BATCHES = 32
MAX_SEQUENCES = 64
# Reached before those two only by rows with wide states.
WAITING_BYTES = 1 << 30
# Rows rarely have more entries, though a top-p row may have thousands.
MOST_COUNTED_ENTRIES = 512


def row_bytes(targets: TargetSpec, hidden: HiddenSpec) -> int:
    """Memory of one row: counts, scalars, ids with their log p, and states."""
    width = targets.keep.state_width + sum(vector.width for vector in hidden.rows)
    scalars = 6 + len(targets.temperatures)
    return 4 * (width + scalars + 2 * min(targets.max_entries, MOST_COUNTED_ENTRIES))


def window_rows(targets: TargetSpec, hidden: HiddenSpec, batch_tokens: int) -> int:
    """Rows that are sorted by length and held until their sequences are complete."""
    affordable = WAITING_BYTES // row_bytes(targets, hidden)
    return max(batch_tokens, min(WINDOW_BATCHES * batch_tokens, affordable))


def waiting_sequences(targets: TargetSpec, hidden: HiddenSpec, sequence_length: int) -> int:
    """Sequences that may wait for the writing thread."""
    affordable = WAITING_BYTES // 4 // (row_bytes(targets, hidden) * sequence_length)
    return max(1, min(MAX_SEQUENCES, affordable))
