"""Makes the golden caches of one environment; run by hand when a format version is released, never by a test.

In: a new folder tests/golden/vM.m/ENVIRONMENT; tests/golden/README.md has the commands. Out: a cache of every kind
there, some again with shards that zarr-python wrote, and versions.json; beside it, what each must give, if no other
environment has said so yet.
"""

import argparse
import json
import platform
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import zarr_writer
from support.golden import EXPECTED, SUFFIX, VERSIONS, write_sums
from support.kinds import KINDS, make_kind
from support.second_reader import Read, read_cache

BY_ZARR = ("threshold-at-2", "sampled", "state", "none-hidden")
LIBRARIES = ("zarr", "numcodecs", "pcodec", "pyarrow", "numpy", "google-crc32c")


def expected_of(path: Path) -> dict[str, Any]:
    """Everything that the float64 reader finds in a cache, as plain arrays and one JSON text."""
    arrays: dict[str, Any] = {}
    plain = []
    for i, read in enumerate(read_cache(path).sequences):
        plain.append(_plain(read))
        for field in fields(Read):
            value = getattr(read, field.name)
            for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(inner, np.ndarray):
                    arrays[f"{i}:{field.name}:{key}"] = inner
                elif field.name in ("ids", "times", "tokens", "token_bytes", "count", "n_exact", "loss_mask") and inner:
                    arrays[f"{i}:{field.name}:"] = np.array(inner, np.int16)
    return arrays | {"plain": np.frombuffer(json.dumps(plain).encode(), np.uint8)}


def _plain(read: Read) -> dict[str, Any]:
    return {
        "split": read.split,
        "document_starts": read.document_starts,
        "documents": read.documents,
        "digests": [digest.hex() for digest in read.digests],
        "columns": read.columns,
        "texts": read.texts,
    }


def make(folder: Path) -> None:
    """Every cache of this environment."""
    identities = {}
    folder.mkdir(parents=True)
    (folder.parent / EXPECTED).mkdir(exist_ok=True)
    for name in KINDS:
        identities[name] = make_kind(folder / name, name)
        if name in BY_ZARR:
            identities[f"{name}{SUFFIX}"] = zarr_writer.by_zarr(folder / name, folder / f"{name}{SUFFIX}")
        _expect(folder.parent / EXPECTED / f"{name}.npz", expected_of(folder / name))
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    text = json.dumps({"versions": versions, "cache_ids": identities}, indent=2)
    (folder / VERSIONS).write_text(text + "\n", encoding="utf-8")
    write_sums()


def _expect(file: Path, arrays: dict[str, Any]) -> None:
    """Write what a cache must give, or compare it with what another environment has found."""
    if not file.exists():
        np.savez_compressed(file, **arrays)
        return
    with np.load(file, allow_pickle=False) as there:
        assert there.files == list(arrays)
        for name, values in arrays.items():
            # Python 3.12 and later add floats up more exactly.
            np.testing.assert_allclose(values, there[name], rtol=1e-12, atol=1e-12)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
