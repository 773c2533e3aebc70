"""What a synthetic cache stores of its teacher: entries of every kind of target and the scalars of each row.

In: a recipe, the rows of some sequences. Out: their tokens and one `Block` for all of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Floats
from support.synthetic.documents import Packing, Rows, hidden_direction
from support.synthetic.recipe import HIDDEN_LAYERS, Doubles, Recipe, output_head, vocabulary
from support.synthetic.teacher import (
    RemainingMass,
    SyntheticPredictions,
    boundary_mass,
    draw_at,
    entropy,
    mass_at,
    partition_sum,
    predict,
)

Longs = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]
STATE_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticEntries:
    """Exact entries are the first `n_exact` candidates; draws of all rows are concatenated, with p at T=1."""

    n_exact: Longs
    n_draws: Longs
    draw_ranks: Longs
    draw_p: Doubles
    times: Longs | None = None


def make_targets(recipe: Recipe, packing: Packing, rows: Rows, rng: np.random.Generator) -> tuple[Tokens, Block]:
    """Tokens that the teacher itself would write, and its targets at the trained rows."""
    if recipe.kind == "state":
        return _targets_with_states(recipe, packing, rows, rng)
    predicted = predict(recipe, packing.topics[rows.document], rng)
    n = len(rows.document)
    mass = mass_at(recipe, predicted, 1.0)
    label_ranks, label_p = draw_at(recipe, predicted, mass, np.arange(n), rng.random(n))
    tokens = _tokens(recipe, rows, vocabulary(recipe.vocabulary_size, recipe.seed).ids_by_rank[label_ranks], rng)
    hidden = _hidden(recipe, packing, rows, rng)
    if recipe.kind == "none":
        return tokens, Block(hidden=hidden, **_no_entries(n))
    trained = np.flatnonzero(rows.loss_mask)
    predicted, mass, label_p = predicted.take(trained), mass.take(trained), label_p[trained]
    drawn = mass if recipe.target_temperature == 1.0 else mass_at(recipe, predicted, recipe.target_temperature)
    kept = _keep(recipe, predicted, drawn, rng)
    spread = _Spread(n, trained)
    scalars = _scalars(recipe, predicted, np.log(label_p), spread)
    if recipe.targets.tail_known:
        scalars["log_tail"] = spread.numbers(_log(mass.left[np.arange(len(trained)), kept.n_exact]))
        if drawn is not mass:
            scalars["drawn_log_tail"] = spread.numbers(_log(drawn.left[np.arange(len(trained)), kept.n_exact]))
    ids, logprobs = _entries(recipe, predicted, kept)
    return tokens, Block(
        n_exact=spread.counts(kept.n_exact),
        n_draws=spread.counts(kept.n_draws),
        ids=ids,
        logprobs=logprobs,
        times=None if kept.times is None else kept.times.astype(np.int32),
        hidden=hidden,
        **scalars,
    )


def _no_entries(n: int) -> dict[str, Any]:
    nothing = np.zeros(n, np.int32)
    return {"n_exact": nothing, "n_draws": nothing, "ids": nothing[:0], "logprobs": np.zeros(0, np.float32)}


def _tokens(recipe: Recipe, rows: Rows, labels: Any, rng: np.random.Generator) -> Tokens:
    """Each label is the token of the next row, except where a document begins."""
    words = vocabulary(recipe.vocabulary_size, recipe.seed)
    tokens = np.empty(len(labels), np.int32)
    tokens[1:] = labels[:-1]
    first = np.searchsorted(np.cumsum(words.share), rng.random(int(rows.is_first.sum())))
    tokens[rows.is_first] = words.ids_by_rank[np.minimum(first, recipe.vocabulary_size - 1)]
    return tokens


@dataclass(frozen=True, slots=True)
class _Spread:
    """Spreads the numbers of the trained rows over all rows."""

    n: int
    trained: Longs

    def counts(self, values: Longs) -> npt.NDArray[np.int32]:
        found = np.zeros(self.n, np.int32)
        found[self.trained] = values
        return found

    def numbers(self, values: Doubles) -> Floats:
        found = np.full(self.n, np.nan, np.float32)
        found[self.trained] = values
        return found


def _scalars(
    recipe: Recipe, predicted: SyntheticPredictions, label_logprobs: Doubles, spread: _Spread
) -> dict[str, Any]:
    """The scalars that the target spec asks for; what an import cannot know of a row is NaN."""
    found: dict[str, Any] = {"entropy": spread.numbers(entropy(recipe, predicted))}
    spec = recipe.targets
    if not spec.tail_known:
        found["entropy"] = spread.numbers(np.full(len(predicted.p), np.nan))
        last = _log(predicted.p[:, min(recipe.top_k, predicted.p.shape[1]) - 1])
        label_logprobs = np.where(label_logprobs >= last, label_logprobs, np.nan)
    found["label_logprob"] = spread.numbers(np.minimum(label_logprobs, 0.0))
    found["log_z"] = {}
    for temperature in spec.temperatures:
        p, others = partition_sum(recipe, predicted, temperature)
        found["log_z"][temperature] = spread.numbers(np.log(p.sum(axis=1) + others))
    if recipe.boundary:
        found["boundary_logprob"] = spread.numbers(np.log(boundary_mass(recipe, predicted)))
    return found


def _log(p: Doubles) -> Doubles:
    with np.errstate(divide="ignore"):
        return np.log(np.minimum(p, 1.0))


def _entries(
    recipe: Recipe, predicted: SyntheticPredictions, kept: SyntheticEntries
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Ids and log p of all rows: a row's exact entries, then its draws."""
    exact = np.arange(predicted.p.shape[1]) < kept.n_exact[:, None]
    is_draw = np.repeat(
        np.tile([False, True], len(predicted.p)), np.stack([kept.n_exact, kept.n_draws], axis=1).ravel()
    )
    ranks = np.empty(len(is_draw), np.int64)
    ranks[~is_draw], ranks[is_draw] = predicted.ranks[exact], kept.draw_ranks
    logprobs = np.full(len(is_draw), np.nan, np.float32)
    logprobs[~is_draw] = np.minimum(np.log(predicted.p[exact]), 0.0)
    if recipe.draw_values:
        logprobs[is_draw] = np.log(kept.draw_p)
    ids = vocabulary(recipe.vocabulary_size, recipe.seed).ids_by_rank[ranks].astype(np.int32)
    return ids, logprobs


def _keep(
    recipe: Recipe, predicted: SyntheticPredictions, mass: RemainingMass, rng: np.random.Generator
) -> SyntheticEntries:
    """The entries that each kind of target keeps."""
    if recipe.kind == "threshold":
        return _keep_threshold(recipe, predicted, mass, rng)
    if recipe.kind == "sampled":
        return _keep_sampled(recipe, predicted, mass, rng)
    possible = np.minimum(predicted.n_seen, recipe.max_entries if recipe.kind == "topp" else recipe.top_k)
    wanted = possible
    if recipe.kind == "topp":
        wanted = np.minimum(possible, 1 + (mass.left[:, 1:-1] > 1 - recipe.top_p).sum(axis=1))
    return SyntheticEntries(
        n_exact=wanted, n_draws=np.zeros_like(wanted), draw_ranks=wanted[:0], draw_p=predicted.p[:0, 0]
    )


def _keep_threshold(
    recipe: Recipe, predicted: SyntheticPredictions, mass: RemainingMass, rng: np.random.Generator
) -> SyntheticEntries:
    """Exact where p >= tau', which is solved so that the rest, drawn systematically, has the weight tau' each."""
    left = mass.left
    p = left[:, :-1] - left[:, 1:]
    wanted = np.ceil(np.minimum(p / recipe.tau, 1).sum(axis=1) + left[:, -1] / recipe.tau - 1e-9)
    n = np.clip(wanted, 2, min(recipe.max_entries, recipe.vocabulary_size)).astype(np.int64)
    j = np.arange(min(recipe.max_entries, p.shape[1]))
    shared = left[:, : len(j)] / np.maximum(n[:, None] - j, 1)
    enough = (p[:, : len(j)] <= shared * (1 + 1e-12)) | (j >= n[:, None] - 1)
    enough[:, 0] = False
    n_exact = enough.argmax(axis=1)
    at = np.arange(len(n))
    tail = left[at, n_exact]
    n_draws = np.where(tail > 0, n - n_exact, 0)
    rows = np.repeat(at, n_draws)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(n_draws) - n_draws, n_draws)
    depth = 1 - tail[rows] * (1 - (rng.random(len(n))[rows] + number) / n_draws[rows])
    ranks, drawn_p = draw_at(recipe, predicted, mass, rows, depth)
    first = _first_of_each(recipe, rows, ranks)
    n_draws = np.bincount(rows[first], minlength=len(n))
    return SyntheticEntries(n_exact=n_exact, n_draws=n_draws, draw_ranks=ranks[first], draw_p=drawn_p[first])


def _first_of_each(recipe: Recipe, rows: Longs, ranks: Longs) -> Longs:
    """Where each id of a row comes first: rounding may let a step hit an id twice."""
    return np.sort(np.unique(rows * recipe.vocabulary_size + ranks, return_index=True)[1])


def _keep_sampled(
    recipe: Recipe, predicted: SyntheticPredictions, mass: RemainingMass, rng: np.random.Generator
) -> SyntheticEntries:
    """The most probable id exactly, and draws with replacement from all others."""
    n = len(predicted.p)
    tail = mass.left[:, 1]
    rows = np.repeat(np.flatnonzero(tail > 0), recipe.draws)
    depth = 1 - tail[rows] * (1 - rng.random(len(rows)))
    ranks, drawn_p = draw_at(recipe, predicted, mass, rows, depth)
    keys = rows * recipe.vocabulary_size + ranks
    _, first, times = np.unique(keys, return_index=True, return_counts=True)
    order = np.argsort(first)
    first, times = first[order], times[order]
    return SyntheticEntries(
        n_exact=np.ones(n, np.int64),
        n_draws=np.bincount(rows[first], minlength=n),
        draw_ranks=ranks[first],
        draw_p=drawn_p[first],
        times=times,
    )


def _hidden(recipe: Recipe, packing: Packing, rows: Rows, rng: np.random.Generator) -> dict[int, Floats]:
    """The last layer's state of every row: near its topic's."""
    if not recipe.hidden:
        return {}
    layer = HIDDEN_LAYERS[-1]
    own = rng.standard_normal((len(rows.document), recipe.hidden_width), np.float32)
    return {layer: hidden_direction(recipe, layer, packing.topics[rows.document]) + np.float32(0.6) * own}


def _targets_with_states(
    recipe: Recipe, packing: Packing, rows: Rows, rng: np.random.Generator
) -> tuple[Tokens, Block]:
    """States that point at some ids of the output head; everything else follows from head, bias and state, densely."""
    tables = output_head(recipe.vocabulary_size, recipe.state_width, recipe.seed)
    head, bias = tables["output_head"], tables["output_bias"].astype(np.float64)
    n = len(rows.document)
    aims = rng.integers(0, recipe.vocabulary_size, (n, 2))
    sharpness = rng.gamma(4.0, 2.0, (n, 1)).astype(np.float32)
    state = (sharpness * (head[aims[:, 0]] + np.float32(0.6) * head[aims[:, 1]])).astype(np.float32)
    labels, depth = np.zeros(n, np.int64), rng.random(n)
    names = ("entropy", "label_logprob", "boundary_logprob", *recipe.temperatures)
    numbers = {name: np.full(n, np.nan) for name in names}
    words = vocabulary(recipe.vocabulary_size, recipe.seed)
    starters = words.ids_by_rank[words.starts_word]
    for start in range(0, n, STATE_ROWS):
        at = slice(start, start + STATE_ROWS)
        logits = (state[at] @ head.T).astype(np.float64) + bias
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        p = np.exp(logp)
        labels[at] = np.minimum((np.cumsum(p, axis=1) <= depth[at, None]).sum(axis=1), recipe.vocabulary_size - 1)
        numbers["entropy"][at] = np.maximum(-(p * logp).sum(axis=1), 0.0)
        numbers["label_logprob"][at] = np.take_along_axis(logp, labels[at, None], axis=1)[:, 0]
        numbers["boundary_logprob"][at] = np.log(np.clip(p[:, starters].sum(axis=1), 1e-12, 1.0))
        for temperature in recipe.temperatures:
            numbers[temperature][at] = np.log((p ** (1 / temperature)).sum(axis=1))
    spread = _Spread(n, np.flatnonzero(rows.loss_mask))
    return _tokens(recipe, rows, labels, rng), Block(
        entropy=spread.numbers(numbers["entropy"][rows.loss_mask]),
        label_logprob=spread.numbers(np.minimum(numbers["label_logprob"][rows.loss_mask], 0)),
        log_z={t: spread.numbers(numbers[t][rows.loss_mask]) for t in recipe.temperatures},
        boundary_logprob=spread.numbers(numbers["boundary_logprob"][rows.loss_mask]) if recipe.boundary else None,
        hidden=_hidden(recipe, packing, rows, rng),
        state=state,
        **_no_entries(n),
    )
