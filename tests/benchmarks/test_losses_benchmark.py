"""The benchmark of losses runs in its small version and prints its keys."""

import json

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_hybrid_is_compared_with_plain_cross_entropy() -> None:
    answer = json.loads(check_script("losses", "--quick", "--threads", "1").out)
    case = answer["by_vocabulary"]["1024"]
    assert all(case["threads"]["1"][kind]["ratio"] > 0 for kind in ("wall", "cpu"))
    assert set(case["added_bytes"]) == {"plain", "hybrid"}
