"""The benchmark of the losses runs: small, for its keys, not for its figures."""

import json
import subprocess
import sys

import pytest

from support.source import ROOT


@pytest.mark.slow
def test_hybrid_is_timed_beside_plain_cross_entropy() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "losses.py"), "--quick", "--threads", "1"]
    answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=900).stdout)
    case = answer["by_vocabulary"]["1024"]
    assert all(case["threads"]["1"][kind]["ratio"] > 0 for kind in ("wall", "cpu"))
    assert set(case["added_bytes"]) == {"plain", "hybrid"}
