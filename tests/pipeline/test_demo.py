"""The demo: a cache that verifies, and that goes on where it was stopped."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.demo import run_demo
from kdpipe.pipeline.synthetic_recipe import Recipe
from support.commands import kdpipe

SMALL = Recipe(vocabulary_size=300, documents={"train": 30, "validation": 6}, documents_per_part=6, sequence_length=64)


def test_the_demo_makes_a_cache_that_verifies(tmp_path: Path) -> None:
    told: list[str] = []
    cache = run_demo(tmp_path, told.append, SMALL)
    assert verify_cache(cache, "full").ok
    assert told[-1] == f"sealed: cache_id {inspect_cache(cache).cache_id}"


def test_the_demo_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    undisturbed: list[str] = []
    run_demo(tmp_path / "whole", undisturbed.append, SMALL)

    def stop_at_part_three(line: str) -> None:
        if line.startswith("part 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "stopped", stop_at_part_three, SMALL)
    told: list[str] = []
    run_demo(tmp_path / "stopped", told.append, SMALL)
    assert told[0] == "3 of 6 parts are there already"
    assert [line.partition(":")[0] for line in told[1:]] == ["part 4 of 6", "part 5 of 6", "part 6 of 6", "sealed"]
    assert told[-1] == undisturbed[-1]


def test_the_demo_refuses_a_folder_with_another_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path, lambda line: None, SMALL)
    assert main.run(["demo", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "holds another cache" in shown
    assert "there," in shown


@pytest.mark.slow
def test_an_interrupted_demo_exits_75_and_then_finishes(tmp_path: Path) -> None:
    words = [kdpipe(), "demo", "--out", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "cache" / "parts" / "00000").is_dir():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.endswith("error: interrupted\nhint: run the same command again to go on\n")
    assert not list((tmp_path / "cache" / "tmp").iterdir())
    again = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    assert "parts are there already" in again.stderr
    assert ": good (11 parts" in again.stdout
