"""The yardstick: digests do not change when a cache is read again, and a difference is listed."""

import json
from pathlib import Path

import pytest

from support.scripts import check_script, run_script


@pytest.mark.slow
def test_differences_to_an_earlier_run_are_listed(tmp_path: Path) -> None:
    words = ("--work", str(tmp_path / "work"), "--only", "topk", "none")
    first = check_script("yardstick", *words)
    digests = json.loads(first.out)["digests"]
    assert list(digests) == ["cache: topk", "cache: none"] and len(set(digests.values())) == 2
    before = tmp_path / "before.json"
    before.write_text(first.out, encoding="utf-8")
    assert "2 equal, 0 differ: -" in check_script("yardstick", *words, "--compare", str(before)).err
    before.write_text(json.dumps({"digests": {**digests, "cache: topk": "0" * 64}}), encoding="utf-8")
    changed = run_script("yardstick", *words, "--compare", str(before))
    assert changed.code == 1 and "1 equal, 1 differ: cache: topk" in changed.err
