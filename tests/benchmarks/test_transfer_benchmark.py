"""The benchmark of copies runs, and its counts are correct."""

import json

import pytest

from support.scripts import check_script, run_script


@pytest.mark.slow
def test_the_benchmark_of_transfers_runs() -> None:
    found = json.loads(check_script("transfer", "--quick").out)
    assert found["files"]["files"] <= found["asked"]["files_a_part"]
    for name in ("local", "s3", "verify", "mirror", "training"):
        assert found[name]["ratio"] > 0


def test_a_transfer_that_cannot_be_measured_is_refused() -> None:
    refused = run_script("transfer", "--quick", "moon")
    assert refused.code == 2 and "unknown measurement moon" in refused.err
