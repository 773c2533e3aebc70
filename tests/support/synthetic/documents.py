"""The documents of a synthetic part: how long they are, how they are packed, what is known of them.

In: a recipe and a planned part. Out: `Packing` (rows, documents and sequences) and, once tokens are drawn, `Sequence`s.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Floats, Sequence
from kdpipe.schemas.cache_plan import PlannedPart
from kdpipe.schemas.manifest import SourceColumn
from support.synthetic.recipe import HIDDEN_LAYERS, Recipe, token_texts, vocabulary

Longs = npt.NDArray[np.int64]
COLUMNS = (
    SourceColumn(name="category", type="string"),
    SourceColumn(name="language", type="string"),
    SourceColumn(name="quality", type="float64"),
    SourceColumn(name="is_code", type="bool"),
    SourceColumn(name="year", type="int64"),
)
CATEGORIES = ("web", "books", "code", "papers", "chat")
LANGUAGES = ("en", "de", "fr", "zh", "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Documents of a part: `lengths`, `prompts`, `topics` of each in order, and at which of them sequences begin."""

    first_document: int
    lengths: Longs
    prompts: Longs
    topics: Longs
    sequence_starts: Longs
    columns: dict[str, list[Any]]

    @property
    def n_sequences(self) -> int:
        """How many sequences there are."""
        return len(self.sequence_starts) - 1

    def rows(self, first: int, end: int) -> "Rows":
        """The rows of the documents first to end."""
        lengths = self.lengths[first:end]
        starts = np.cumsum(lengths) - lengths
        document = np.repeat(np.arange(first, end), lengths)
        place = np.arange(len(document)) - np.repeat(starts, lengths)
        trained = (place + 1 < self.lengths[document]) & (place + 1 >= self.prompts[document])
        return Rows(document=document, loss_mask=trained, is_first=place == 0, starts=starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows: the document of each, whether it is trained, whether it opens its document; where documents start."""

    document: Longs
    loss_mask: npt.NDArray[np.bool_]
    is_first: npt.NDArray[np.bool_]
    starts: Longs


def pack(recipe: Recipe, split: int, part: PlannedPart) -> Packing:
    """Lengths, prompts, topics and columns of a part's documents, in order."""
    n = part.n_documents
    rng = recipe.generator(4, split, part.first_document, n)
    lengths = np.exp(rng.normal(np.log(recipe.document_tokens) - 0.4, 0.9, n)).astype(np.int64)
    lengths = np.clip(lengths, 1, recipe.sequence_length)
    lengths[rng.random(n) < 0.02] = 1
    prompts = np.where(rng.random(n) < 0.2, (rng.random(n) * 0.6 * lengths).astype(np.int64), 0)
    category = rng.choice(len(CATEGORIES), n, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    language = np.where(category == 2, 4, rng.choice(4, n, p=[0.7, 0.1, 0.1, 0.1]))
    quality = np.round(rng.beta(5, 2, n), 4)
    unrated = rng.random(n) < 0.03
    columns: dict[str, list[Any]] = {
        "category": [CATEGORIES[i] for i in category.tolist()],
        "language": [LANGUAGES[i] for i in language.tolist()],
        "quality": [None if gone else value for gone, value in zip(unrated.tolist(), quality.tolist(), strict=True)],
        "is_code": (category == 2).tolist(),
        "year": rng.integers(1998, 2026, n).tolist(),
    }
    return Packing(
        first_document=part.first_document,
        lengths=lengths,
        prompts=prompts,
        topics=rng.integers(0, recipe.vocabulary_size, n),
        sequence_starts=_sequence_starts(lengths, recipe.sequence_length if recipe.packed else 0),
        columns=columns,
    )


def _sequence_starts(lengths: Longs, room: int) -> Longs:
    """Fill sequences in order; a document that does not fit opens the next one."""
    starts, used = [0], 0
    for document, length in enumerate(lengths.tolist()):
        if document > starts[-1] and used + length > room:
            starts.append(document)
            used = 0
        used += length
    return np.array([*starts, len(lengths)], np.int64)


def make_sequence(recipe: Recipe, packing: Packing, number: int, tokens: npt.NDArray[np.int32]) -> Sequence:
    """A packed sequence from the tokens of its rows."""
    first, end = packing.sequence_starts[number : number + 2].tolist()
    rows = packing.rows(first, end)
    pieces = np.split(tokens, rows.starts[1:])
    digests = b"".join(hashlib.sha256(piece.astype("<u4").tobytes()).digest()[:16] for piece in pieces)
    texts = None
    if recipe.text:
        words = token_texts(recipe.vocabulary_size, recipe.seed)
        texts = ["".join([words[token] for token in piece.tolist()]) for piece in pieces]
    return Sequence(
        tokens=tokens,
        loss_mask=rows.loss_mask,
        token_bytes=vocabulary(recipe.vocabulary_size, recipe.seed).n_bytes[tokens],
        document_starts=rows.starts,
        documents=np.arange(first, end) + packing.first_document,
        digests=np.frombuffer(digests, np.uint8).reshape(-1, 16),
        columns={name: values[first:end] for name, values in packing.columns.items()},
        pooled=_pooled(recipe, packing, first, end),
        texts=texts,
    )


def _pooled(recipe: Recipe, packing: Packing, first: int, end: int) -> dict[int, Floats]:
    """One state a document: near its topic's, with a little of its own."""
    if not recipe.hidden:
        return {}
    shape = (end - first, recipe.hidden_width)
    found = {}
    for layer in HIDDEN_LAYERS:
        own = recipe.generator(5, layer, packing.first_document + first).standard_normal(shape, np.float32)
        found[layer] = (hidden_direction(recipe, layer, packing.topics[first:end]) + np.float32(0.3) * own) * layer
    return found


def hidden_direction(recipe: Recipe, layer: int, topics: Longs) -> Floats:
    """A smooth function of the topic, so that documents near in topic have near states."""
    phase = recipe.generator(6, layer).random(recipe.hidden_width)
    turns = topics[:, None] / recipe.vocabulary_size + phase
    return np.sin(2 * np.pi * turns * np.arange(1, recipe.hidden_width + 1) ** 0.5).astype(np.float32)
