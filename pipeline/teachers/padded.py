"""`PaddedSegments`: segments as one right-padded batch of tensors, and where their rows are in it.

In: segments. Out: ids for the model; places of rows, labels and random keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.format.rows import Bools
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models.model_info import ModelInfo, check_lengths
from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedSegments:
    """B segments of at most T tokens: N rows in all, R of them positions, with their places in B x T.

    `labels_R` are the next tokens, `keys_R` the rows' random keys. `compared_S` are the positions, by their number
    among the R, that are compared with their full distribution; they stay on the host.
    """

    ids_BT: Tensor
    rows_N: Tensor
    positions_R: Tensor
    labels_R: Tensor
    keys_R: Tensor
    compared_S: Tensor

    def to(self, device: torch.device) -> "PaddedSegments":
        """Copy to a device without waiting."""
        if device.type == "cpu":
            return self
        names = ("ids_BT", "rows_N", "positions_R", "labels_R", "keys_R")
        return replace(self, **{n: getattr(self, n).pin_memory().to(device, non_blocking=True) for n in names})


def pad(segments: Sequence[Segment], seed: int, compare_every: int = 0) -> PaddedSegments:
    """Pad each segment with its own last token.

    Nothing attends to the right, so any id will do, except one whose embedding is not finite.
    """
    lengths = [len(segment) for segment in segments]
    longest = max(lengths)
    ids_BT = np.empty((len(segments), longest), np.int64)
    for row, segment in zip(ids_BT, segments, strict=True):
        row[: len(segment)] = segment.tokens
        row[len(segment) :] = segment.tokens[-1]
    rows_N = np.concatenate([i * longest + np.arange(n) for i, n in enumerate(lengths)])
    trained_N = np.concatenate([segment.loss_mask for segment in segments])
    labels_N = np.concatenate([np.append(segment.tokens[1:], 0) for segment in segments]).astype(np.int64)
    keys_N = torch.cat(
        [row_keys(seed, segment.split, segment.document, segment.offset, len(segment)) for segment in segments]
    )
    return PaddedSegments(
        ids_BT=torch.from_numpy(ids_BT),
        rows_N=torch.from_numpy(rows_N),
        positions_R=torch.from_numpy(rows_N[trained_N]),
        labels_R=torch.from_numpy(labels_N[trained_N]),
        keys_R=keys_N[torch.from_numpy(trained_N)],
        compared_S=torch.from_numpy(np.flatnonzero(_compared(segments, compare_every)[trained_N])),
    )


def _compared(segments: Sequence[Segment], every: int) -> Bools:
    """Every n-th row of each document, from a different start in each, so that no place in a text is preferred."""
    if not every:
        return np.zeros(sum(len(segment) for segment in segments), np.bool_)
    places = [segment.document + segment.offset + np.arange(len(segment)) for segment in segments]
    chosen: Bools = np.concatenate(places) % every == 0
    return chosen


def padded_tokens(segments: Sequence[Segment]) -> int:
    """Tokens that a model reads for some segments, padding included."""
    return len(segments) * max(len(segment) for segment in segments)


def readable(segments: Sequence[Segment], shape: ModelInfo, vocabulary_size: int) -> list[Sequence[Segment]]:
    """Split a batch where its texts need different position codes; refuse segments that cannot be read."""
    for segment in segments:
        where = f"document {segment.document:,} of {segment.split}"
        if len(segment) == 0:
            raise ConfigError(f"{where} has no tokens", hint="remove empty documents")
        if not 0 <= int(segment.tokens.min()) <= int(segment.tokens.max()) < vocabulary_size:
            raise ConfigError(
                f"{where} has token {int(segment.tokens.max()):,}, the vocabulary has {vocabulary_size:,}",
                hint="use the teacher's own tokenizer",
            )
    check_lengths(shape, max(len(segment) for segment in segments))
    if shape.switches_at is None:
        return [segments]
    limit = shape.switches_at
    return [list(group) for _, group in groupby(segments, key=lambda segment: len(segment) > limit)]
