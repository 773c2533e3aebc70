"""`PaddedPieces`: pieces side by side as tensors, filled up on the right, and where their rows lie.

In: pieces. Out: ids for the model; places of rows, labels and random keys for what is made of its states.
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
class PaddedPieces:
    """B pieces of at most T tokens: N rows in all, R of them positions, whose places in B x T are given.

    `labels_R` are the tokens that follow, `keys_R` the rows' random keys. `compared_S` are the positions, by their
    number among the R, that are compared with their full distribution; they stay on the host.
    """

    ids_BT: Tensor
    rows_N: Tensor
    positions_R: Tensor
    labels_R: Tensor
    keys_R: Tensor
    compared_S: Tensor

    def to(self, device: torch.device) -> "PaddedPieces":
        """The same on a device, on its way while the host goes on."""
        if device.type == "cpu":
            return self
        names = ("ids_BT", "rows_N", "positions_R", "labels_R", "keys_R")
        return replace(self, **{n: getattr(self, n).pin_memory().to(device, non_blocking=True) for n in names})


def pad(pieces: Sequence[Segment], seed: int, compare_every: int = 0) -> PaddedPieces:
    """Lay pieces side by side, each filled up with its own last token.

    Nothing looks to the right, so that any id would do, but one whose embedding is not finite.
    """
    lengths = [len(piece) for piece in pieces]
    longest = max(lengths)
    ids_BT = np.empty((len(pieces), longest), np.int64)
    for row, piece in zip(ids_BT, pieces, strict=True):
        row[: len(piece)] = piece.tokens
        row[len(piece) :] = piece.tokens[-1]
    rows_N = np.concatenate([i * longest + np.arange(n) for i, n in enumerate(lengths)])
    trained_N = np.concatenate([piece.loss_mask for piece in pieces])
    labels_N = np.concatenate([np.append(piece.tokens[1:], 0) for piece in pieces]).astype(np.int64)
    keys_N = torch.cat([row_keys(seed, piece.split, piece.document, piece.offset, len(piece)) for piece in pieces])
    return PaddedPieces(
        ids_BT=torch.from_numpy(ids_BT),
        rows_N=torch.from_numpy(rows_N),
        positions_R=torch.from_numpy(rows_N[trained_N]),
        labels_R=torch.from_numpy(labels_N[trained_N]),
        keys_R=keys_N[torch.from_numpy(trained_N)],
        compared_S=torch.from_numpy(np.flatnonzero(_compared(pieces, compare_every)[trained_N])),
    )


def _compared(pieces: Sequence[Segment], every: int) -> Bools:
    """Every n-th row of each document, begun at another one in each, so that no place in a text is preferred."""
    if not every:
        return np.zeros(sum(len(piece) for piece in pieces), np.bool_)
    places = [piece.document + piece.offset + np.arange(len(piece)) for piece in pieces]
    chosen: Bools = np.concatenate(places) % every == 0
    return chosen


def padded_tokens(pieces: Sequence[Segment]) -> int:
    """Count the tokens that a model reads for some pieces, padding included."""
    return len(pieces) * max(len(piece) for piece in pieces)


def readable(pieces: Sequence[Segment], shape: ModelInfo, vocabulary_size: int) -> list[Sequence[Segment]]:
    """Cut a batch so that texts share no batch whose positions are coded in two ways; refuse what cannot be read."""
    for piece in pieces:
        where = f"document {piece.document:,} of {piece.split}"
        if len(piece) == 0:
            raise ConfigError(f"{where} has no tokens", hint="leave empty documents out")
        if not 0 <= int(piece.tokens.min()) <= int(piece.tokens.max()) < vocabulary_size:
            raise ConfigError(
                f"{where} has token {int(piece.tokens.max()):,}, the vocabulary has {vocabulary_size:,}",
                hint="was it tokenized by the teacher's own tokenizer?",
            )
    check_lengths(shape, max(len(piece) for piece in pieces))
    if shape.switches_at is None:
        return [pieces]
    limit = shape.switches_at
    return [list(group) for _, group in groupby(pieces, key=lambda piece: len(piece) > limit)]
