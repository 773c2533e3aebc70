"""Synthetic teacher caches: what stage one passes to the writer, from numpy and a seed.

In: a `Recipe`. Out: a manifest, its tables, and the sequences and blocks of any planned part.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.blocks import cut
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.manifest import Data, Manifest, TeacherRecord, Tokenizer, expected_tables
from kdpipe.schemas.strict_json import canonical, sha256_hex
from support.synthetic.documents import COLUMNS, make_sequence, pack
from support.synthetic.recipe import N_LAYERS, Recipe, output_head, vocabulary
from support.synthetic.targets import make_targets

__all__ = ["Recipe", "synthetic_manifest", "synthetic_part", "synthetic_tables"]

BATCH_ROWS = 2048
SPLITS: tuple[SplitName, ...] = ("train", "validation")


def synthetic_manifest(recipe: Recipe) -> Manifest:
    """The manifest of the cache that a recipe makes."""
    splits = []
    for name in SPLITS:
        if n := recipe.documents.get(name, 0):
            splits.append(SplitPlan(name=name, bounds=(*range(0, n, recipe.documents_per_part), n)))
    targets, hidden = recipe.targets, recipe.hidden_spec
    ids = vocabulary(recipe.vocabulary_size, recipe.seed).ids_by_rank
    return Manifest(
        kdpipe=version("kdpipe"),
        seed=recipe.seed,
        teacher=None
        if recipe.kind == "none"
        else TeacherRecord(name="synthetic", license="Apache-2.0", n_layers=N_LAYERS),
        tokenizer=Tokenizer(
            fingerprint=hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest(), vocabulary_size=recipe.vocabulary_size
        ),
        data=Data(
            fingerprint=sha256_hex(canonical(asdict(recipe))),
            source=f"synthetic documents, seed {recipe.seed}",
            columns=COLUMNS,
            text=recipe.text,
            train_on="assistant",
        ),
        plan=CachePlan(splits=tuple(splits), sequence_length=recipe.sequence_length, packed=recipe.packed),
        targets=targets,
        hidden=hidden,
        tables=expected_tables(targets, hidden, recipe.vocabulary_size),
        arrays=default_arrays(targets, hidden, recipe.vocabulary_size),
    )


def synthetic_tables(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    """The tables that the manifest names."""
    tables: dict[str, npt.NDArray[Any]] = {"ids_by_rank": vocabulary(recipe.vocabulary_size, recipe.seed).ids_by_rank}
    if recipe.kind == "state":
        tables.update(output_head(recipe.vocabulary_size, recipe.state_width, recipe.seed))
    return tables


def synthetic_part(recipe: Recipe, manifest: Manifest, number: int) -> Iterator[tuple[Sequence, Block]]:
    """The sequences of a planned part; they depend on the recipe and the part's documents alone."""
    part = manifest.plan.part(number)
    split = SPLITS.index(part.split)
    packing = pack(recipe, split, part)
    sequence_rows = np.add.reduceat(packing.lengths, packing.sequence_starts[:-1])
    done = 0
    while done < packing.n_sequences:
        n = max(1, int((np.cumsum(sequence_rows[done:]) <= BATCH_ROWS).sum()))
        first, end = packing.sequence_starts[done], packing.sequence_starts[done + n]
        rng = recipe.generator(7, split, part.first_document, part.n_documents, done)
        tokens, block = make_targets(recipe, packing, packing.rows(int(first), int(end)), rng)
        ends = np.cumsum(sequence_rows[done : done + n])
        pieces = np.split(tokens, ends[:-1])
        for i, piece in enumerate(cut(block, ends)):
            yield make_sequence(recipe, packing, done + i, pieces[i]), piece
        done += n
