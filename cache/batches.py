"""Batches: sequences side by side, padded, in buffers that the caller owns and may use again.

In: a cache and the numbers of some sequences. Out: a filled `PaddedBatch`.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Bools, Floats, Rows
from kdpipe.cache.reader import Cache
from kdpipe.schemas.errors import ConfigError

Ints = npt.NDArray[np.signedinteger[npt.NBitBase]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """B sequences of up to T rows with up to K ids: padding has loss_mask false, count 0, weight 0 and log p NaN.

    `document` numbers the documents of each sequence from 0, padding is -1: attention stays within one number.
    Integers may be int32 or int64, as the caller made them.
    """

    lengths_B: Ints
    tokens_BT: Ints
    document_BT: Ints
    loss_mask_BT: Bools
    count_BT: Ints
    n_exact_BT: Ints
    ids_BTK: Ints
    logprobs_BTK: Floats
    weights_BTK: Floats
    scalars: dict[str, Floats]


def allocate_batch(
    cache: Cache, n_sequences: int, *, n_entries: int | None = None, dtype: type[np.signedinteger] = np.int64
) -> PaddedBatch:
    """Buffers for batches of a cache; without n_entries they hold the most ids that a row of it may keep."""
    if np.dtype(dtype) not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise ConfigError(f"ids do not fit into {np.dtype(dtype)}: choose int32 or int64")
    b, t = n_sequences, cache.manifest.plan.sequence_length
    k = cache.manifest.targets.max_entries if n_entries is None else n_entries
    names = [
        column.name for column in cache.manifest.arrays.row.columns if column.quantizer.kind in ("linear", "log_odds")
    ]
    return PaddedBatch(
        lengths_B=np.zeros(b, dtype),
        tokens_BT=np.zeros((b, t), dtype),
        document_BT=np.zeros((b, t), dtype),
        loss_mask_BT=np.zeros((b, t), bool),
        count_BT=np.zeros((b, t), dtype),
        n_exact_BT=np.zeros((b, t), dtype),
        ids_BTK=np.zeros((b, t, k), dtype),
        logprobs_BTK=np.zeros((b, t, k), np.float32),
        weights_BTK=np.zeros((b, t, k), np.float32),
        scalars={name: np.zeros((b, t), np.float32) for name in names if name != "drawn_log_tail"},
    )


def fill_batch(cache: Cache, sequences: Iterable[int], batch: PaddedBatch) -> None:
    """Read some sequences, one for each row of the buffers; too many ids for the buffers are refused."""
    numbers = [operator.index(number) for number in sequences]
    if len(numbers) != len(batch.lengths_B):
        raise ConfigError(f"{len(numbers)} sequences are to fill buffers for {len(batch.lengths_B)}")
    # Neighbors share chunks: reading in stored order decodes each once.
    for b in sorted(range(len(numbers)), key=numbers.__getitem__):
        _fill_one(batch, b, cache[numbers[b]])


def _fill_one(batch: PaddedBatch, b: int, rows: Rows) -> None:
    n, (_, width, k) = len(rows), batch.ids_BTK.shape
    most = int(rows.count.max(initial=0))
    if n > width or most > k:
        raise ConfigError(f"a sequence has {n} rows of up to {most} ids, the buffers hold {width} of {k}")
    batch.lengths_B[b] = n
    documents = np.zeros(n, np.int64)
    documents[rows.document_starts[1:]] = 1
    scalars = _scalars(rows)
    filled: list[tuple[npt.NDArray[Any], npt.ArrayLike, Any]] = [
        (batch.tokens_BT, rows.tokens, 0),
        (batch.document_BT, np.cumsum(documents), -1),
        (batch.loss_mask_BT, rows.loss_mask, False),
        (batch.count_BT, rows.count, 0),
        (batch.n_exact_BT, rows.n_exact, 0),
        *((buffer, scalars[name], np.nan) for name, buffer in batch.scalars.items()),
    ]
    for buffer, values, padding in filled:
        buffer[b, :n], buffer[b, n:] = values, padding
    if k:
        starts = np.cumsum(rows.count, dtype=np.int64) - rows.count
        places = np.arange(len(rows.ids)) + np.repeat(np.arange(0, n * k, k) - starts, rows.count)
        for buffer, entries, empty in (
            (batch.ids_BTK[b], rows.ids, 0),
            (batch.logprobs_BTK[b], rows.logprobs, np.nan),
            (batch.weights_BTK[b], rows.weights, 0),
        ):
            buffer.fill(empty)
            if buffer.flags.c_contiguous:
                buffer.reshape(-1)[places] = entries
            else:
                buffer[np.divmod(places, k)] = entries


def _scalars(rows: Rows) -> dict[str, Floats]:
    named = {"log_tail": rows.log_tail, "entropy": rows.entropy, "label_logprob": rows.label_logprob}
    named |= {"boundary_logprob": rows.boundary_logprob} | {f"log_z@{t!r}": values for t, values in rows.log_z.items()}
    return {name: values for name, values in named.items() if values is not None}
