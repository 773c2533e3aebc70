"""What a synthetic cache is made of: its recipe, its vocabulary and the records that follow from them.

In: a `Recipe`. Out: the vocabulary (Zipf by rank, ids only roughly in that order) and the target and hidden specs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import HiddenSpec, KeptSpec, TargetSpec, Vector

Kind = Literal["threshold", "sampled", "topk", "topp", "state", "imported", "none"]
Doubles = npt.NDArray[np.float64]
TOPIC_WIDTH = 4096
N_LAYERS = 4
HIDDEN_LAYERS = (2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A synthetic cache in full: two equal recipes make equal caches."""

    kind: Kind = "threshold"
    vocabulary_size: int = 32_000
    documents: Mapping[str, int] = field(default_factory=lambda: {"train": 400, "validation": 40})
    documents_per_part: int = 100
    document_tokens: int = 250
    sequence_length: int = 512
    packed: bool = True
    seed: int = 0
    tau: float = 1 / 25
    max_entries: int = 64
    draws: int = 50
    top_k: int = 64
    top_p: float = 0.8
    tail_known: bool = True
    state_width: int = 32
    temperatures: tuple[float, ...] = (2.0, 4.0)
    target_temperature: float = 1.0
    draw_values: bool = False
    boundary: bool = False
    hidden: bool = True
    hidden_width: int = 16
    text: bool = False

    @property
    def n_frequent(self) -> int:
        """How many of the most frequent ids are candidates of every row, so that its most probable ids are known."""
        wanted = {"topk": self.top_k, "topp": self.max_entries, "imported": self.top_k}.get(self.kind, 32)
        return min(self.vocabulary_size, wanted)

    @property
    def targets(self) -> TargetSpec:
        """The target spec; without the scalars that such a cache cannot have."""
        blind = self.kind == "none" or (self.kind == "imported" and not self.tail_known)
        return TargetSpec(
            keep=_kept(self),
            target_temperature=self.target_temperature,
            temperatures=() if blind else self.temperatures,
            draw_values=self.draw_values,
            boundary=self.boundary,
            entropy=not blind,
        )

    @property
    def hidden_spec(self) -> HiddenSpec:
        """Two layers pooled over documents, the last also at every row."""
        if not self.hidden:
            return HiddenSpec()
        pooled = [Vector(layer=layer, width=self.hidden_width, group=self.hidden_width) for layer in HIDDEN_LAYERS]
        return HiddenSpec(pooled=tuple(pooled), rows=tuple(pooled[-1:]))

    def generator(self, *key: int) -> np.random.Generator:
        """A stream of random numbers of its own for every key."""
        return np.random.default_rng([self.seed, *key])


def _kept(recipe: Recipe) -> KeptSpec:
    match recipe.kind:
        case "threshold":
            return Threshold(tau=recipe.tau, max_entries=recipe.max_entries)
        case "sampled":
            return Sampled(draws=recipe.draws)
        case "topk":
            return TopK(k=recipe.top_k)
        case "topp":
            return TopP(p=recipe.top_p, max_entries=recipe.max_entries)
        case "imported":
            return Imported(source="synthetic", max_entries=recipe.top_k, tail_known=recipe.tail_known)
        case "state":
            return State(width=recipe.state_width, group=min(128, recipe.state_width), head_bias=True)
        case "none":
            return NoTargets()
    assert_never(recipe.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Ids and their frequencies: `share`, `starts_word` and `topics` by frequency rank, `n_bytes` by id."""

    ids_by_rank: npt.NDArray[np.uint32]
    share: Doubles
    topics: npt.NDArray[np.int64]
    starts_word: npt.NDArray[np.bool_]
    n_bytes: npt.NDArray[np.int32]


@lru_cache(maxsize=8)
def vocabulary(size: int, seed: int) -> Vocabulary:
    """Zipf frequencies; ids in their order only up to noise, as merges leave them; topics scatter over the ranks."""
    rng = np.random.default_rng([seed, 1])
    ranks = np.arange(size)
    share = (ranks + 2.7) ** -1.05
    ids_by_rank = np.empty(size, np.uint32)
    ids_by_rank[np.argsort(np.log1p(ranks) + 0.5 * rng.standard_normal(size), kind="stable")] = ranks
    n_bytes = np.clip(rng.gamma(3.0, 1.0, size) + 0.3 * np.log1p(ranks), 1, 12).astype(np.int32)
    long = rng.random(size) < 0.003
    n_bytes[long] = rng.integers(13, 40, int(long.sum()))
    starts_word = (rng.random(size) < 0.6) & (n_bytes > 1)
    by_id = np.empty(size, np.int32)
    by_id[ids_by_rank] = n_bytes
    topics = np.argsort(np.log1p(ranks) + 3.0 * rng.standard_normal(size), kind="stable")
    return Vocabulary(
        ids_by_rank=ids_by_rank, share=share / share.sum(), topics=topics, starts_word=starts_word, n_bytes=by_id
    )


@lru_cache(maxsize=4)
def token_texts(size: int, seed: int) -> tuple[str, ...]:
    """The text of every id: letters, a space in front of new words, now and then a letter of two bytes."""
    words = vocabulary(size, seed)
    starts_word = np.empty(size, bool)
    starts_word[words.ids_by_rank] = words.starts_word
    rng = np.random.default_rng([seed, 2])
    letters = rng.integers(97, 123, int(words.n_bytes.sum()), dtype=np.uint8)
    firsts = np.cumsum(words.n_bytes) - words.n_bytes
    letters[firsts[starts_word]] = 32
    accented = firsts[(words.n_bytes > 3) & (rng.random(size) < 0.05)]
    letters[accented + 1], letters[accented + 2] = 0xC3, 0xA9
    data = letters.tobytes()
    return tuple(data[a : a + n].decode() for a, n in zip(firsts.tolist(), words.n_bytes.tolist(), strict=True))


@lru_cache(maxsize=4)
def output_head(size: int, width: int, seed: int) -> Mapping[str, npt.NDArray[Any]]:
    """The output head of a state teacher and its bias, the log of the ids' frequencies."""
    rng = np.random.default_rng([seed, 3])
    words = vocabulary(size, seed)
    bias = np.empty(size, np.float32)
    bias[words.ids_by_rank] = np.log(words.share)
    head = rng.standard_normal((size, width), np.float32) / np.float32(np.sqrt(width))
    return {"output_head": head, "output_bias": bias}
