"""The golden caches under tests/golden: where they lie, and the digests that pin them.

In: tests/golden/vM.m/ENVIRONMENT/NAME and vM.m/expected/NAME.npz. Out: their names, what each must give, SHA256SUMS.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.schemas.strict_json import sha256_file
from support.source import ROOT

GOLDEN = ROOT / "tests" / "golden"
SUMS = GOLDEN / "SHA256SUMS"
EXPECTED, VERSIONS = "expected", "versions.json"
SUFFIX = "-by-zarr"


def environments() -> list[Path]:
    """The folders of caches that were written together, of every version of the format."""
    return sorted(path.parent for path in GOLDEN.glob(f"v*/*/{VERSIONS}"))


def caches() -> list[Path]:
    """Every golden cache."""
    return sorted(path.parent for path in GOLDEN.glob("v*/*/*/manifest.json"))


def cache_id(path: Path) -> str:
    """The identity that a golden cache had when it was made."""
    stated = json.loads((path.parent / VERSIONS).read_bytes())
    return str(stated["cache_ids"][path.name])


def expected(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a golden cache gives: arrays by `sequence:field:key`, and for each sequence what is no array."""
    file = path.parents[1] / EXPECTED / f"{path.name.removesuffix(SUFFIX)}.npz"
    with np.load(file, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    return arrays, json.loads(arrays.pop("plain").tobytes())


def sums() -> dict[str, str]:
    """The sha256 of every golden file as it is."""
    files = (path for path in GOLDEN.glob("v*/**/*") if path.is_file())
    return {path.relative_to(GOLDEN).as_posix(): sha256_file(path) for path in sorted(files)}


def write_sums() -> None:
    """Pin every golden file."""
    lines = [f"{digest}  {name}\n" for name, digest in sums().items()]
    SUMS.write_text("".join(lines), encoding="utf-8")


def stated_sums() -> dict[str, str]:
    """The sha256 of every golden file as it was when it was made."""
    lines = SUMS.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
