"""The benchmark of stage two runs in its small version, and its intervals are correct."""

import json
from math import comb
from pathlib import Path
from typing import Any

import pytest

from support.scripts import BENCHMARKS, check_script, run_script


def answer(work: Path, *words: str) -> Any:
    """The output of a small run."""
    return json.loads(check_script("stage_two", "--quick", "--threads", "1", "--work", str(work), *words).out)


def check_timed(result: dict[str, Any]) -> None:
    """Check the results of pairs with a peer."""
    assert len(result["rounds"]) == 2
    assert result["threads"] == 1
    assert set(result["versions"]) == {"torch", "transformers", "accelerate", "trl"}
    assert 0 < result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]


def check_inside(result: dict[str, Any], peer: str) -> None:
    """Check memory and profile of both sides."""
    assert set(result["memory"]) == set(result["profile"]) == {"ours", peer}
    assert all(side["peak_bytes"] >= side["held_bytes"] > 0 for side in result["memory"].values())
    for side in result["profile"].values():
        assert sum(side["steps"].values()) == pytest.approx(side["seconds"], rel=1e-2)
        assert all(seconds > 0 for step, seconds in side["steps"].items() if step != "all else")


@pytest.mark.slow
def test_a_step_is_compared_with_the_trainer_on_the_same_batches(tmp_path: Path) -> None:
    result = answer(tmp_path, "step", "--profile")["step"]
    assert set(result) == {"1000"}
    check_timed(result["1000"])
    check_inside(result["1000"], "trainer")
    loss = result["1000"]["mean_loss"]
    # The same weights and labels; only kdpipe isolates the documents of a sequence.
    assert loss["our_cross_entropy"] == pytest.approx(loss["theirs"], rel=5e-3)
    # Run again, it times only missing pairs.
    again = answer(tmp_path, "step", "--rounds", "3")["step"]["1000"]
    assert again["rounds"][:2] == result["1000"]["rounds"]
    assert len(again["rounds"]) == 3
    assert again["profile"] == {}


def test_pairs_are_stored_and_those_of_other_versions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stage_two_pairs import Pairs

    path = tmp_path / "pairs.jsonl"
    assert Pairs(path).read() == {"rounds": [], "mean_loss": None}
    Pairs(path).add(compared={"threads": 1})
    Pairs(path).add(pair={"ours": 2.0})
    Pairs(path).add(compared={"threads": 1})
    Pairs(path).add(pair={"ours": 3.0})
    Pairs(path).add(mean_loss={"theirs": 4.0})
    result = {"rounds": [{"ours": 2.0}, {"ours": 3.0}], "mean_loss": {"theirs": 4.0}, "threads": 1}
    assert Pairs(path).read() == result
    Pairs(path).add(compared={"threads": 2})
    with pytest.raises(SystemExit, match=r"pairs\.jsonl has pairs of other versions or sizes: remove it"):
        Pairs(path).read()


@pytest.mark.slow
def test_a_step_is_compared_with_gkd_and_a_teacher_four_times_as_large(tmp_path: Path) -> None:
    result = answer(tmp_path, "gkd", "--profile")["gkd"]
    check_timed(result)
    check_inside(result, "gkd")
    assert 4 <= result["teacher_over_student"] < 4.5
    assert result["versions"]["trl"] == "1.16.0"


@pytest.mark.slow
def test_ten_times_the_steps_waiting_and_the_memory_of_both_stages_are_measured(tmp_path: Path) -> None:
    result = answer(tmp_path, "scaling", "waiting", "stages")
    scaling, waiting, stages = (result[name] for name in ("scaling", "waiting", "stages"))
    assert scaling["steps"] == ["4", "40"]
    assert scaling["ratio"]["seconds_of_steps"] > 1
    assert scaling["ratio"]["peak_bytes"] == pytest.approx(1, abs=0.25)
    assert 0 <= waiting["median_share_of_later_steps"] < 1
    assert stages["cache_teacher_peak"] > stages["teacher_weights"] > stages["student_weights"] > 0
    assert stages["train_peak"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "unknown measurement speed; available: step, gkd, scaling, waiting, stages"),
        (["--portion", "0"], "a micro-batch of 0 sequences is not possible"),
    ],
)
def test_an_invalid_measurement_is_refused(words: list[str], message: str) -> None:
    done = run_script("stage_two", *words)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("n", [2, 5, 8, 30, 31])
def test_the_interval_of_a_median_has_its_coverage(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stage_two_tables import interval

    values = [float((7 * i) % n if n % 7 else i) for i in range(n)]
    result = interval(values)
    below = int(result["low"])
    assert result["low"] + result["high"] == n - 1
    assert result["median"] == (n - 1) / 2
    # The median of the source is below the k-th of n values if fewer than k values are below it.
    assert below == 0 or sum(comb(n, k) for k in range(below + 1)) <= 0.05 * 2**n
    assert sum(comb(n, k) for k in range(below + 2)) > 0.05 * 2**n
    # The 11th and the 20th of 30, as in tables of the sign test.
    assert n != 30 or (result["low"], result["high"]) == (10, 19)
