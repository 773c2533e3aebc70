"""The benchmark of loading runs: small, for its keys, not for its figures."""

import json
import subprocess
import sys

import pytest

from support.source import ROOT


@pytest.mark.slow
def test_every_case_is_timed_beside_what_a_student_takes() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "loading.py"), "--quick", "--threads", "1"]
    answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=900).stdout)
    assert {f"{case}, 1 threads" for case in ("threshold", "topk", "labels_alone", "with_hidden")} == set(
        answer["loaded"]
    )
    assert all(case["positions_per_second"] > 0 for case in answer["loaded"].values())
    assert all(answer["taken"].values())
