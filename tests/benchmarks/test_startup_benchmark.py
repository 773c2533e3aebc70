"""The benchmark of starting runs in its small version and prints its keys."""

import json

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_a_run_and_a_refusal_are_timed() -> None:
    answer = json.loads(check_script("startup", "--quick").out)
    assert set(answer["seconds"]) == set(answer["aims"])
    assert 0 < answer["seconds"]["first_line"] <= answer["seconds"]["first_step"]
