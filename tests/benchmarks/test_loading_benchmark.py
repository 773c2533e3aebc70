"""The benchmark of loading runs in its small version and prints its keys."""

import json

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_every_case_is_compared_with_the_rate_of_a_student() -> None:
    answer = json.loads(check_script("loading", "--quick", "--threads", "1").out)
    assert {f"{case}, 1 threads" for case in ("threshold", "topk", "labels_alone", "with_hidden")} == set(
        answer["loaded"]
    )
    assert all(case["positions_per_second"] > 0 for case in answer["loaded"].values())
    assert all(answer["taken"].values())
