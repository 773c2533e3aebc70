"""Killed at any moment, a merge resumes and ends the same; memory does not grow with the number of parts."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import create_cache
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.reshape.subset import subset
from kdpipe.schemas.reshape import DocumentSelection
from support.reshaped import problems_in
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables
from support.tiny import SMALL, digests_of, make_cache, problems_of_committed, unsynced

MERGE = """
import sys
from kdpipe.cache.reshape.merge import merge
merge(sys.argv[1:3], sys.argv[3], "keep-first")
"""


def many_parts(path: Path, recipe: Recipe, *, moved: bool = False) -> None:
    """A cache of a recipe, its ids in other ranks if they are `moved`."""
    manifest, tables = synthetic_manifest(recipe), synthetic_tables(recipe)
    if moved:
        tables["ids_by_rank"] = np.random.default_rng(3).permutation(tables["ids_by_rank"])
    with unsynced():
        writer = create_cache(path, manifest)
        writer.publish_tables(tables)
        for number in writer.missing():
            with writer.part(number) as part:
                for sequence, block in synthetic_part(recipe, manifest, number):
                    part.add(sequence, block)
        writer.seal()


@pytest.mark.slow
def test_a_merge_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    recipe = replace(SMALL, documents={"train": 60}, documents_per_part=3)
    with unsynced():
        make_cache(tmp_path / "a", recipe)
    many_parts(tmp_path / "b", replace(recipe, documents_per_part=4), moved=True)
    words = [str(tmp_path / "a"), str(tmp_path / "b")]
    with unsynced():
        merge(words, str(tmp_path / "whole"), "keep-first")
    out = tmp_path / "out"
    n_killed = 0
    for kill_at in range(2, 40, 5):
        child = subprocess.Popen([sys.executable, "-c", MERGE, *words, str(out)])
        while child.poll() is None:
            parts = out / layout.PARTS
            if parts.is_dir() and len(os.listdir(parts)) >= kill_at:
                child.send_signal(signal.SIGKILL)
                n_killed += 1
                break
            time.sleep(0.005)
        child.wait()
        assert problems_of_committed(out) == []
    assert n_killed >= 3
    subprocess.run([sys.executable, "-c", MERGE, *words, str(out)], check=True)
    assert digests_of(out) == digests_of(tmp_path / "whole")
    assert problems_in(out) == []


def peak_bytes(work: Path, n_parts: int) -> int:
    """The most memory that Python and numpy hold while a merge and a subset write so many parts again."""
    recipe = replace(SMALL, documents={"train": 40 * n_parts}, documents_per_part=40)
    many_parts(work / "a", replace(recipe, documents={"train": 40}))
    many_parts(work / "b", replace(recipe, seed=recipe.seed), moved=True)
    tracemalloc.start()
    with unsynced():
        merge([str(work / "a"), str(work / "b")], str(work / "c"), "keep-first")
        subset(str(work / "b"), str(work / "d"), DocumentSelection(by="likelihood", lowest=0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_parts(tmp_path: Path) -> None:
    few = peak_bytes(tmp_path / "few", 3)
    # Threads that other tests left behind allocate too, so the quieter of two counts.
    many = min(peak_bytes(tmp_path / f"many-{n}", 24) for n in range(2))
    assert many < 1.5 * few
