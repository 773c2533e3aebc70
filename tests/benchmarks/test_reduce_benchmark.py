"""The benchmark of reducing runs in its small version and prints its keys."""

import json

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_every_kind_is_compared_with_the_head() -> None:
    answer = json.loads(check_script("reduce", "--quick").out)
    cases = answer["microseconds_per_row"]["2000"]
    assert cases.pop("head_product") > 0
    assert {"lean", "standard", "fine", "sampled_50", "topk_64", "topp_95", "state"} <= set(cases)
    assert all(case["reduce"] > 0 for case in cases.values())
