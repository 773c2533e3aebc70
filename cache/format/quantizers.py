"""Quantizers: how codes become numbers and numbers codes.

In: float32 numbers and a quantizer from the manifest. Out: uint32 codes below 65,536, and the table that turns them
back.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.arrays import CODE_LIMIT, LARGEST_CODE, MINUS_INFINITY, MISSING, LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError

ROUNDING = 1e-4
LARGEST_SCALE = np.finfo(np.float32).max / 128
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint32]


def to_codes(quantizer: LinearQuantizer | LogOddsQuantizer, values: npt.NDArray[np.floating], what: str) -> Codes:
    """Round numbers to codes.

    NaN and minus infinity have codes of their own. A log-probability below the last code is one of p < 1e-110: it
    becomes minus infinity under a linear quantizer; log-odds stop at their last code. Any other number outside the
    quantizer is refused; a log-probability may lie above 0 by what float32 rounds.
    """
    x = values.astype(np.float64)
    missing, empty = np.isnan(x), np.isneginf(x)
    x = np.where(missing | empty, 0.0, x)
    if isinstance(quantizer, LogOddsQuantizer):
        if (x > ROUNDING).any():
            row = int((x > ROUNDING).argmax())
            raise CacheWriteError(f"{what} is {float(values.flat[row])!r} at row {row}, a log-probability is at most 0")
        x = np.minimum(x, 0.0)
        with np.errstate(divide="ignore"):
            odds = x - np.log(-np.expm1(x))
        codes = np.clip(np.rint(odds / quantizer.step) + quantizer.zero, 0, LARGEST_CODE)
    else:
        codes = np.rint(quantizer.sign * x / quantizer.step) + quantizer.zero
        empty |= (codes > LARGEST_CODE) & (quantizer.sign < 0)
        _refuse_outside(codes, missing | empty, values, quantizer, what)
    codes = np.where(missing, MISSING, np.where(empty, MINUS_INFINITY, codes))
    return codes.astype(np.uint32)


def _refuse_outside(
    codes: npt.NDArray[np.float64],
    special: npt.NDArray[np.bool_],
    values: npt.NDArray[np.floating],
    quantizer: LinearQuantizer,
    what: str,
) -> None:
    outside = ~special & ((codes < 0) | (codes > LARGEST_CODE))
    if outside.any():
        low, high = sorted(quantizer.sign * (code - quantizer.zero) * quantizer.step for code in (0, LARGEST_CODE))
        row = int(outside.argmax())
        raise CacheWriteError(
            f"{what} is {float(values.flat[row])!r} at row {row}, its quantizer holds {low} to {high}"
        )


@lru_cache(maxsize=64)
def value_table(quantizer: LinearQuantizer | LogOddsQuantizer) -> Floats:
    """The number of every code, as a table of 65,536."""
    codes = np.arange(CODE_LIMIT, dtype=np.float64)
    values = (codes - quantizer.zero) * quantizer.step
    values = -np.logaddexp(0.0, -values) if isinstance(quantizer, LogOddsQuantizer) else quantizer.sign * values
    table = values.astype(np.float32)
    table[MISSING], table[MINUS_INFINITY] = np.nan, -np.inf
    table.flags.writeable = False
    return table


@lru_cache(maxsize=16)
def complement_table(quantizer: LogOddsQuantizer) -> Floats:
    """log(1 - exp(value)) of every code of a log-odds quantizer: exact on the side where the value itself is nearly
    0.
    """
    odds = (np.arange(CODE_LIMIT, dtype=np.float64) - quantizer.zero) * quantizer.step
    table = (-np.logaddexp(0.0, odds)).astype(np.float32)
    table[MISSING], table[MINUS_INFINITY] = np.nan, 0.0
    table.flags.writeable = False
    return table


def quantize_vectors(vectors: Floats, group: int) -> npt.NDArray[np.uint8]:
    """Code rows of numbers as int8 in groups that share a float32 scale: the int8 values, then the scales."""
    n, width = vectors.shape
    n_groups = -(-width // group)
    padded = np.zeros((n, n_groups * group), np.float32)
    padded[:, :width] = vectors
    grouped = padded.reshape(n, n_groups, group)
    scales = np.abs(grouped).max(axis=2) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    # Only where a scale is denormal can a quotient pass 127.
    codes = np.clip(np.rint(grouped / safe[:, :, None]), -127, 127).astype(np.int8).reshape(n, -1)[:, :width]
    return np.concatenate([codes.view(np.uint8), scales.astype("<f4").view(np.uint8).reshape(n, -1)], axis=1)


def dequantize_vectors(coded: npt.NDArray[np.uint8], width: int, group: int) -> Floats:
    """The slow and only inverse of `quantize_vectors`."""
    n, n_groups = len(coded), -(-width // group)
    scales = np.ascontiguousarray(coded[:, width:]).view("<f4").reshape(n, n_groups)
    if not ((scales >= 0) & (scales <= LARGEST_SCALE)).all():
        raise CacheDamaged("the scale of a vector is negative, infinite or no number")
    values = coded[:, :width].view(np.int8).astype(np.float32)
    result: Floats = values * np.repeat(scales, group, axis=1)[:, :width]
    return result
