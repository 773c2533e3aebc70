"""A cache of one sequence whose block was reduced from logits: what stage one writes of a teacher.

In: a target spec, logits. Out: the sequence, its block, the rows that the reader gives.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from kdpipe.cache.format.rows import Block, Rows, Sequence
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.reduce import to_block
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.targets import HiddenSpec, TargetSpec
from support.reducing import reducer
from support.synthetic import Recipe, synthetic_manifest, synthetic_tables
from support.tiny import unsynced


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What went into a cache; row r of `logits` belongs to row `positions[r]` of the sequence."""

    manifest: Manifest
    sequence: Sequence
    block: Block
    positions: np.ndarray
    logits: Tensor
    labels: Tensor


def manifest_for(spec: TargetSpec, size: int, n_rows: int) -> Manifest:
    """The manifest of a cache of one document."""
    recipe = Recipe(vocabulary_size=size, documents={"train": 1}, documents_per_part=1, sequence_length=n_rows)
    changed = {
        "targets": spec,
        "hidden": HiddenSpec(),
        "arrays": default_arrays(spec, HiddenSpec(), size),
        "tables": expected_tables(spec, HiddenSpec(), size),
    }
    data = synthetic_manifest(recipe).data.model_copy(update={"columns": (), "text": False})
    return synthetic_manifest(recipe).model_copy(update={**changed, "data": data})


def answered(spec: TargetSpec, logits: Tensor, seed: int = 0) -> Answered:
    """A document of twice as many tokens and one as there are rows of logits; every other row is trained on."""
    n, size = logits.shape
    rng = np.random.default_rng(seed)
    mask = np.zeros(2 * n + 1, bool)
    mask[1:-1:2] = True
    tokens = rng.integers(0, size, len(mask)).astype(np.int32)
    tokens[2::4] = logits.argmax(dim=1).numpy()[::2]
    positions = np.flatnonzero(mask)
    labels = Tensor(tokens[positions + 1]).long()
    keys = row_keys(seed, "train", 0, 0, len(mask))[positions]
    made = reducer(spec, size)
    pieces = [made.reduce(logits[i : i + 50].clone(), labels[i : i + 50], keys[i : i + 50]) for i in range(0, n, 50)]
    sequence = Sequence(
        tokens=tokens,
        loss_mask=mask,
        token_bytes=np.ones(len(mask), np.uint32),
        document_starts=np.zeros(1, np.int64),
        documents=np.zeros(1, np.int64),
        digests=np.zeros((1, 16), np.uint8),
    )
    return Answered(
        manifest=manifest_for(spec, size, len(mask)),
        sequence=sequence,
        block=to_block(pieces, mask, spec),
        positions=positions,
        logits=logits,
        labels=labels,
    )


def read_back(given: Answered, folder: Path) -> Rows:
    """Write a sequence into a cache and read it again."""
    manifest = given.manifest
    recipe = Recipe(vocabulary_size=manifest.vocabulary_size)
    with unsynced():
        writer = create_cache(folder, manifest)
        writer.publish_tables({"ids_by_rank": synthetic_tables(recipe)["ids_by_rank"]})
        with writer.part(0) as part:
            part.add(given.sequence, given.block)
        writer.seal()
    return open_cache(folder)[0]
