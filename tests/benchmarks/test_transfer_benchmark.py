"""The benchmark of copies runs, and counts what it says it counts."""

import json
import subprocess
import sys

import pytest

from support.source import ROOT

pytestmark = pytest.mark.slow


def test_the_benchmark_of_transfers_runs() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "transfer.py"), "--quick"]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert found["files"]["files"] <= found["asked"]["files_a_part"]
    for name in ("local", "s3", "verify", "mirror", "training"):
        assert found[name]["ratio"] > 0
    refused = subprocess.run([*words, "moon"], capture_output=True, text=True)
    assert refused.returncode == 2 and "moon cannot be measured" in refused.stderr
