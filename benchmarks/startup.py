"""Seconds from a typed command to its first line, to the first step of a run, and to the refusal of a wrong path.

In: nothing; teacher, documents and cache are small and made here. Out: one JSON document with medians over processes,
each with a fresh interpreter and warm files. `--quick` runs each command once, for tests.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine, rounded

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.stage_two import make_cache

# On an idle core.
AIMS = {"first_line": 0.5, "first_step": 3.0, "wrong_path": 1.0}
ROUNDS = 7


def kdpipe(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Start a command in a folder; libraries of its own are imported before its first line."""
    command = [sys.executable, "-m", "kdpipe", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def seconds_of_a_run(folder: Path, number: int) -> dict[str, float]:
    """Seconds to the first line on stderr, and until the first step is in metrics.jsonl."""
    metrics, started = folder / f"run-{number}" / "metrics.jsonl", time.perf_counter()
    words = ["--from-cache", "cache", "--student", "tiny", "--out", f"run-{number}", "--max-steps", "2"]
    with kdpipe(folder, "train", *words, "--batch-size", "2") as child:
        assert child.stderr is not None
        child.stderr.readline()
        first_line = time.perf_counter() - started
        while not (metrics.is_file() and metrics.stat().st_size) and child.poll() is None:
            time.sleep(0.005)
        first_step = time.perf_counter() - started
        errors = child.communicate()[1]
    if child.returncode:
        sys.exit(f"kdpipe train ended with {child.returncode}: {errors.decode(errors='replace')}")
    return {"first_line": first_line, "first_step": first_step}


def seconds_of_a_refusal(folder: Path) -> dict[str, float]:
    """Seconds to the end of a command with a cache that does not exist."""
    started = time.perf_counter()
    with kdpipe(folder, "train", "--from-cache", "nowhere", "--student", "tiny", "--out", "wrong") as child:
        child.communicate()
    if child.returncode != 2:
        sys.exit(f"kdpipe train from a wrong path ended with {child.returncode}, not 2")
    return {"wrong_path": time.perf_counter() - started}


def main() -> None:
    """Measure all and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Once each, for tests only")
    rounds = 1 if parser.parse_args().quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cache(folder, "cache")
        if rounds > 1:  # files become warm
            seconds_of_a_run(folder, 0)
        timed = [seconds_of_a_run(folder, n) | seconds_of_a_refusal(folder) for n in range(1, rounds + 1)]
    medians = {key: statistics.median(one[key] for one in timed) for key in AIMS}
    print(json.dumps(rounded({"machine": machine(), "torch": torch.__version__, "seconds": medians, "aims": AIMS})))


if __name__ == "__main__":
    main()
