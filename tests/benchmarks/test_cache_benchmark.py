"""The cache benchmark runs in its small version and prints its keys."""

import json

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_the_cache_benchmark_prints_a_value_for_every_target() -> None:
    answer = json.loads(check_script("cache", "--quick").out)
    assert answer["memcpy_bytes_per_second"] > 0
    assert [case["case"] for case in answer["cases"]] == ["10 entries, 32 k", "10 entries, 152 k", "32 entries, 32 k"]
    for case in answer["cases"]:
        assert case["written_positions_per_second"] > 0
        assert 0.5 < case["bytes"]["ids_and_values_over_order0"] < 1.5
        assert {"sequential_positions_per_second", "random_block_over_memmap", "batched_positions_per_second"} <= set(
            case["reading"]
        )
    assert answer["many_parts"]["parts"] == 40
    assert answer["writing_memory"]["growth_with_parts"] > 0


@pytest.mark.slow
def test_the_codec_benchmark_runs() -> None:
    assert json.loads(check_script("codecs", "--positions", "2000", "--json").out)
