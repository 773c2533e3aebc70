"""The benchmark of copies runs, and its counts are correct."""

import json

import pytest

from support.scripts import check_script, run_script


@pytest.mark.slow
def test_the_benchmark_of_transfers_runs() -> None:
    result = json.loads(check_script("transfer", "--quick").out)
    assert result["files"]["files"] <= result["target"]["files_per_part"]
    for name in ("local", "s3", "verify", "mirror", "training"):
        assert result[name]["ratio"] > 0


def test_an_unknown_measurement_is_refused() -> None:
    refused = run_script("transfer", "--quick", "moon")
    assert refused.code == 2 and "unknown measurement moon" in refused.err
