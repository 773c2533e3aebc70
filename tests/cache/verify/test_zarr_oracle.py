"""zarr-python is the oracle: it reads our shards bit for bit as we do, and we read those that it wrote."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.zarr_oracle import open_arrays
from support import zarr_writer
from support.kinds import KINDS, kind_manifest, make_kind
from support.tiny import content_of, digests_of, unsynced

# Between them they have every array.
FOREIGN = ("threshold-at-2", "sampled", "state", "none-hidden")


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A cache of a kind, made once."""
    folder = tmp_path_factory.mktemp("kinds")

    def made(name: str) -> Path:
        if not (folder / name).exists():
            with unsynced():
                make_kind(folder / name, name)
        return folder / name

    return made


def same_numbers(path: Path) -> set[str]:
    """Compare every number of every array of every part; the arrays met."""
    cache = open_cache(path)
    met = set()
    for row in cache.parts:
        part = cache.part(row.part)
        for name, array in open_arrays(str(path), row.part, part.array_names).items():
            theirs = np.asarray(array[...])
            mine = part.numbers(name, 0, len(theirs))
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
            if len(theirs):
                met.add(name)
    return met


@pytest.mark.parametrize("name", KINDS)
def test_zarr_reads_every_array_as_we_do(kind: Callable[[str], Path], name: str) -> None:
    assert same_numbers(kind(name)) == set(layout.array_names(kind_manifest(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("writer", [zarr_writer.by_zarr, zarr_writer.shuffled])
def test_we_read_what_another_writer_wrote(
    kind: Callable[[str], Path], tmp_path: Path, name: str, writer: Callable[[Path, Path], str]
) -> None:
    source, target = kind(name), tmp_path / "foreign"
    with unsynced():
        identity = writer(source, target)
    assert identity != open_cache(source).cache_id
    assert content_of(source) == content_of(target)
    assert same_numbers(target) == set(layout.array_names(kind_manifest(name)))
    report = verify_cache(target, "full")
    assert report.ok, report.problems
    changed = {file for file, digest in digests_of(source).items() if digests_of(target)[file] != digest}
    assert {file.rpartition("/")[2] for file in changed} == {"0", layout.PART_RECORD, layout.INDEX}


def test_the_foreign_caches_have_every_array() -> None:
    met = {array for name in FOREIGN for array in layout.array_names(kind_manifest(name))}
    assert met == set(layout.ARRAY_NAMES)
