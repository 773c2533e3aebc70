"""How many answers may wait in memory, until their sequences are whole and until these are written: bounded in bytes.

In: what is kept of a row. Out: rows and sequences. A function of the spec alone, as what the teacher reads together has
to be.
"""

from kdpipe.schemas.targets import HiddenSpec, Sampled, State, TargetSpec, Threshold, TopK, TopP

# Pieces are sorted by length within so many batches: enough for little padding.
WINDOW_BATCHES = 32
MAX_SEQUENCES = 64
# Only rows with wide states fill it before so many batches or sequences do.
WAITING_BYTES = 1 << 30
# Rows rarely have more, though a top-p row may have thousands.
MOST_COUNTED_ENTRIES = 512


def row_bytes(targets: TargetSpec, hidden: HiddenSpec) -> int:
    """The most that a row takes in memory, as a rule: its counts, scalars, ids with their log p, and states."""
    keep, entries, width = targets.keep, 0, sum(vector.width for vector in hidden.rows)
    match keep:
        case Threshold() | TopP():
            entries = keep.max_entries
        case Sampled():
            entries = keep.draws + 1
        case TopK():
            entries = keep.k
        case State():
            width += keep.width
    scalars = 6 + len(targets.temperatures)
    return 4 * (width + scalars + 2 * min(entries, MOST_COUNTED_ENTRIES))


def window_rows(targets: TargetSpec, hidden: HiddenSpec, batch_tokens: int) -> int:
    """Rows that are sorted by length and held until their sequences are whole."""
    affordable = WAITING_BYTES // row_bytes(targets, hidden)
    return max(batch_tokens, min(WINDOW_BATCHES * batch_tokens, affordable))


def waiting_sequences(targets: TargetSpec, hidden: HiddenSpec, sequence_length: int) -> int:
    """Sequences that wait for the thread that writes."""
    affordable = WAITING_BYTES // 4 // (row_bytes(targets, hidden) * sequence_length)
    return max(1, min(MAX_SEQUENCES, affordable))
