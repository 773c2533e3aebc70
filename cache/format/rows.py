"""The contents of a cache in memory: sequences and blocks to write, rows that are read, with training weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import UsageError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sequence:
    """Packed documents: T tokens of D documents.

    `documents` are their numbers in the split, `digests` 16 bytes each; `columns` has a value per document for
    every source column, `pooled` a vector per document for every pooled layer, `texts` the documents' text if stored.
    """

    tokens: Ints
    loss_mask: Bools
    token_bytes: Ints
    document_starts: Ints
    documents: Ints
    digests: npt.NDArray[np.uint8]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    pooled: Mapping[int, Floats] = field(default_factory=dict)
    texts: list[str] | None = None

    def __repr__(self) -> str:
        return _summary("sequence", self.tokens, self.document_starts, self.loss_mask)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Block:
    """The teacher's predictions at each of T rows, N entries in all; a row's exact ids come first, then its draws.

    `logprobs` is log p at T=1, NaN for draws without one; `times` counts how often each draw was drawn (sampled only).
    Numbers of rows with loss_mask false are ignored and must have no entries.
    """

    n_exact: Ints
    n_draws: Ints
    ids: Ints
    logprobs: Floats
    log_tail: Floats | None = None
    drawn_log_tail: Floats | None = None
    entropy: Floats | None = None
    label_logprob: Floats | None = None
    log_z: Mapping[float, Floats] = field(default_factory=dict)
    boundary_logprob: Floats | None = None
    times: Ints | None = None
    hidden: Mapping[int, Floats] = field(default_factory=dict)
    state: Floats | None = None

    def __repr__(self) -> str:
        return f"<kdpipe block: {counted(len(self.n_exact), 'row')}, {counted(len(self.ids), 'id')}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Rows:
    """Rows as the reader returns them: `c[i]` is all rows of one sequence.

    Flat arrays hold `count[t]` entries for row t, the first `n_exact[t]` of them exact. `weights` is the training
    target: it sums to 1 if draws represent the tail, and to the exact mass otherwise. What a cache does not store is
    None or empty. `decode` turns token ids into text; it is lost when rows are pickled.
    """

    tokens: npt.NDArray[np.int32]
    loss_mask: Bools
    document_starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    count: npt.NDArray[np.int32]
    n_exact: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: Floats
    weights: Floats
    log_tail: Floats | None
    entropy: Floats | None
    label_logprob: Floats | None
    log_z: Mapping[float, Floats]
    boundary_logprob: Floats | None
    times: npt.NDArray[np.int32] | None
    hidden: Mapping[int, Floats]
    state: Floats | None
    decode: Callable[[Ints], str] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return _summary("rows", self.tokens, self.document_starts, self.loss_mask, self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without `decode`, which would open the cache again for every pickle."""
        return (_rows, ({f.name: getattr(self, f.name) for f in fields(self) if f.name != "decode"},))

    @property
    def text(self) -> str:
        """The decoded tokens, special tokens included."""
        return self._decoded(self.tokens)

    @property
    def texts(self) -> list[str]:
        """The decoded tokens of each document."""
        return [self._decoded(tokens) for tokens in np.split(self.tokens, self.document_starts[1:])]

    def _decoded(self, tokens: Ints) -> str:
        if self.decode is None:
            raise UsageError("these rows have no tokenizer", hint="use cache.tokenizer.decode(rows.tokens)")
        return self.decode(tokens)


def _rows(values: Mapping[str, Any]) -> Rows:
    return Rows(**values)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenRows:
    """Rows without predictions of the teacher, for training on labels alone."""

    tokens: npt.NDArray[np.int32]
    loss_mask: Bools
    document_starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        return _summary("token rows", self.tokens, self.document_starts, self.loss_mask)


def _summary(kind: str, tokens: Ints, starts: Ints, mask: Bools, ids: Ints | None = None) -> str:
    """Its size in one line."""
    n_positions = int(np.count_nonzero(mask))
    facts = [
        f"{counted(len(tokens), 'token')} of {counted(len(starts), 'document')}",
        counted(n_positions, "position"),
    ]
    if ids is not None and n_positions:
        facts.append(f"{len(ids) / n_positions:.1f} ids per position")
    return f"<kdpipe {kind}: {', '.join(facts)}>"
