"""Hidden states: the layers that are kept, random signs that anyone can draw again, PCA, and means over documents."""

import math

import numpy as np
import pytest
import torch

from kdpipe.pipeline.targets.hidden_states import PcaFit, Projector, hidden_spec, layer_number, mean_states, sign_matrix
from kdpipe.schemas.capture_settings import HiddenSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, RandomProjection, Vector, WholeState

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
# The signs of seed 1, layer 6, from 8 numbers to 4.
PINNED = [
    [1, 1, 1, -1, -1, -1, 1, 1],
    [1, -1, 1, -1, 1, -1, 1, -1],
    [1, 1, -1, 1, 1, -1, -1, -1],
    [1, 1, 1, -1, 1, -1, 1, 1],
]


def mix(x: int) -> int:
    """The finalizer of splitmix64, in whole numbers of Python."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def signs_by_the_page(seed: int, layer: int, input_width: int, width: int) -> list[list[int]]:
    """The recipe of docs/cache-format.md, number by number."""
    g, key = 0x9E3779B97F4A7C15, 0
    for word in (seed, layer, input_width, width):
        key = mix((key + g + word) & MASK)
    return [
        [-1 if mix((key + (o * input_width + i + 1) * g) & MASK) >> 63 else 1 for i in range(input_width)]
        for o in range(width)
    ]


def test_by_default_the_middle_and_the_last_layer_are_pooled_within_140_bytes() -> None:
    spec = hidden_spec(HiddenSettings(), [768] * 13, 5)
    vectors = [Vector(layer=layer, width=64, group=64, projection=RandomProjection(seed=5)) for layer in (6, 12)]
    assert spec == HiddenSpec(pooled=tuple(vectors))
    assert sum(vector.n_bytes for vector in spec.pooled) <= 140


def test_pooling_is_turned_off_and_layers_are_named() -> None:
    settings = HiddenSettings(pooled=False, layers=("0.5", "1.0", "0"), dim=100, projection="pca")
    spec = hidden_spec(settings, [256] * 6, 0)
    assert not spec.pooled
    assert [(vector.layer, vector.width, vector.group) for vector in spec.rows] == [
        (3, 100, 64),
        (5, 100, 64),
        (0, 100, 64),
    ]
    assert {vector.projection for vector in spec.rows} == {PcaProjection(input_width=256)}


def test_a_narrow_state_is_kept_whole_and_one_layer_is_both_middle_and_last() -> None:
    spec = hidden_spec(HiddenSettings(layers=("1",), dim=32), [32] * 2, 0)
    whole = Vector(layer=1, width=32, group=32, projection=WholeState())
    assert spec == HiddenSpec(pooled=(whole,), rows=(whole,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (HiddenSettings(layers=("7",)), "layer 7 is above the last layer, 6"),
        (HiddenSettings(layers=("0.5", "3")), "duplicate: 0.5, 3 are layers 3, 3 of 6"),
        (HiddenSettings(layers=("1.0",), dim=97), "hidden.dim is 97, the states of this teacher have 96 numbers"),
    ],
)
def test_layers_that_are_not_there_are_refused(settings: HiddenSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hidden_spec(settings, [96] * 7, 0)


@pytest.mark.parametrize(("layer", "number"), [("0.0", 0), ("0.5", 2), ("0.51", 2), ("0.75", 2), ("1.0", 3), ("3", 3)])
def test_a_fraction_is_rounded_to_a_layer(layer: str, number: int) -> None:
    assert layer_number(layer, 3) == number


@pytest.mark.parametrize(
    ("seed", "layer", "input_width", "width"), [(0, 0, 7, 3), (2**63 - 1, 12, 5, 64), (9, 1, 1, 1)]
)
def test_signs_are_those_of_the_page(seed: int, layer: int, input_width: int, width: int) -> None:
    matrix = sign_matrix(RandomProjection(seed=seed), layer, input_width, width)
    expected = np.array(signs_by_the_page(seed, layer, input_width, width)) / math.sqrt(width)
    np.testing.assert_array_equal(matrix.numpy(), expected.astype(np.float32))


def test_signs_never_change() -> None:
    matrix = sign_matrix(RandomProjection(seed=1), 6, 8, 4)
    assert (matrix * 2).int().tolist() == PINNED


def test_signs_are_even_and_uncorrelated() -> None:
    matrix = sign_matrix(RandomProjection(seed=3), 12, 768, 64)
    assert abs(float(matrix.sign().mean())) < 5 / math.sqrt(matrix.numel())
    gram = (matrix @ matrix.T * 64 / math.sqrt(768)).fill_diagonal_(0)
    assert float(gram.abs().max()) < 5


def test_projections_of_other_layers_differ() -> None:
    one, other = (sign_matrix(RandomProjection(seed=3), layer, 64, 64) for layer in (1, 2))
    assert 0.4 < float((one == other).float().mean()) < 0.6


def test_a_projection_keeps_lengths_on_average() -> None:
    states = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    vector = Vector(layer=2, width=64, group=64, projection=RandomProjection(seed=1))
    projector = Projector([vector], [256] * 3, CPU)
    narrow = projector.project(2, states.bfloat16())
    assert narrow.dtype == torch.float32
    assert projector.layers == (2,)
    # Relative deviation of a squared length is sqrt(2 / 64), of the mean of 500 of them under one matrix about 0.05.
    assert abs(float(narrow.square().sum() / states.square().sum()) - 1) < 0.1


def test_a_pca_of_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden\.projection pca") as caught:
        hidden_spec(HiddenSettings(projection="pca"), [256] * 5, 0)
    assert caught.value.hint is not None and "--hidden-layers" in caught.value.hint


def test_pca_finds_the_plane_that_states_lie_in() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((20, 3)))[0].T
    states = rng.standard_normal((6000, 3)) * [5.0, 2.0, 1.0] @ basis + rng.standard_normal(20) * 10
    fit = PcaFit()
    for some in torch.split(torch.from_numpy(states).float(), 999):
        fit.add(some)
    matrix, mean = fit.result(3)
    np.testing.assert_allclose(matrix.double() @ matrix.double().T, np.eye(3), atol=1e-6)
    # float32 states of about 10 are rounded by 1e-6.
    np.testing.assert_allclose(mean, states.mean(axis=0), atol=1e-5)
    vector = Vector(layer=1, width=3, group=3, projection=PcaProjection(input_width=20))
    narrow = (
        Projector([vector], [20] * 2, CPU, {1: (matrix, mean)}).project(1, torch.from_numpy(states)).double().numpy()
    )
    np.testing.assert_allclose(narrow @ matrix.double().numpy() + mean.double().numpy(), states, atol=1e-4)
    assert (np.diff(narrow.std(axis=0)) < 0).all()
    assert (matrix.gather(1, matrix.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_states_far_from_zero_are_fitted_as_those_around_it() -> None:
    states = torch.randn(500, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states *= torch.arange(1, 7)
    found = []
    for shift in (0, 1e6):
        fit = PcaFit()
        fit.add(states[:100] + shift)
        fit.add(states[100:] + shift)
        found.append(fit.result(6)[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_pca_of_nothing_is_refused() -> None:
    for n, width in ((0, 2), (1, 2), (9, 5)):
        fit = PcaFit()
        fit.add(torch.zeros(n, 4))
        with pytest.raises(ConfigError, match="cannot be fitted"):
            fit.result(width)


def test_a_mean_leaves_padding_out() -> None:
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 1, 3])
    padded = states.clone()
    padded[1, 1:] = torch.nan
    padded[2, 3:] = torch.inf
    expected = torch.stack([states[b, :n].mean(dim=0) for b, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(mean_states(padded, lengths), expected)
