"""Quantizers turn numbers into codes and codes into numbers exactly as the float64 twin does."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache.format.quantizers import (
    LARGEST_SCALE,
    complement_table,
    dequantize_vectors,
    quantize_vectors,
    to_codes,
    value_table,
)
from kdpipe.schemas.arrays import (
    LARGEST_CODE,
    MINUS_INFINITY,
    MISSING,
    LinearQuantizer,
    LogOddsQuantizer,
    log_z_quantizer,
)
from kdpipe.schemas.errors import CacheWriteError
from support import reference

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
LINEAR = [
    LinearQuantizer(step=1 / 16, sign=-1),
    LinearQuantizer(step=1 / 1024),
    LinearQuantizer(step=0.003, zero=1000),
    LinearQuantizer(step=0.01, zero=65_000, sign=-1),
    log_z_quantizer(2.0, 152_000),
    log_z_quantizer(0.5, 152_000),
]
LOG_ODDS = [LogOddsQuantizer(step=1 / 256, zero=1 << 15), LogOddsQuantizer(step=0.01, zero=40_000)]
every_quantizer = pytest.mark.parametrize("quantizer", [*LINEAR, *LOG_ODDS], ids=repr)
log_probabilities = st.one_of(st.floats(-300, 0, width=32), st.floats(-(2.0**-10), 0, width=32), st.sampled_from([0.0]))


def coded(quantizer: LinearQuantizer | LogOddsQuantizer, values: list[float]) -> list[int]:
    return [int(code) for code in to_codes(quantizer, np.array(values, np.float32), "x")]


def test_the_largest_and_the_smallest_vectors_come_back() -> None:
    largest = LARGEST_SCALE * 127
    vectors = np.array([[2e-43, -2e-43, 0], [largest, -largest, 1]], np.float32)
    back = dequantize_vectors(quantize_vectors(vectors, 3), 3, 3)
    assert back[0, 0] > 0 > back[0, 1]
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back[1], vectors[1], rtol=1e-6, atol=float(largest) / 250)


@every_quantizer
def test_every_code_has_the_value_of_its_quantizer(quantizer: LinearQuantizer | LogOddsQuantizer) -> None:
    table = value_table(quantizer)
    for code in [*range(0, 65_536, 97), quantizer.zero, LARGEST_CODE, MINUS_INFINITY, MISSING]:
        np.testing.assert_allclose(table[code], reference.decode(quantizer, code), rtol=1e-6, atol=1e-37)
    assert table.dtype == np.float32
    assert not table.flags.writeable


@every_quantizer
def test_every_value_is_the_code_that_it_came_from(quantizer: LinearQuantizer | LogOddsQuantizer) -> None:
    table = value_table(quantizer)
    distinct = np.flatnonzero(np.diff(table[: LARGEST_CODE + 1], append=1e9) != 0)
    if isinstance(quantizer, LogOddsQuantizer):
        # Nearer to 0 than this, float32 does not tell neighboring codes of log p apart.
        distinct = distinct[np.abs(distinct - quantizer.zero) * quantizer.step < 9.0]
    assert len(distinct) > 1000
    np.testing.assert_array_equal(to_codes(quantizer, table[distinct], "x"), distinct)


@quick
@given(value=log_probabilities)
def test_log_odds_are_coded_as_the_twin_codes_them(value: float) -> None:
    for quantizer in LOG_ODDS:
        assert coded(quantizer, [value]) == [reference.encode(quantizer, value)]


@quick
@given(value=st.floats(0, 20, width=32), number=st.integers(0, len(LINEAR) - 1))
def test_linear_numbers_are_coded_as_the_twin_codes_them(value: float, number: int) -> None:
    quantizer = LINEAR[number]
    signed = quantizer.sign * value if quantizer.zero == 0 else value - 2
    assert coded(quantizer, [signed]) == [reference.encode(quantizer, float(np.float32(signed)))]
    decoded = float(value_table(quantizer)[coded(quantizer, [signed])[0]])
    assert abs(decoded - signed) <= quantizer.step / 2 + 1e-5


@quick
@given(value=log_probabilities)
def test_the_complement_of_a_code_is_exact_on_both_sides(value: float) -> None:
    quantizer = LOG_ODDS[0]
    code = coded(quantizer, [value])[0]
    complement = float(complement_table(quantizer)[code])
    assert math.isclose(complement, reference.complement(quantizer, code), rel_tol=1e-6, abs_tol=1e-37)
    p, q = math.exp(float(value_table(quantizer)[code])), math.exp(complement)
    assert math.isclose(p + q, 1.0, rel_tol=1e-6)


def test_ties_round_to_even_codes() -> None:
    assert coded(LinearQuantizer(step=1 / 16, sign=-1), [-0.5 / 16, -1.5 / 16, -2.5 / 16]) == [0, 2, 2]


@every_quantizer
def test_missing_and_minus_infinity_have_codes_of_their_own(quantizer: LinearQuantizer | LogOddsQuantizer) -> None:
    assert coded(quantizer, [math.nan, -math.inf]) == [MISSING, MINUS_INFINITY]
    table = value_table(quantizer)
    assert math.isnan(table[MISSING])
    assert table[MINUS_INFINITY] == -math.inf
    if isinstance(quantizer, LogOddsQuantizer):
        assert math.isnan(complement_table(quantizer)[MISSING])
        assert complement_table(quantizer)[MINUS_INFINITY] == 0


def test_probabilities_too_small_for_a_code_become_zero_and_log_odds_stop() -> None:
    assert coded(LinearQuantizer(step=1 / 256, sign=-1), [-255.9, -256.1, -1e30]) == [
        65_510,
        MINUS_INFINITY,
        MINUS_INFINITY,
    ]
    assert coded(LOG_ODDS[0], [0.0, -1e30, -127.9]) == [LARGEST_CODE, 0, 26]


@pytest.mark.parametrize(
    ("quantizer", "value", "bounds"),
    [
        (LinearQuantizer(step=1 / 1024), 64.0, "0.0 to 63.997"),
        (LinearQuantizer(step=1 / 1024), -0.1, "0.0 to 63.997"),
        (LinearQuantizer(step=1 / 16, sign=-1), 0.2, "-4095.8125 to -?0.0"),
        (LinearQuantizer(step=1 / 16, sign=-1), math.inf, "-4095.8125 to -?0.0"),
        (LinearQuantizer(step=1 / 1024), math.inf, "0.0 to 63.997"),
    ],
)
def test_a_number_outside_its_quantizer_is_refused_with_its_row(
    quantizer: LinearQuantizer, value: float, bounds: str
) -> None:
    with pytest.raises(CacheWriteError, match=rf"entropy is {value!r}.* at row 2, its quantizer holds {bounds}"):
        to_codes(quantizer, np.array([0.0, math.nan, value], np.float64), "entropy")


@quick
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 20)),
    group=st.integers(1, 25),
    exponent=st.integers(-30, 36),
)
def test_vectors_come_back_within_half_a_step_of_their_group(
    seed: int, shape: tuple[int, int], group: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal(shape) * 10.0**exponent).astype(np.float32)
    vectors[rng.random(shape) < 0.2] = 0
    vectors_coded = quantize_vectors(vectors, group)
    n_groups = -(-shape[1] // group)
    assert vectors_coded.shape == (shape[0], shape[1] + 4 * n_groups)
    decoded = dequantize_vectors(vectors_coded, shape[1], group)
    np.testing.assert_allclose(decoded, reference.quantized(vectors, group), rtol=1e-6, atol=0)
    for first in range(0, shape[1], group):
        cut = slice(first, first + group)
        largest = np.abs(vectors[:, cut]).max(axis=1, keepdims=True)
        assert (np.abs(decoded[:, cut] - vectors[:, cut]) <= largest / 253).all()
        assert (decoded[:, cut][vectors[:, cut] == 0] == 0).all()
