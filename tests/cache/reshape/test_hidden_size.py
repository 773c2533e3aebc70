"""The hidden size of the teacher is carried on by whatever makes a cache from caches; older caches do not state it."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.reshape.subset import subset
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.pipeline.requantize import requantize
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.reshape import Bounds, DocumentSelection, RequantizeSpec
from support.synthetic import Recipe, synthetic_tables
from support.tiny import SMALL, manifest_of, unsynced, write_part

OTHER = replace(SMALL, documents={"train": 6}, documents_per_part=3)


def stated(recipe: Recipe, hidden_size: int | None) -> Manifest:
    """The manifest of a recipe whose teacher has this hidden size."""
    manifest = manifest_of(recipe)
    assert manifest.teacher is not None
    teacher = manifest.teacher.model_copy(update={"hidden_size": hidden_size})
    return with_changes(manifest, teacher=teacher)


def made(path: Path, hidden_size: int | None, recipe: Recipe = SMALL) -> Path:
    """A sealed cache whose teacher has this hidden size."""
    with unsynced():
        writer = create_cache(path, stated(recipe, hidden_size))
        writer.publish_tables(synthetic_tables(recipe))
        for number in writer.missing():
            write_part(writer, number, recipe)
        writer.seal()
    return path


def size_in(path: Path) -> int | None:
    """The hidden size that a cache states."""
    teacher = open_cache(path).manifest.teacher
    return None if teacher is None else teacher.hidden_size


def test_the_key_is_written_only_where_the_size_is_known(tmp_path: Path) -> None:
    old, new = made(tmp_path / "old", None), made(tmp_path / "new", 64)
    assert b"hidden_size" not in (old / layout.MANIFEST).read_bytes()
    assert b'"hidden_size":64' in (new / layout.MANIFEST).read_bytes()
    assert (size_in(old), size_in(new)) == (None, 64)
    assert verify_cache(old, "full").ok and verify_cache(new, "full").ok


def test_caches_made_from_a_cache_state_its_hidden_size(tmp_path: Path) -> None:
    path = made(tmp_path / "cache", 64)
    with unsynced():
        copy_cache(path, tmp_path / "lean", selection=PartSelection(split="train"))
        subset(str(path), str(tmp_path / "some"), DocumentSelection(parts=Bounds(first=0, end=2)))
        requantize(str(path), str(tmp_path / "poorer"), RequantizeSpec(tau=0.2))
    assert [size_in(tmp_path / name) for name in ("lean", "some", "poorer")] == [64, 64, 64]


@pytest.mark.parametrize("sizes", [(64, None), (None, 64), (64, 64), (None, None)], ids=str)
def test_caches_with_and_without_the_key_are_merged(sizes: tuple[int | None, int | None], tmp_path: Path) -> None:
    paths = made(tmp_path / "a", sizes[0]), made(tmp_path / "b", sizes[1], OTHER)
    with unsynced():
        merge([str(path) for path in paths], str(tmp_path / "both"))
    assert size_in(tmp_path / "both") == max((size for size in sizes if size is not None), default=None)
    assert verify_cache(tmp_path / "both", "full").ok


def test_caches_of_teachers_of_two_hidden_sizes_are_not_merged(tmp_path: Path) -> None:
    paths = made(tmp_path / "a", 64), made(tmp_path / "b", 32, OTHER)
    with pytest.raises(Incompatible, match="64 and 32"):
        merge([str(path) for path in paths], str(tmp_path / "both"))


def test_a_cache_begun_before_the_key_was_written_is_finished(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache", stated(SMALL, None))
    again = create_cache(tmp_path / "cache", stated(SMALL, 64))
    assert again.manifest.to_json() == stated(SMALL, None).to_json()
    create_cache(tmp_path / "other", stated(SMALL, 64))
    with pytest.raises(ConfigError, match="holds another cache"):
        create_cache(tmp_path / "other", stated(SMALL, 32))
