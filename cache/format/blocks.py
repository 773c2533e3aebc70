"""Splitting and joining blocks of targets: batches of the teacher are stored by sequence, and the reverse."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Rows

SCALARS = ("log_tail", "drawn_log_tail", "entropy", "label_logprob", "boundary_logprob", "state")


def cut(block: Block, ends: npt.NDArray[np.int64]) -> Iterator[Block]:
    """Split a block into consecutive ones, given the row at which each ends."""
    entries = np.concatenate([[0], np.cumsum(block.n_exact.astype(np.int64) + block.n_draws)])
    draws = np.concatenate([[0], np.cumsum(block.n_draws.astype(np.int64))])
    start = 0
    for end in ends.tolist():
        rows, span = slice(start, end), slice(entries[start], entries[end])
        yield replace(
            block,
            n_exact=block.n_exact[rows],
            n_draws=block.n_draws[rows],
            ids=block.ids[span],
            logprobs=block.logprobs[span],
            times=None if block.times is None else block.times[draws[start] : draws[end]],
            log_z={t: value[rows] for t, value in block.log_z.items()},
            hidden={layer: value[rows] for layer, value in block.hidden.items()},
            **{name: value[rows] for name in SCALARS if (value := getattr(block, name)) is not None},
        )
        start = end


def join(blocks: Sequence[Block]) -> Block:
    """Concatenate blocks of the same columns."""
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(block, name) for block in blocks])

    return replace(
        first,
        n_exact=joined("n_exact"),
        n_draws=joined("n_draws"),
        ids=joined("ids"),
        logprobs=joined("logprobs"),
        log_z={t: np.concatenate([block.log_z[t] for block in blocks]) for t in first.log_z},
        hidden={layer: np.concatenate([block.hidden[layer] for block in blocks]) for layer in first.hidden},
        **{name: joined(name) for name in ("times", *SCALARS) if getattr(first, name) is not None},
    )


def block_of(rows: Rows) -> Block:
    """Rows as a block that can be written again, without `drawn_log_tail`, which a reader does not have."""
    return Block(
        n_exact=rows.n_exact,
        n_draws=rows.count - rows.n_exact,
        ids=rows.ids,
        logprobs=rows.logprobs,
        log_tail=rows.log_tail,
        entropy=rows.entropy,
        label_logprob=rows.label_logprob,
        log_z=rows.log_z,
        boundary_logprob=rows.boundary_logprob,
        times=rows.times,
        hidden=rows.hidden,
        state=rows.state,
    )
