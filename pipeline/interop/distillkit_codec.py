"""Decoders of DistillKit's two codecs: log-probabilities (recommended), or logits minus their mean (legacy), and ids.

In: the packed bytes or words of some rows, and the codec's settings. Out: float32 values and int64 ids, [rows, k].
Arithmetic is torch's, in the dtypes of the encoder, since residuals are relative to its polynomial in those dtypes.

Recommended: exact_k values, then fit(t) + residual for t = 0, 1, ..., fit(t) = sum of coefficient * term(t); with
delta encoding their cumulative sums. Legacy: t = 1, 2, ..., terms t^0, t^-1, ..., t^-degree.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdpipe.schemas.interop import DistillkitCodec, DistillkitLegacyCodec, FloatName, ResidualBin, Term

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
DTYPES: dict[FloatName, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
WORD_BITS = 64
# Largest error of the mean of fitted values from coefficients of few bits.
MEAN_SLACK_NATS = 1.0


def id_bits(vocabulary_size: int) -> int:
    """Bits per id: ceil(log2 V)."""
    return (vocabulary_size - 1).bit_length()


def id_bytes(codec: DistillkitCodec) -> int:
    """Bytes of ids per row."""
    return -(-codec.k * id_bits(codec.d) // 8)


def value_bytes(codec: DistillkitCodec) -> int:
    """Bytes of values per row."""
    exact = codec.exact_k * _size(codec.exact_dtype)
    terms = len(codec.polynomial_terms or ()) * _size(codec.term_dtype)
    return exact + terms + sum(_bin_bytes(residual_bin) for residual_bin in codec.residual_bins)


def _bin_bytes(residual_bin: ResidualBin) -> int:
    return _size(residual_bin.scale_dtype) + -(-residual_bin.num_elements * residual_bin.element_bits // 8)


def unpack(packed: Bytes, bits: int, n: int) -> Longs:
    """The first n numbers of each row, `bits` wide, most significant bit first."""
    places = np.unpackbits(packed, axis=1)[:, : n * bits].reshape(len(packed), n, bits)
    numbers = np.zeros((len(packed), n), np.int64)
    for place in range(bits):
        numbers = (numbers << 1) | places[:, :, place]
    return numbers


def decode_ids(codec: DistillkitCodec, packed: Bytes) -> Longs:
    """The ids of each row, most probable first."""
    return unpack(packed, id_bits(codec.d), codec.k)


def decode_values(codec: DistillkitCodec, packed: Bytes) -> Floats:
    """The log-probabilities of each row, equal to those of DistillKit's own decoder."""
    terms = codec.polynomial_terms or ()
    exact_RK, coefficients_RJ = _stored(codec, packed)
    bins_place = codec.exact_k * _size(codec.exact_dtype) + len(terms) * _size(codec.term_dtype)
    left_RK = _residuals(codec, packed[:, bins_place:]).to(DTYPES[codec.exact_dtype])
    if terms:
        terms_KJ = _terms(terms, codec.k - codec.exact_k, DTYPES[codec.term_dtype], codec.normalize_t)
        left_RK = (terms_KJ * coefficients_RJ[:, None, :]).sum(-1) + left_RK
    values_RK = torch.cat([exact_RK, left_RK], dim=-1)
    if codec.delta_encoding:
        values_RK = values_RK.float().cumsum(-1).to(DTYPES[codec.exact_dtype])
    return values_RK.float().numpy()


def beyond_codec(codec: DistillkitCodec, packed: Bytes) -> npt.NDArray[np.bool_]:
    """Rows that cannot be a fit of probabilities, for a polynomial with a constant term.

    k probabilities add up to at most 1, so their mean log p, and the smallest, is at most -log k. A least squares fit
    with a constant preserves the sum: of the log p, or (delta encoding) of their differences, which is the smallest.
    """
    exact_RK, coefficients_RJ = _stored(codec, packed)
    terms_KJ = _terms(
        codec.polynomial_terms or (), codec.k - codec.exact_k, DTYPES[codec.term_dtype], codec.normalize_t
    )
    total_R = exact_RK.double().sum(-1) + coefficients_RJ.double() @ terms_KJ.double().sum(0)
    kept_R = total_R if codec.delta_encoding else total_R / codec.k
    impossible: npt.NDArray[np.bool_] = (kept_R > MEAN_SLACK_NATS - math.log(codec.k)).numpy()
    return impossible


def _stored(codec: DistillkitCodec, packed: Bytes) -> tuple[Tensor, Tensor]:
    """The exact values of each row, and the coefficients of its polynomial."""
    exact_end = codec.exact_k * _size(codec.exact_dtype)
    terms_end = exact_end + len(codec.polynomial_terms or ()) * _size(codec.term_dtype)
    return _numbers(packed[:, :exact_end], codec.exact_dtype), _numbers(
        packed[:, exact_end:terms_end], codec.term_dtype
    )


def _terms(terms: tuple[Term, ...], n: int, dtype: torch.dtype, normalized: bool) -> Tensor:
    """The terms of the polynomial at ranks 0 to n - 1, or at n points from 0 to 1."""
    points_K = torch.linspace(0, 1, steps=n, dtype=dtype) if normalized else torch.arange(n, dtype=dtype)
    named = {"sqrt": torch.sqrt, "exp": torch.exp}
    columns = [points_K**term if isinstance(term, int) else named[term](points_K) for term in terms]
    return torch.stack(columns, dim=-1)


def _residuals(codec: DistillkitCodec, packed: Bytes) -> Tensor:
    """The residual of each value that is not exact: an integer code times the scale of its bin."""
    residuals_RK = torch.zeros(len(packed), codec.k - codec.exact_k)
    place = column = 0
    for spec in codec.residual_bins:
        codes_place, end = place + _size(spec.scale_dtype), place + _bin_bytes(spec)
        scale_R1 = _numbers(packed[:, place:codes_place], spec.scale_dtype)
        codes_RK = torch.from_numpy(unpack(packed[:, codes_place:end], spec.element_bits, spec.num_elements))
        # A single bit is the sign of the scale.
        wide = spec.element_bits > 1
        whole_RK = (codes_RK - (1 << (spec.element_bits - 1))).float() if wide else codes_RK.float() * 2 - 1
        residuals_RK[:, column : column + spec.num_elements] = whole_RK * scale_R1
        place, column = end, column + spec.num_elements
    return residuals_RK


def _size(kind: FloatName) -> int:
    return DTYPES[kind].itemsize


def _numbers(packed: Bytes, kind: FloatName) -> Tensor:
    """Little-endian numbers from their bytes."""
    data = torch.from_numpy(np.array(packed, order="C"))
    if not data.shape[1]:
        return torch.zeros(len(packed), 0, dtype=DTYPES[kind])
    return data.view(DTYPES[kind])


def legacy_ids_per_word(codec: DistillkitLegacyCodec) -> int:
    """Ids per 64-bit word; the remaining bits are unused."""
    return WORD_BITS // id_bits(codec.vocab_size)


def legacy_words(codec: DistillkitLegacyCodec) -> int:
    """64-bit words of ids per row."""
    return -(-codec.k // legacy_ids_per_word(codec))


def legacy_terms(codec: DistillkitLegacyCodec) -> int:
    """Coefficients per row."""
    return codec.polynomial_degree + 1 + codec.with_sqrt_term if codec.exact_k < codec.k else 0


def decode_legacy_ids(codec: DistillkitLegacyCodec, words: npt.NDArray[np.uint64]) -> Longs:
    """The ids of each row; the first id of a word is in its lowest bits."""
    bits = id_bits(codec.vocab_size)
    shifts = np.arange(legacy_ids_per_word(codec), dtype=np.uint64) * np.uint64(bits)
    ids = (words[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
    return ids.reshape(len(words), -1)[:, : codec.k].astype(np.int64)


def decode_legacy_values(codec: DistillkitLegacyCodec, exact: Floats, coefficients: Floats) -> Floats:
    """The logits of each row, minus their mean over the vocabulary."""
    if codec.exact_k == codec.k:
        return exact
    points_K = torch.arange(1, codec.k - codec.exact_k + 1, dtype=torch.float32)
    powers = [-i if codec.invert_polynomial else i for i in range(codec.polynomial_degree + 1)]
    columns = [points_K**power for power in powers] + ([points_K.sqrt()] if codec.with_sqrt_term else [])
    terms_KJ = torch.stack(columns, dim=-1)
    fitted_RK = (terms_KJ * torch.from_numpy(coefficients)[:, None, :]).sum(-1)
    return np.concatenate([exact, fitted_RK.numpy()], axis=1)
