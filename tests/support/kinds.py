"""Small caches of every kind that format 1.1 knows, with many small chunks.

In: a name. Out: a recipe, its manifest, a sealed cache.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache
from kdpipe.schemas.arrays import Arrays, Column, LinearQuantizer, LogOddsQuantizer, default_arrays
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.target_kinds import State
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, TargetSpec, Vector, WholeState
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

BASE = Recipe(
    vocabulary_size=300,
    documents={"train": 4, "validation": 2},
    documents_per_part=4,
    document_tokens=30,
    sequence_length=64,
    max_entries=12,
    draws=8,
    top_k=6,
    state_width=12,
    hidden=False,
    seed=3,
)
KINDS: Mapping[str, Recipe] = {
    "threshold": replace(BASE, kind="threshold", text=True, boundary=True, hidden=True, hidden_width=6),
    "threshold-at-2": replace(BASE, kind="threshold", target_temperature=2.0, draw_values=True),
    "threshold-other-quantizers": replace(BASE, kind="threshold", boundary=True),
    "sampled": replace(BASE, kind="sampled", temperatures=(0.5, 2.0), draw_values=True),
    "sampled-at-2": replace(BASE, kind="sampled", target_temperature=2.0),
    "topk": replace(BASE, kind="topk", boundary=True),
    "topk-at-2": replace(BASE, kind="topk", target_temperature=2.0),
    "topp": replace(BASE, kind="topp", temperatures=()),
    "state": replace(BASE, kind="state", boundary=True, hidden=True, hidden_width=6),
    "state-capped": replace(BASE, kind="state", target_temperature=2.0),
    "imported": replace(BASE, kind="imported"),
    "imported-tail-unknown": replace(BASE, kind="imported", tail_known=False),
    "none": replace(BASE, kind="none", text=True),
    "none-hidden": replace(BASE, kind="none", packed=False),
}
# Several layers, widths that no group divides, a layer with one number.
HIDDEN = HiddenSpec(
    pooled=(
        Vector(layer=0, width=7, group=3, projection=WholeState()),
        Vector(layer=4, width=1, group=1, projection=PcaProjection(input_width=3)),
        Vector(layer=2, width=9, group=64),
    ),
    rows=(
        Vector(layer=3, width=10, group=4),
        Vector(layer=1, width=5, group=5, projection=PcaProjection(input_width=8)),
    ),
)


def kind_manifest(name: str) -> Manifest:
    """The manifest of a kind: chunks are small, so that every array has several."""
    manifest = synthetic_manifest(KINDS[name])
    targets, hidden = manifest.targets, manifest.hidden
    if name == "state-capped":
        keep = State(width=12, group=5, head_dtype="bfloat16", head_bias=False, soft_cap=20.0, logit_scale=0.5)
        targets = TargetSpec(keep=keep, target_temperature=2.0, temperatures=(2.0, 4.0))
    if name == "none-hidden":
        hidden = HIDDEN
    arrays = _small_chunks(default_arrays(targets, hidden, manifest.vocabulary_size))
    if name == "threshold-other-quantizers":
        arrays = _other_quantizers(arrays)
    changed = {
        "targets": targets,
        "hidden": hidden,
        "arrays": arrays,
        "tables": expected_tables(targets, hidden, manifest.vocabulary_size),
        "kdpipe": "golden",
    }
    return manifest.model_copy(update=changed)


def _small_chunks(arrays: Arrays) -> Arrays:
    sizes = {"row": ("chunk_rows", 64), "hidden": ("chunk_rows", 48), "state": ("chunk_rows", 48)}
    sizes |= dict.fromkeys(("id", "times", "logprob"), ("chunk_entries", 256))
    specs = {name: getattr(arrays, name) for name in sizes}
    small = {name: spec.model_copy(update=dict([sizes[name]])) for name, spec in specs.items() if spec is not None}
    return arrays.model_copy(update=small)


def _other_quantizers(arrays: Arrays) -> Arrays:
    """Other steps, zeros and levels than kdpipe writes by default."""
    assert arrays.logprob is not None
    quantizer = LinearQuantizer(step=1 / 8, zero=5, sign=-1)
    row = arrays.row.model_copy(update={"columns": tuple(map(_other_quantizer, arrays.row.columns)), "level": 4})
    return arrays.model_copy(update={"row": row, "logprob": arrays.logprob.model_copy(update={"quantizer": quantizer})})


def _other_quantizer(column: Column) -> Column:
    quantizer = column.quantizer
    if isinstance(quantizer, LinearQuantizer):
        quantizer = quantizer.model_copy(
            update={"step": 1 / 1100 if column.name.startswith("log_z") else 1 / 100, "zero": 7}
        )
    elif isinstance(quantizer, LogOddsQuantizer):
        quantizer = quantizer.model_copy(update={"step": 1 / 300, "zero": 30_000})
    return column.model_copy(update={"quantizer": quantizer})


def kind_tables(name: str) -> dict[str, npt.NDArray[Any]]:
    """The tables of a kind."""
    wanted = {table.name: table for table in kind_manifest(name).tables}
    found = {table: values for table, values in synthetic_tables(KINDS[name]).items() if table in wanted}
    for number, table in enumerate(wanted.values()):
        if table.name.startswith("pca"):
            found[table.name] = np.random.default_rng(number).standard_normal(table.shape).astype(np.float32)
    return found


def kind_part(
    name: str, manifest: Manifest, number: int, recipe: Recipe | None = None
) -> Iterator[tuple[Sequence, Block]]:
    """What stage one would say of a part, of other documents of the kind where their recipe is given."""
    recipe = recipe or KINDS[name]
    for i, (sequence, block) in enumerate(synthetic_part(recipe, synthetic_manifest(recipe), number)):
        if name != "none-hidden":
            yield sequence, block
            continue
        rng = np.random.default_rng([number, i])
        pooled = {v.layer: _vectors(rng, len(sequence.documents), v.width) for v in manifest.hidden.pooled}
        hidden = {v.layer: _vectors(rng, len(sequence.tokens), v.width) for v in manifest.hidden.rows}
        yield replace(sequence, pooled=pooled), replace(block, hidden=hidden)


def _vectors(rng: np.random.Generator, n: int, width: int) -> npt.NDArray[np.float32]:
    """Numbers of many sizes, and a row of zeros."""
    found = (rng.standard_normal((n, width)) * 10.0 ** rng.integers(-3, 3, (n, 1))).astype(np.float32)
    found[0] = 0
    return found


def make_kind(path: Path, name: str) -> str:
    """A sealed cache of a kind; its cache_id."""
    manifest = kind_manifest(name)
    writer = create_cache(path, manifest)
    writer.publish_tables(kind_tables(name))
    for number in writer.missing():
        with writer.part(number) as part:
            for sequence, block in kind_part(name, manifest, number):
                part.add(sequence, block)
    return writer.seal()
