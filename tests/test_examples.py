"""The examples run unchanged, and the caches they write pass verification."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.cache.verify import verify_cache
from support.source import ROOT


@pytest.mark.slow
def test_write_and_read_writes_a_cache_and_reads_it(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples" / "write_and_read.py"), str(tmp_path / "cache")]
    first = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "after 'the': cat 0.70, dog 0.10, sat 0.10" in first.stdout.splitlines()
    assert verify_cache(tmp_path / "cache", "deep").ok
    again = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_train_a_student_trains_from_that_cache(tmp_path: Path) -> None:
    for name, folders in (("write_and_read", ["cache"]), ("train_a_student", ["cache", "run"])):
        words = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *folders]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"20 steps on 120 positions, with [\d,]+ parameters", lines[0])
    before, after = re.findall(r"\d\.\d{3}", lines[1])
    assert float(after) < float(before) / 2
    assert lines[2] == "the student is in run/final"
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_every_example_has_a_test() -> None:
    """tests/test_train_docs.py runs the settings."""
    tested = ["curriculum.yaml", "train_a_student.py", "write_and_read.py"]
    assert [path.name for path in sorted((ROOT / "examples").glob("*.*"))] == tested
