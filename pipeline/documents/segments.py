"""Segments of documents, and how they are packed into sequences.

In: documents as tokens. Out: `Segment`s, which segments share a sequence (best fit over a few open sequences, in an
order that depends on the segments alone), and such a sequence as the cache stores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.packing import fill
from kdpipe.cache.format.rows import Floats
from kdpipe.cache.format.rows import Sequence as StoredSequence
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """T tokens of one document, predicted without context from other segments.

    `document` is its number in `split`, `offset` the index of the first token in the document. Row t of `loss_mask` is
    true if token t + 1 is in the segment and is trained on. `digest` is 16 bytes of the sha256 of the tokens.
    """

    split: SplitName
    document: int
    offset: int
    tokens: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    token_bytes: npt.NDArray[np.uint32]
    digest: bytes
    columns: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def pack(segments: Sequence[Segment], length: int, packed: bool = True) -> list[list[int]]:
    """The numbers of the segments of each sequence; sequences have at most `length` tokens and at least one segment."""
    return fill([len(segment) for segment in segments], length, packed)


def to_sequence(segments: Sequence[Segment], pooled: Mapping[int, Floats], manifest: Manifest) -> StoredSequence:
    """Concatenate segments into one sequence; `pooled` has one vector per segment for each layer."""
    lengths = np.array([len(segment) for segment in segments], np.int64)
    digests = b"".join(segment.digest for segment in segments)
    return StoredSequence(
        tokens=np.concatenate([segment.tokens for segment in segments]),
        loss_mask=np.concatenate([segment.loss_mask for segment in segments]),
        token_bytes=np.concatenate([segment.token_bytes for segment in segments]),
        document_starts=np.cumsum(lengths) - lengths,
        documents=np.array([segment.document for segment in segments], np.int64),
        digests=np.frombuffer(digests, np.uint8).reshape(len(segments), -1),
        columns={
            column.name: [segment.columns[column.name] for segment in segments] for column in manifest.data.columns
        },
        pooled=dict(pooled),
        texts=[segment.text or "" for segment in segments] if manifest.data.text else None,
    )
