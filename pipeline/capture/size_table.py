"""Measured sizes of cached rows, from which `kdpipe plan` estimates a cache before any teacher runs.

In: a target spec and the size of the vocabulary. Out: bytes per position by array, and ids per position. The figures
of ids are on the record of each kind: how sure the real teacher is can change their number, and with it the total, by a
factor of two or more. `--probe` measures it.
"""

import numpy as np

from kdpipe.schemas.targets import TargetSpec

VOCABULARIES = (512, 4096, 32_000, 128_000)


# Of a token: its id, the mask, its length in bytes, and its share of the record of its sequence.
TOKEN_BYTES = (2.07, 2.35, 2.60, 2.76)
# Codes of log p: exact ids of one row as differences, fewer bits each the more there are; those of draws plain.
EXACT_BYTES, EXACT_BYTES_OF_MANY, DRAW_BYTES = 0.67, 1.2, 1.0
# How often an id was drawn, where draws repeat.
TIMES_BYTES = 0.27
SCALAR_BYTES = {"tail": 1.1, "entropy": 1.1, "label": 0.45, "log_z": 1.44, "boundary": 1.1}


def sizes_of(targets: TargetSpec, vocabulary_size: int) -> tuple[dict[str, float], float | None]:
    """Bytes per position by array, without vectors and tokens; and ids per position, None for a kind without ids."""
    keep = targets.keep
    n_tails = targets.tail_known * (1 + (targets.target_temperature != 1.0))
    scalars = n_tails * SCALAR_BYTES["tail"] + len(targets.temperatures) * SCALAR_BYTES["log_z"]
    scalars += targets.entropy * SCALAR_BYTES["entropy"] + targets.boundary * SCALAR_BYTES["boundary"]
    scalars += keep.has_teacher * SCALAR_BYTES["label"]
    if not keep.has_entries:
        return {"id": 0.0, "logprob": 0.0, "scalars": scalars}, None
    if (known := keep.sizes) is None:
        raise TypeError(f"{type(keep).__name__} has ids but no `sizes`")
    n = _interpolated(known.entries, vocabulary_size)
    n *= (keep.amount / known.reference) ** known.by_amount * targets.target_temperature**known.by_temperature
    # The masses of draws are no less than 1 / amount: there is no room for more.
    n = min(max(n, 1.0), targets.max_entries, vocabulary_size, keep.amount + 1 if keep.has_draws else vocabulary_size)
    n_exact = 1.0 if known.exact_share is None else known.exact_share * n
    logprob = n_exact * min(EXACT_BYTES, EXACT_BYTES_OF_MANY * n_exact ** (-1 / 3))
    sizes = {
        "id": n * _interpolated(known.id_bytes, vocabulary_size),
        "logprob": logprob + targets.draw_values * (n - n_exact) * DRAW_BYTES,
        "scalars": scalars,
        "counts": known.count_bytes,
    }
    return sizes | ({"times": (n - n_exact) * TIMES_BYTES} if keep.draws_repeat else {}), n


def token_bytes(vocabulary_size: int) -> float:
    """Bytes per row of what every cache has: tokens, mask, lengths and the record of the sequence."""
    return _interpolated(TOKEN_BYTES, vocabulary_size)


def _interpolated(figures: tuple[float, ...], vocabulary_size: int) -> float:
    """The figure at a vocabulary, by its logarithm between those that were measured."""
    return float(np.interp(np.log(vocabulary_size), np.log(VOCABULARIES), figures))
