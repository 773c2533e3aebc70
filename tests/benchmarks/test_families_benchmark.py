"""The sweep over families runs on a few, says why it refuses one, keeps what it found, and writes its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.source import ROOT

SCRIPT = ROOT / "benchmarks" / "families.py"


def sweep(work: Path, *words: str) -> str:
    command = [sys.executable, str(SCRIPT), "--work", str(work), "--table", str(work / "page.md"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout


@pytest.mark.slow
def test_families_are_checked_a_child_each_and_the_page_says_what_came_of_them(tmp_path: Path) -> None:
    said = sweep(tmp_path, "--only", "llama", "mamba2", "bart")
    assert "3 families, 0 fail" in said
    kept = [json.loads(line) for line in (tmp_path / "families.jsonl").read_text().splitlines()]
    assert {each["family"]: each["teacher"]["state"] for each in kept} == {
        "bart": "refused",
        "llama": "ok",
        "mamba2": "ok",
    }
    assert all(each["student"]["difference"] < 2e-4 for each in kept if each["family"] != "bart")
    page = (tmp_path / "page.md").read_text()
    assert "2 of 3 families work" in page
    assert "bart is an encoder-decoder" in page and str(tmp_path) not in page
