"""The examples run as they stand, and what they make verifies."""

import subprocess
import sys
from pathlib import Path

from kdpipe.cache.verify import verify_cache
from support.source import ROOT


def test_an_example_writes_a_cache_of_its_own_targets_and_reads_it(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples" / "write_and_read.py"), str(tmp_path / "cache")]
    first = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "after 'the': cat 0.70, dog 0.10, sat 0.10" in first.stdout.splitlines()
    assert verify_cache(tmp_path / "cache", "deep").ok
    again = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert again.stdout == first.stdout


def test_every_example_is_tried_here() -> None:
    assert [path.name for path in sorted((ROOT / "examples").glob("*.py"))] == ["write_and_read.py"]
