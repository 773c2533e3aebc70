"""One environment's half of a test of two: makes caches of every kind, or reads and verifies what the other has made.

In: `make FOLDER` or `read FOLDER OUT LEVEL`, as a program. Out: small caches in FOLDER, some again with shards that
zarr-python wrote; or OUT.npz with all that open_cache and zarr-python give of each, and OUT.json with versions and the
verdicts of that level.
"""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.zarr_oracle import open_arrays
from kdpipe.schemas.choices import VerifyLevel
from support.kinds import KINDS, make_kind
from support.zarr_writer import by_zarr

BY_ZARR = ("threshold", "sampled", "state", "none-hidden")
LIBRARIES = ("zarr", "numcodecs", "pcodec", "pyarrow", "numpy", "pydantic")


def make(folder: Path) -> None:
    """A cache of every kind."""
    for name in KINDS:
        make_kind(folder / name, name)
    for name in BY_ZARR:
        by_zarr(folder / name, folder / f"{name}-by-zarr")


def read(folder: Path, out: Path, level: VerifyLevel) -> None:
    """Everything that is in the caches of a folder, which are verified at a level."""
    arrays: dict[str, Any] = {}
    identities, problems = {}, {}
    for path in sorted(folder.iterdir()):
        cache = open_cache(path)
        identities[path.name] = cache.cache_id
        problems[path.name] = [str(problem) for problem in verify_cache(path, level).problems]
        arrays |= {f"{path.name}:{name}": np.asarray(values) for name, values in _contents(path, cache)}
    np.savez(out.with_suffix(".npz"), **arrays)
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    text = json.dumps({"versions": versions, "cache_ids": identities, "problems": problems})
    out.with_suffix(".json").write_text(text, encoding="utf-8")


def _contents(path: Path, cache: Cache) -> Iterator[tuple[str, Any]]:
    for i in range(len(cache)):
        rows = cache[i]
        for field in (field for field in fields(rows) if field.name != "decode"):
            value = getattr(rows, field.name)
            for key, inner in value.items() if hasattr(value, "items") else [("", value)]:
                if inner is not None:
                    yield f"{i}:{field.name}:{key}", inner
        yield f"{i}:token_bytes", cache.token_bytes(i)
        plain = [[digest.hex() for digest in cache.digests(i)], cache.columns(i)]
        if cache.manifest.data.text:
            plain.append(cache.texts(i))
        yield f"{i}:plain", np.frombuffer(json.dumps(plain).encode(), np.uint8)
        for layer, pooled in cache.pooled(i).items():
            yield f"{i}:pooled:{layer}", pooled
    for number in range(cache.manifest.plan.n_parts):
        names = cache.part(number).array_names
        for name, array in open_arrays(str(path), number, names).items():
            yield f"zarr:{number}:{name}", array[...]


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        read(Path(sys.argv[2]), Path(sys.argv[3]), cast(VerifyLevel, sys.argv[4]))
