"""The commands agree on how large a cache is, and say of what."""

from pathlib import Path

import pytest

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.transfer.copying import copy_cache
from kdpipe.cache.verify import verify_cache
from support.stage_one import make_inputs, run, settings_for


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_stage_one_inspect_verify_and_copy_give_one_size(tmp_path: Path) -> None:
    make_inputs(tmp_path, 12)
    report = run(settings_for(tmp_path))
    cache = tmp_path / "cache"
    summary = inspect_cache(cache)
    sizes = summary.sizes
    assert sizes.journal == on_disk(cache / "journal") > 0
    assert summary.bytes == on_disk(cache) - sizes.journal
    assert sizes.parts + sizes.tokenizer + sizes.tables + sizes.records == summary.bytes
    for name, size in (("parts", sizes.parts), ("tokenizer", sizes.tokenizer), ("tables", sizes.tables)):
        assert size == on_disk(cache / name)
    assert (report.bytes, report.sizes) == (summary.bytes, sizes)
    assert verify_cache(cache).bytes == sizes.parts
    assert report.bytes_per_position == summary.bytes_per_position["total"]
    assert summary.bytes_per_position["total"] * summary.positions == pytest.approx(sizes.parts)
    copy_cache(str(cache), str(tmp_path / "copy"))
    copied = inspect_cache(tmp_path / "copy")
    assert (copied.bytes, copied.sizes.parts) == (summary.bytes, sizes.parts)
