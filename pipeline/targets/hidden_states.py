"""Summaries of hidden states: which layers, how they are projected, and a document's mean.

In: `HiddenSettings`, states of some layers on any device. Out: a `HiddenSpec`; narrow vectors.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdpipe.pipeline.targets.draws import key_of, words
from kdpipe.schemas.capture_settings import HiddenSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, Projection, RandomProjection, Vector, WholeState

# Two layers of 64 int8 and a float32 scale each are 136 bytes per document.
POOLED_LAYERS = ("0.5", "1.0")
POOLED_WIDTH = 64
GROUP = 64
_PCA_ROWS = 4096


def hidden_spec(settings: HiddenSettings, widths: Sequence[int], seed: int) -> HiddenSpec:
    """The hidden states to store of a teacher with these layer widths; layer 0 is the output of the embedding."""
    n_layers = len(widths) - 1
    if settings.projection == "pca" and not settings.layers:
        raise ConfigError(
            "hidden.projection pca applies to states of every position, and no --hidden-layers are given",
            hint="give --hidden-layers, e.g. 0.5,1.0, or omit hidden.projection",
        )
    projection: Projection = RandomProjection(seed=seed)
    pooled = [_vector(layer, POOLED_WIDTH, widths[layer], projection) for layer in _distinct(POOLED_LAYERS, n_layers)]
    layers = [layer_number(layer, n_layers) for layer in settings.layers]
    if len(set(layers)) != len(layers):
        raise ConfigError(
            f"--hidden-layers has a duplicate: {', '.join(settings.layers)} are layers "
            f"{', '.join(map(str, layers))} of {n_layers}",
            hint="give each layer once",
        )
    narrowest = min((widths[layer] for layer in layers), default=settings.dim)
    if settings.dim > narrowest:
        raise ConfigError(
            f"hidden.dim is {settings.dim}, the states of this teacher have {narrowest} numbers",
            hint=f"give at most {narrowest}",
        )
    fitted = settings.projection == "pca"
    rows = [
        _vector(layer, settings.dim, widths[layer], PcaProjection(input_width=widths[layer]) if fitted else projection)
        for layer in layers
    ]
    return HiddenSpec(pooled=tuple(pooled) if settings.pooled else (), rows=tuple(rows))


def layer_number(layer: str, n_layers: int) -> int:
    """The number of a layer that is given as one, or as a fraction of the depth with a point."""
    number = math.floor(float(layer) * n_layers + 0.5) if "." in layer else int(layer)
    if number > n_layers:
        raise ConfigError(
            f"--hidden-layers {layer}: layer {number} is above the last layer, {n_layers}",
            hint="give a lower number, or a fraction of the depth such as 0.5",
        )
    return number


def _distinct(layers: Sequence[str], n_layers: int) -> list[int]:
    return sorted({layer_number(layer, n_layers) for layer in layers})


def _vector(layer: int, dim: int, width: int, projection: Projection) -> Vector:
    """Project a state, unless it is already narrow enough."""
    if width <= dim:
        dim, projection = width, WholeState()
    return Vector(layer=layer, width=dim, group=min(GROUP, dim), projection=projection)


def sign_matrix(projection: RandomProjection, layer: int, input_width: int, width: int) -> Tensor:
    """[width, input_width] numbers of size 1 / sqrt(width); docs/cache-format.md has the recipe."""
    key = key_of(projection.seed, layer, input_width, width)
    size = 1 / math.sqrt(width)
    drawn = words(key, torch.arange(width * input_width)).view(width, input_width)
    return torch.where(drawn < 0, -size, size).float()


class Projector:
    """Projects the states of some layers in float32, on their device."""

    def __init__(
        self,
        vectors: Sequence[Vector],
        input_widths: Sequence[int],
        device: torch.device,
        fitted: Mapping[int, "Pca"] | None = None,
    ) -> None:
        """`input_widths` are those of each layer's states; `fitted` has matrix and mean of each whose projection is a
        PCA."""
        self._maps: dict[int, tuple[Tensor, Tensor | None] | None] = {}
        for vector in vectors:
            self._maps[vector.layer] = None
            if isinstance(vector.projection, RandomProjection):
                matrix = sign_matrix(vector.projection, vector.layer, input_widths[vector.layer], vector.width)
                self._maps[vector.layer] = (matrix.to(device), None)
            elif isinstance(vector.projection, PcaProjection):
                matrix, mean = (fitted or {})[vector.layer]
                self._maps[vector.layer] = (matrix.to(device), mean.to(device))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a projection."""
        return tuple(self._maps)

    def project(self, layer: int, states: Tensor) -> Tensor:
        """[..., input width] to [..., width]."""
        states, how = states.float(), self._maps[layer]
        if how is None:
            return states
        matrix, mean = how
        return (states if mean is None else states - mean) @ matrix.T


Pca = tuple[Tensor, Tensor]


class PcaFit:
    """Principal directions of states that arrive in batches and are not stored.

    Computed in float64 on the CPU; the largest number of each direction is positive.
    """

    def __init__(self) -> None:
        self._n = 0
        self._near_H = torch.zeros(0, dtype=torch.float64)
        self._sum_H = torch.zeros(0, dtype=torch.float64)
        self._scatter_HH = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, states_NH: Tensor) -> None:
        """Add states, relative to the mean of the first ones."""
        for states in torch.split(states_NH, _PCA_ROWS):
            doubles_NH = states.cpu().double()
            if not self._n:
                self._near_H = doubles_NH.mean(dim=0)
                self._sum_H = torch.zeros_like(self._near_H)
                self._scatter_HH = torch.zeros(len(self._near_H), len(self._near_H), dtype=torch.float64)
            around_NH = doubles_NH - self._near_H
            self._n += len(around_NH)
            self._sum_H += around_NH.sum(dim=0)
            self._scatter_HH.addmm_(around_NH.T, around_NH)

    def result(self, width: int) -> Pca:
        """The directions, [width, H], and the mean, [H]."""
        if self._n < 2 or not width <= len(self._near_H):
            shape = [self._n, len(self._near_H)]
            raise ConfigError(f"a PCA of {width} numbers cannot be fitted to {shape} states")
        beside_H = self._sum_H / self._n
        scatter_HH = self._scatter_HH - self._n * torch.outer(beside_H, beside_H)
        matrix = torch.linalg.eigh(scatter_HH)[1].T.flip(0)[:width]
        largest = matrix.gather(1, matrix.abs().argmax(dim=1, keepdim=True))
        return (matrix * largest.sign()).float().contiguous(), (self._near_H + beside_H).float()


def mean_states(states_BTH: Tensor, lengths_B: Tensor) -> Tensor:
    """The mean over the first `lengths` positions of each document, in float32; what follows is padding."""
    real_BT1 = (torch.arange(states_BTH.shape[1], device=states_BTH.device) < lengths_B[:, None])[:, :, None]
    return states_BTH.float().masked_fill(~real_BT1, 0.0).sum(dim=1) / lengths_B[:, None]
