"""The benchmark of reducing runs: small, for its keys, not for its figures."""

import json
import subprocess
import sys

import pytest

from support.source import ROOT


@pytest.mark.slow
def test_every_kind_is_timed_beside_the_head() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "reduce.py"), "--quick"]
    answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=900).stdout)
    cases = answer["microseconds_a_row"]["2000"]
    assert cases.pop("head_product") > 0
    assert {"lean", "standard", "fine", "sampled_50", "topk_64", "topp_95", "state"} <= set(cases)
    assert all(case["reduce"] > 0 for case in cases.values())
