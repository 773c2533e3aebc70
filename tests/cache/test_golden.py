"""Golden caches, written once under other versions of Python, zarr and pcodec, are read for ever and never change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.deep_child import Parts, check_part
from kdpipe.schemas.version import MAJOR, MINOR
from support import golden
from support.kinds import KINDS

CACHES = golden.caches()
every_cache = pytest.mark.parametrize("path", CACHES, ids=lambda path: f"{path.parent.name}-{path.name}")
every_environment = pytest.mark.parametrize("folder", golden.environments(), ids=lambda path: path.name)


def given(cache: Cache, i: int) -> dict[str, Any]:
    """What a cache gives of a sequence, named as in the expected values."""
    rows = cache[i]
    found: dict[str, Any] = {"token_bytes:": cache.token_bytes(i)}
    for name in ("tokens", "loss_mask", "count", "n_exact", "ids", "times", "logprobs", "weights", "state"):
        found[f"{name}:"] = getattr(rows, name)
    for name in ("log_tail", "entropy", "label_logprob", "boundary_logprob"):
        found[f"scalars:{name}"] = getattr(rows, name)
    found |= {f"scalars:log_z@{t!r}": values for t, values in rows.log_z.items()}
    found |= {f"hidden:{layer}": values for layer, values in rows.hidden.items()}
    found |= {f"pooled:{layer}": values for layer, values in cache.pooled(i).items()}
    return found


def same(mine: Any, due: Any, name: str) -> None:
    """Integers and table look-ups equal; what is computed in float32 within its rounding of the float64 value."""
    kind = name.partition(":")[0]
    if np.issubdtype(due.dtype, np.integer):
        assert mine.tolist() == due.tolist(), name
    elif kind in ("logprobs", "weights") or name == "scalars:label_logprob":
        np.testing.assert_allclose(mine, due, rtol=2e-6, atol=1e-6 if kind == "weights" else 2e-5, err_msg=name)
    else:
        np.testing.assert_array_max_ulp(mine, due.astype(np.float32), maxulp=1)


@every_cache
def test_a_golden_cache_gives_exactly_what_it_gave_when_it_was_made(path: Path) -> None:
    cache = open_cache(path)
    assert cache.cache_id == golden.cache_id(path)
    arrays, plain = golden.expected(path)
    assert len(cache) == len(plain) >= 3
    arrays = {name: due for name, due in arrays.items() if not name.endswith(":scalars:drawn_log_tail")}
    for i, due in enumerate(plain):
        found = {f"{i}:{name}": value for name, value in given(cache, i).items() if value is not None and len(value)}
        wanted = {name: value for name, value in arrays.items() if name.startswith(f"{i}:") and len(value)}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            same(found[name], value, name.partition(":")[2])
        rows = cache[i]
        assert rows.document_starts.tolist() == due["document_starts"]
        assert rows.documents.tolist() == due["documents"]
        assert [digest.hex() for digest in cache.digests(i)] == due["digests"]
        assert cache.columns(i) == due["columns"]
        assert (cache.texts(i) if cache.manifest.data.text else None) == due["texts"]
        assert cache.locate(i)[0].record.split == due["split"]


@every_cache
def test_every_rule_holds_in_a_golden_cache(path: Path) -> None:
    report = verify_cache(path, "full")
    assert report.ok, report.problems
    assert report.cache_id == golden.cache_id(path)
    parts = Parts(str(path))
    assert not [problem for number in range(parts.manifest.plan.n_parts) for problem in check_part(parts, number)]


@pytest.mark.slow
@every_cache
def test_a_golden_cache_verifies_deep(path: Path) -> None:
    report = verify_cache(path, "deep")
    assert report.ok, report.problems


def test_no_golden_file_has_changed_and_none_is_without_a_digest() -> None:
    assert golden.sums() == golden.stated_sums()


def test_every_kind_of_this_format_version_is_golden_in_two_environments() -> None:
    folders = [folder for folder in golden.environments() if folder.parent.name == f"v{MAJOR}.{MINOR}"]
    assert len(folders) == 2
    for folder in folders:
        names = {path.name for path in CACHES if path.parent == folder}
        assert names >= KINDS.keys()
        assert len(names - KINDS.keys()) >= 3


@every_environment
def test_a_golden_environment_names_its_versions(folder: Path) -> None:
    stated = json.loads((folder / golden.VERSIONS).read_bytes())
    assert stated["versions"].keys() == {
        "python", "zarr", "numcodecs", "pcodec", "pyarrow", "numpy", "google-crc32c",
    }  # fmt: skip
    assert stated["cache_ids"].keys() == {path.name for path in CACHES if path.parent == folder}


def test_the_environments_are_the_ends_of_what_is_supported() -> None:
    found = [json.loads((folder / golden.VERSIONS).read_bytes())["versions"] for folder in golden.environments()]
    for name, due in (("zarr", {"3.1", "3.4"}), ("pcodec", {"1.0", "1.1"}), ("python", {"3.11", "3.13"})):
        assert {".".join(stated[name].split(".")[:2]) for stated in found} == due


def test_golden_caches_stay_small() -> None:
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in CACHES}
    assert max(sizes.values()) < 100_000
    assert sum(file.stat().st_size for file in golden.GOLDEN.rglob("*") if file.is_file()) < 1_500_000
