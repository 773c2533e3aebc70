"""DistillKit's codecs: what its own decoder gave, a plain twin for other settings, and the widths of rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.pipeline.interop import distillkit_codec as codec
from kdpipe.schemas.interop import DistillkitCodec, DistillkitLegacyCodec, ResidualBin
from support.distillkit_encoder import BUDGET, encode
from support.distillkit_twin import bits_of, meant, packed_values
from support.interop_sources import SETS, distillkit_codec, distillkit_rows, expected

LEGACY = DistillkitLegacyCodec(k=128, exact_k=32, polynomial_degree=8, vocab_size=4096)


@pytest.mark.parametrize("name", SETS)
def test_rows_written_by_distillkit_decode_like_its_own_decoder(name: str) -> None:
    its, due = distillkit_codec(name), expected(name)
    for number, row in enumerate(distillkit_rows(name)):
        ids = codec.decode_ids(its, np.array(row["bytepacked_indices"], np.uint8))
        values = codec.decode_values(its, np.array(row["compressed_logprobs"], np.uint8))
        np.testing.assert_array_equal(ids, due["ids"][number])
        # Sums of six float32 terms are equal but for the order in which a machine adds them.
        np.testing.assert_allclose(values, due["logprobs"][number], rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"delta_encoding": True},
        {"delta_encoding": True, "exact_k": 8, "polynomial_terms": (0, 1, 2), "exact_dtype": "float32"},
        {"exact_k": 16, "polynomial_terms": (0, 1, 2, 3, "sqrt")},
        {"exact_k": 0},
    ],
)
def test_no_valid_fit_is_refused_as_damaged(changes: dict[str, Any]) -> None:
    its = BUDGET.model_copy(update=changes)
    rng = np.random.default_rng(5)
    for spread in (0.0, 0.5, 2.0, 6.0, 20.0):
        logits = rng.normal(size=(40, its.d)) * spread
        logits[:10, :3] += 20 * spread  # a plateau, then a cliff
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        packed = np.array(encode(its, [1] * len(logp), logp).columns["compressed_logprobs"], np.uint8)
        assert not codec.beyond_codec(its, packed).any()
    assert codec.beyond_codec(its, np.zeros((3, codec.value_bytes(its)), np.uint8)).all()


def test_legacy_rows_decode_like_distillkits_decoder() -> None:
    due = expected("legacy")
    for number, row in enumerate(distillkit_rows("legacy")):
        ids = codec.decode_legacy_ids(LEGACY, np.array(row["packed_indices"], np.uint64))
        exact, coefficients = (np.array(row[name], np.float32) for name in ("exact_values", "coeffs"))
        values = codec.decode_legacy_values(LEGACY, exact, coefficients)
        np.testing.assert_array_equal(ids, due["ids"][number])
        # Coefficients of up to 16,000 cancel: in float32 another order of the sum is worth a thousandth.
        np.testing.assert_allclose(values, due["logits"][number], rtol=0, atol=2e-3)


def test_widths_are_those_of_rows_that_distillkit_wrote() -> None:
    for name in SETS:
        its, row = distillkit_codec(name), distillkit_rows(name)[0]
        assert codec.value_bytes(its) == len(row["compressed_logprobs"][0])
        assert codec.id_bytes(its) == len(row["bytepacked_indices"][0])
    row = distillkit_rows("legacy")[0]
    assert codec.legacy_words(LEGACY) == len(row["packed_indices"][0])
    assert codec.legacy_terms(LEGACY) == len(row["coeffs"][0])
    # DistillKit's recommended settings: 344 bytes with ids of 18 bits, and three ids of 17 bits in a word.
    recommended = DistillkitCodec(
        d=151_936, k=128, exact_k=16, exact_dtype="bfloat16", polynomial_terms=(0, 1, 2, 3, 4, "sqrt"),
        residual_bins=(), delta_encoding=False,
    )  # fmt: skip
    assert codec.value_bytes(recommended) + codec.id_bytes(recommended) == 344
    assert codec.legacy_ids_per_word(LEGACY.model_copy(update={"vocab_size": 128_256})) == 3


@pytest.mark.parametrize(("size", "bits"), [(2, 1), (3, 2), (4096, 12), (4097, 13), (131_072, 17), (131_073, 18)])
def test_an_id_takes_as_many_bits_as_the_vocabulary_needs(size: int, bits: int) -> None:
    assert codec.id_bits(size) == bits


@given(data=st.data(), width=st.integers(1, 63))
@settings(max_examples=60, deadline=None)
def test_packed_numbers_are_unpacked(data: st.DataObject, width: int) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**width - 1), min_size=5, max_size=5), min_size=1, max_size=3))
    packed = np.array([list(bits_of(row, width)) for row in rows], np.uint8)
    assert codec.unpack(packed, width, 5).tolist() == rows


def settings_of(**changes: Any) -> DistillkitCodec:
    given_ones = {"d": 100, "k": 9, "exact_k": 3, "residual_bins": (), "delta_encoding": False, **changes}
    return DistillkitCodec(**given_ones)


BINS = (
    ResidualBin(scale_dtype="float32", element_bits=8, num_elements=2),
    ResidualBin(scale_dtype="bfloat16", element_bits=1, num_elements=2),
)
CASES = {
    "everything exact": settings_of(k=3),
    "powers": settings_of(polynomial_terms=(0, 1, 2)),
    "root and exponential": settings_of(polynomial_terms=("sqrt", "exp", 0)),
    "places from 0 to 1": settings_of(polynomial_terms=(0, 3), normalize_t=True),
    "bins alone": settings_of(residual_bins=BINS),
    "bins on a polynomial": settings_of(residual_bins=BINS, polynomial_terms=(0, 1)),
    "differences": settings_of(polynomial_terms=(0,), delta_encoding=True),
    "double": settings_of(exact_dtype="float64", term_dtype="float64", polynomial_terms=(0, 1)),
    "halves": settings_of(exact_dtype="float16", polynomial_terms=(0, 1)),
    "nothing exact": settings_of(exact_k=0, polynomial_terms=(0, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_setting_decodes_like_the_plain_reference(name: str) -> None:
    its = CASES[name]
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(4):
        exact = np.sort(-rng.exponential(2, its.exact_k))[::-1].tolist()
        coefficients = rng.normal(0, 0.01, len(its.polynomial_terms or ())).tolist()
        bins = [
            (abs(rng.normal(0, 0.1)), rng.integers(0, 2**one.element_bits, one.num_elements).tolist())
            for one in its.residual_bins
        ]
        rows.append((exact, coefficients, bins))
    packed = np.array([list(packed_values(its, *row)) for row in rows], np.uint8)
    assert packed.shape == (4, codec.value_bytes(its))
    due = np.array([meant(its, *row) for row in rows])
    np.testing.assert_allclose(codec.decode_values(its, packed), due, rtol=2e-6, atol=2e-6)


def test_polynomials_are_evaluated_in_the_dtype_of_the_encoder() -> None:
    """Residuals contain the error of a bfloat16 polynomial: evaluating it in float32 would correct it twice."""
    its = settings_of(term_dtype="bfloat16", polynomial_terms=(0, 1), exact_k=0, k=8)
    rows = np.array([list(packed_values(its, [], [-1.0, -0.3333], []))], np.uint8)
    found = codec.decode_values(its, rows)[0]
    coarse = {round(float(value) * 128) / 128 for value in found}
    assert coarse == set(found.tolist())
    np.testing.assert_allclose(found, meant(its, [], [-1.0, -0.3333], []), rtol=1 / 128)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"exact_k": 10}, "exact_k <= k <= d, found 10, 9 and 100"),
        ({"d": 5}, "exact_k <= k <= d, found 3, 9 and 5"),
        ({}, "neither polynomial_terms nor residual_bins encode the 6 values"),
        ({"residual_bins": (BINS[0],) * 4}, "residual_bins have more elements than the 6 values"),
        ({"exact_dtype": "float8"}, "Input should be 'float16', 'bfloat16', 'float32' or 'float64'"),
        ({"polynomial_terms": ("cosine",)}, "Input should be 'sqrt' or 'exp'"),
        ({"k": 5000, "d": 9000}, "less than or equal to 4096"),
        ({"huffman": True}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_codec_settings_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        settings_of(**changes)


def test_settings_of_the_legacy_codec_are_bounded() -> None:
    with pytest.raises(ValueError, match="exact_k <= k <= vocab_size, found 9, 4 and 100"):
        DistillkitLegacyCodec(k=4, exact_k=9, polynomial_degree=2, vocab_size=100)
