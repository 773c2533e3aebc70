"""Pieces packed into sequences: best fit over a few open ones, in an order that depends on the pieces alone.

In: the pieces of a part. Out: which pieces share a sequence, and such a sequence as the cache takes it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kdpipe.cache.format.packing import fill
from kdpipe.cache.format.rows import Floats
from kdpipe.cache.format.rows import Sequence as StoredSequence
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.schemas.manifest import Manifest


def pack(pieces: Sequence[Segment], length: int, packed: bool = True) -> list[list[int]]:
    """The numbers of the pieces of each sequence; no sequence is longer than `length`, none without a piece."""
    return fill([len(piece) for piece in pieces], length, packed)


def to_sequence(pieces: Sequence[Segment], pooled: Mapping[int, Floats], manifest: Manifest) -> StoredSequence:
    """Pieces behind each other as one sequence; `pooled` has a vector a piece for each layer."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    digests = b"".join(piece.digest for piece in pieces)
    return StoredSequence(
        tokens=np.concatenate([piece.tokens for piece in pieces]),
        loss_mask=np.concatenate([piece.loss_mask for piece in pieces]),
        token_bytes=np.concatenate([piece.token_bytes for piece in pieces]),
        document_starts=np.cumsum(lengths) - lengths,
        documents=np.array([piece.document for piece in pieces], np.int64),
        digests=np.frombuffer(digests, np.uint8).reshape(len(pieces), -1),
        columns={column.name: [piece.columns[column.name] for piece in pieces] for column in manifest.data.columns},
        pooled=dict(pooled),
        texts=[piece.text or "" for piece in pieces] if manifest.data.text else None,
    )
