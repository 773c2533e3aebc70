"""Bytes and ids per position of synthetic caches, by target kind and vocabulary: pipeline/capture/size_table.py.

In: `--quick` for one small vocabulary. Out: one JSON line per cache, on stdout.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import rounded

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import create_cache
from kdpipe.pipeline.capture.size_table import VOCABULARIES, sizes_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

HOT: dict[str, Any] = {"target_temperature": 2.0, "temperatures": (2.0,), "draw_values": True}
CASES: tuple[dict[str, Any], ...] = (
    *({"kind": "threshold", "tau": tau} for tau in (1 / 10, 1 / 25, 1 / 50)),
    {"kind": "threshold", "tau": 1 / 25, **HOT},
    *({"kind": "sampled", "draws": draws} for draws in (10, 50, 200)),
    {"kind": "sampled", "draws": 50, **HOT},
    *({"kind": "topk", "top_k": k} for k in (8, 64, 256)),
    *({"kind": "topp", "top_p": p, "max_entries": 512} for p in (0.8, 0.9, 0.95, 0.99)),
    {"kind": "none"},
)


def main() -> None:
    """Measure every case at every vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="One vocabulary and few documents, for tests only")
    quick = parser.parse_args().quick
    for vocabulary in VOCABULARIES[: 1 if quick else None]:
        for case in CASES:
            print(json.dumps(rounded(measured(vocabulary, case, 4 if quick else 120))), flush=True)


def measured(vocabulary: int, case: dict[str, Any], n_documents: int) -> dict[str, Any]:
    """Size of a cache of one part, and the estimate of the table."""
    documents = {"train": n_documents}
    settings = {"temperatures": (), "hidden": False, "documents_per_part": n_documents, **case}
    recipe = Recipe(vocabulary_size=vocabulary, documents=documents, **settings)
    manifest = synthetic_manifest(recipe)
    with tempfile.TemporaryDirectory() as folder:
        writer = create_cache(f"{folder}/cache", manifest)
        writer.publish_tables(synthetic_tables(recipe))
        with writer.part(0) as part:
            for sequence, block in synthetic_part(recipe, manifest, 0):
                part.add(sequence, block)
        writer.seal()
        summary = inspect_cache(writer.path)
    entries = summary.entries_per_position
    estimate, estimated_entries = sizes_of(manifest.targets, vocabulary)
    return {
        "vocabulary": vocabulary,
        **case,
        "entries": None if entries is None else entries.mean,
        "bytes": dict(summary.bytes_per_position),
        "estimated_entries": estimated_entries,
        "estimated_bytes": estimate,
    }


if __name__ == "__main__":
    main()
