"""The predictions of a synthetic teacher: full distributions over the vocabulary, held as a few candidates and a Zipf
tail.

In: a recipe and the topic of each row. Out: `SyntheticPredictions` (candidates by falling p) and its exact entropies,
sums and draws. p(v) = unseen * share(v) + what the context adds to its candidates.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from support.synthetic.recipe import TOPIC_WIDTH, Doubles, Recipe, Vocabulary, vocabulary

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
N_CONTEXT = 48
QUANTILES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticPredictions:
    """N distributions: candidates by falling p with their ranks; every other rank r has p = unseen * share[r].

    `rare` are the candidates that are not among the most frequent ids; an unused place holds the vocabulary's size.
    """

    p: Doubles
    ranks: Longs
    rare: Longs
    unseen: Doubles

    def take(self, rows: Longs) -> "SyntheticPredictions":
        """Some of the rows."""
        return SyntheticPredictions(
            p=self.p[rows], ranks=self.ranks[rows], rare=self.rare[rows], unseen=self.unseen[rows]
        )

    @property
    def n_seen(self) -> Longs:
        """How many candidates each row has."""
        found: Longs = (self.p > 0).sum(axis=1)
        return found


@lru_cache(maxsize=16)
def _powers(size: int, seed: int, temperature: float) -> tuple[Doubles, Doubles]:
    """share^(1/T) by rank with a 0 behind, and its running sum with a 0 in front."""
    powers = vocabulary(size, seed).share ** (1 / temperature)
    return np.append(powers, 0.0), np.concatenate([[0.0], np.cumsum(powers)])


@lru_cache(maxsize=4)
def _quantiles(size: int, seed: int) -> Longs:
    """The ranks at evenly spaced quantiles of the frequencies, a cheap way to draw ranks."""
    sums = _powers(size, seed, 1.0)[1]
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    ranks: Longs = np.searchsorted(sums[1:-1], places, side="right").astype(np.int64)
    return ranks


def predict(recipe: Recipe, topics: Longs, rng: np.random.Generator) -> SyntheticPredictions:
    """Distributions whose entropies differ by row: some rows all but certain, some broad."""
    words = vocabulary(recipe.vocabulary_size, recipe.seed)
    n, n_frequent = len(topics), recipe.n_frequent
    ranks = _context_ranks(recipe, words, topics, rng)
    slope, shift = rng.gamma(5.0, 0.35, (n, 1)) + 0.35, rng.gamma(1.2, 1.0, (n, 1)) + 0.3
    noise = 0.35 * rng.standard_normal((n, N_CONTEXT), np.float32)
    added = np.exp(noise - slope * np.log(np.arange(N_CONTEXT) + shift))
    unseen = np.clip(rng.beta(0.5, 3.2, n) * 0.7, 1e-7, 0.7)
    order = np.sort(ranks << 8 | np.arange(N_CONTEXT), axis=1)
    ranks, added = order >> 8, np.take_along_axis(added, order & 255, axis=1)
    added[:, 1:][ranks[:, 1:] == ranks[:, :-1]] = 0.0
    added *= ((1 - unseen) / added.sum(axis=1))[:, None]
    frequent = ranks < n_frequent
    cells = np.broadcast_to(np.arange(n)[:, None] * n_frequent, ranks.shape) + ranks
    common = np.bincount(cells[frequent], weights=added[frequent], minlength=n * n_frequent).astype(np.float64)
    common = common.reshape(n, n_frequent) + unseen[:, None] * words.share[:n_frequent]
    unused = frequent | (added == 0)
    p = np.concatenate([common, np.where(unused, 0.0, added + unseen[:, None] * words.share[ranks])], axis=1)
    all_ranks = np.concatenate([np.broadcast_to(np.arange(n_frequent), common.shape), ranks], axis=1)
    falling = np.argsort(-p, axis=1)
    return SyntheticPredictions(
        p=np.take_along_axis(p, falling, axis=1),
        ranks=np.take_along_axis(all_ranks, falling, axis=1),
        rare=np.where(unused, recipe.vocabulary_size, ranks),
        unseen=unseen,
    )


def _context_ranks(recipe: Recipe, words: Vocabulary, topics: Longs, rng: np.random.Generator) -> Longs:
    """Candidates that the context proposes: three in four by frequency, the rest from the document's topic."""
    shape = (len(topics), N_CONTEXT)
    found = _quantiles(recipe.vocabulary_size, recipe.seed)[rng.integers(0, QUANTILES, shape)]
    topical = rng.random(shape, np.float32) < 0.25
    places = np.repeat(topics, topical.sum(axis=1))
    width = min(TOPIC_WIDTH, recipe.vocabulary_size)
    places = (places + (width * rng.random(len(places)) ** 3).astype(np.int64)) % recipe.vocabulary_size
    found[topical] = words.topics[places]
    return found


def _others(recipe: Recipe, predicted: SyntheticPredictions, by_rank: Doubles) -> Doubles:
    """The sum over all ids that are not candidates; `by_rank` ends with a 0 for unused places."""
    total = by_rank[recipe.n_frequent :].sum()
    others = total - by_rank[predicted.rare].sum(axis=1)
    return np.where(np.abs(others) < 1e-12 * abs(total), 0.0, others)


def partition_sum(recipe: Recipe, predicted: SyntheticPredictions, temperature: float) -> tuple[Doubles, Doubles]:
    """p^(1/T) of the candidates, and the sum of p^(1/T) over all other ids."""
    powers, _ = _powers(recipe.vocabulary_size, recipe.seed, temperature)
    return _root(predicted.p, temperature), _others(recipe, predicted, powers) * _root(predicted.unseen, temperature)


def _root(p: Doubles, temperature: float) -> Doubles:
    if temperature == 1.0:
        return p
    if temperature == 2.0:
        return np.sqrt(p)
    return np.asarray(np.sqrt(np.sqrt(p)) if temperature == 4.0 else p ** (1 / temperature))


def entropy(recipe: Recipe, predicted: SyntheticPredictions) -> Doubles:
    """The entropy of the full distributions."""
    powers, _ = _powers(recipe.vocabulary_size, recipe.seed, 1.0)
    information = np.append(powers[:-1] * np.log(powers[:-1]), 0.0)
    others = _others(recipe, predicted, information) + np.log(predicted.unseen) * _others(recipe, predicted, powers)
    safe = np.where(predicted.p > 0, predicted.p, 1.0)
    found: Doubles = np.maximum(-(safe * np.log(safe)).sum(axis=1) - predicted.unseen * others, 0.0)
    return found


def boundary_mass(recipe: Recipe, predicted: SyntheticPredictions) -> Doubles:
    """The mass on ids that start a new word."""
    words = vocabulary(recipe.vocabulary_size, recipe.seed)
    others = _others(recipe, predicted, np.append(np.where(words.starts_word, words.share, 0.0), 0.0))
    on_candidates = np.where(words.starts_word[predicted.ranks], predicted.p, 0.0).sum(axis=1)
    found: Doubles = np.clip(on_candidates + predicted.unseen * others, 1e-12, 1.0)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingMass:
    """`left[:, j]` is the mass that remains at a temperature once the first j candidates are taken; all of it is 1."""

    left: Doubles
    temperature: float

    def take(self, rows: Longs) -> "RemainingMass":
        """Some of the rows."""
        return RemainingMass(left=self.left[rows], temperature=self.temperature)


def mass_at(recipe: Recipe, predicted: SyntheticPredictions, temperature: float) -> RemainingMass:
    """The running mass at a temperature, summed from the small end."""
    p, others = partition_sum(recipe, predicted, temperature)
    pieces = np.concatenate([p, others[:, None]], axis=1)
    left = np.cumsum(pieces[:, ::-1], axis=1)[:, ::-1]
    return RemainingMass(left=left / left[:, :1], temperature=temperature)


def draw_at(
    recipe: Recipe, predicted: SyntheticPredictions, mass: RemainingMass, rows: Longs, depth: Doubles
) -> tuple[Longs, Doubles]:
    """The ids at a depth of their row's distribution, candidates first: ranks and p at T=1. `rows` must ascend."""
    n, width = predicted.p.shape
    left = mass.left
    inside = 1 - left[:, 1:] + np.arange(n)[:, None]
    column = np.searchsorted(inside.ravel(), depth + rows, side="right") - rows * width
    column = np.clip(column, 0, width)
    at = np.flatnonzero((column == width) & (left[rows, width] > 0))
    column = np.minimum(column, predicted.n_seen[rows] - 1)
    ranks, p = predicted.ranks[rows, column], predicted.p[rows, column]
    if len(at):
        beyond = left[rows[at], width]
        share = np.clip(1 - (1 - depth[at]) / beyond, 0, 1)
        sums = _powers(recipe.vocabulary_size, recipe.seed, mass.temperature)[1]
        first = sums[recipe.n_frequent]
        drawn = np.searchsorted(sums[1:], first + share * (sums[-1] - first), side="right")
        drawn = np.clip(drawn, recipe.n_frequent, recipe.vocabulary_size - 1)
        ranks[at] = _past_candidates(recipe, predicted, rows[at], drawn)
        p[at] = predicted.unseen[rows[at]] * vocabulary(recipe.vocabulary_size, recipe.seed).share[ranks[at]]
    return ranks, p


def _past_candidates(recipe: Recipe, predicted: SyntheticPredictions, rows: Longs, ranks: Longs) -> Longs:
    """Move ranks on until none is a candidate of its row."""
    while (clash := (predicted.rare[rows] == ranks[:, None]).any(axis=1)).any():
        ranks = ranks + clash
        ranks[ranks == recipe.vocabulary_size] = recipe.n_frequent
    return ranks
