"""DistillKit's recommended codec the slow way: what `pipeline/interop/distillkit_codec.py` is compared with.

In: values and ids of a row. Out: the bytes an encoder would write for them, and what is meant by them, number by number
in Python. The polynomial is not fitted: coefficients are given.
"""

import math
import struct
from collections.abc import Sequence

import torch

from kdpipe.schemas.interop import DistillkitCodec, ResidualBin

TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def bits_of(numbers: Sequence[int], width: int) -> bytes:
    """Numbers of one bit width, concatenated, most significant bit first, padded with zeros."""
    text = "".join(format(number, f"0{width}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def floats(values: Sequence[float], kind: str) -> bytes:
    """Numbers of a type, little-endian."""
    if kind == "bfloat16":
        halves = [struct.unpack("<I", struct.pack("<f", in_type(value, kind)))[0] >> 16 for value in values]
        return struct.pack(f"<{len(halves)}H", *halves)
    return struct.pack(f"<{len(values)}{ {'float16': 'e', 'float32': 'f', 'float64': 'd'}[kind] }", *values)


def in_type(value: float, kind: str) -> float:
    """A number rounded to a type."""
    return float(torch.tensor(value, dtype=torch.float64).to(TYPES[kind]))


def packed_values(
    codec: DistillkitCodec,
    exact: Sequence[float],
    coefficients: Sequence[float],
    bins: Sequence[tuple[float, list[int]]],
) -> bytes:
    """The bytes of a row: exact values, coefficients, and a scale with its codes for each bin."""
    data = floats(exact, codec.exact_dtype) + floats(coefficients, codec.term_dtype)
    for one, (scale, codes) in zip(codec.residual_bins, bins, strict=True):
        data += floats([scale], one.scale_dtype) + bits_of(codes, one.element_bits)
    return data


def meant(
    codec: DistillkitCodec,
    exact: Sequence[float],
    coefficients: Sequence[float],
    bins: Sequence[tuple[float, list[int]]],
) -> list[float]:
    """The values of that row in float64."""
    n = codec.k - codec.exact_k
    residuals = [
        number
        for one, (scale, codes) in zip(codec.residual_bins, bins, strict=True)
        for number in _of(one, scale, codes)
    ]
    residuals += [0.0] * (n - len(residuals))
    points = [t / max(1, n - 1) if codec.normalize_t else float(t) for t in range(n)]
    fit = [
        sum(
            in_type(coefficient, codec.term_dtype) * _term(term, point)
            for term, coefficient in zip(codec.polynomial_terms or (), coefficients, strict=True)
        )
        for point in points
    ]
    values = [in_type(value, codec.exact_dtype) for value in exact]
    values += [a + b for a, b in zip(fit, residuals, strict=True)]
    if codec.delta_encoding:
        values = [math.fsum(values[: i + 1]) for i in range(len(values))]
    return values


def _of(one: ResidualBin, scale: float, codes: list[int]) -> list[float]:
    rounded = in_type(scale, one.scale_dtype)
    if one.element_bits == 1:
        return [rounded if code else -rounded for code in codes]
    return [(code - 2 ** (one.element_bits - 1)) * rounded for code in codes]


def _term(term: int | str, point: float) -> float:
    if isinstance(term, int):
        return point**term
    return math.sqrt(point) if term == "sqrt" else math.exp(point)
