"""The check of families runs on a few, states why it refuses one, stores its results, and writes its page."""

import json
from pathlib import Path

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_each_family_is_checked_in_a_child_process_and_listed_on_the_page(tmp_path: Path) -> None:
    table = ("--table", str(tmp_path / "page.md"))
    done = check_script("families", "--work", str(tmp_path), *table, "--only", "llama", "mamba2", "bart")
    assert "3 families, 0 fail" in done.out
    kept = [json.loads(line) for line in (tmp_path / "families.jsonl").read_text().splitlines()]
    assert {result["family"]: result["teacher"]["state"] for result in kept} == {
        "bart": "refused",
        "llama": "ok",
        "mamba2": "ok",
    }
    assert all(result["student"]["difference"] < 2e-4 for result in kept if result["family"] != "bart")
    page = (tmp_path / "page.md").read_text()
    assert "2 of 3 families work" in page
    assert "bart is an encoder-decoder" in page and str(tmp_path) not in page
