"""`kdpipe demo`: builds a small synthetic cache, so that the other commands have something to work on.

In: an output folder, and someone to tell how it goes. Out: the folder of a sealed cache.
Before it: `cli/demo.py`. After it: `synthetic.py` makes the data, `kdpipe.cache.writer` the parts. Stopped at any
moment, it goes on where it was when it is run again.
"""

import time
from collections.abc import Callable
from pathlib import Path

from kdpipe.cache.writer import CacheWriter, create_cache
from kdpipe.pipeline.synthetic import synthetic_manifest, synthetic_part, synthetic_tables
from kdpipe.pipeline.synthetic_recipe import Recipe

# About 230,000 positions in 11 parts: a few seconds on one core.
RECIPE = Recipe(documents={"train": 1000, "validation": 100}, documents_per_part=100, text=False)


def run_demo(out: Path, tell: Callable[[str], None], recipe: Recipe = RECIPE) -> Path:
    """Make the demo's cache below a folder, or finish it."""
    manifest = synthetic_manifest(recipe)
    writer = create_cache(out / "cache", manifest)
    if not writer.has_tables:
        writer.publish_tables(synthetic_tables(recipe))
    writer.publish_tokenizer({})
    missing = writer.missing()
    planned = manifest.plan.n_parts
    if len(missing) < planned:
        tell(f"{planned - len(missing)} of {planned} parts are there already")
    for number in missing:
        _write_part(writer, recipe, number, tell)
    tell(f"sealed: cache_id {writer.seal()}")
    return writer.path


def _write_part(writer: CacheWriter, recipe: Recipe, number: int, tell: Callable[[str], None]) -> None:
    started, positions = time.perf_counter(), 0
    with writer.part(number) as part:
        for sequence, block in synthetic_part(recipe, writer.manifest, number):
            part.add(sequence, block)
            positions += int(sequence.loss_mask.sum())
    seconds = time.perf_counter() - started
    writer.write_journal(number, {"positions": positions, "seconds": round(seconds, 3)})
    rate = positions / seconds
    tell(f"part {number + 1} of {writer.manifest.plan.n_parts}: {positions:,} positions, {rate:,.0f} a second")
