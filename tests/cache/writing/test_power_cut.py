"""A power cut at any moment of writing: the files are old or new afterwards, never mixed, and the run resumes.

The calls of a writer are recorded; for the moment after each, `support/disk.py` gives the states that the disk may
legally be in. Each is judged by what is visible, and every visible one is put on a real disk and resumed from.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from kdpipe.cache import layout
from kdpipe.cache.durable import work_names as workers
from kdpipe.cache.opening import create_cache
from support.disk import Dead, Disk, Recorder, Tree, materialize
from support.synthetic import synthetic_tables
from support.tiny import SMALL, begin_cache, digests_of, make_cache, manifest_of, resume_cache, unsynced, write_part

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors are read from /proc")

PARTS = [layout.part_dir(number) for number in range(manifest_of(SMALL).plan.n_parts)]
GROUPS = [layout.MANIFEST, layout.TABLES, *PARTS, layout.INDEX]
WORK = f"cache/{layout.WORK}"


def record(root: Path, limit: int | None = None) -> Recorder:
    """Make a cache while its calls are recorded; with a limit, die there and resume as another process would."""
    recorder = Recorder(root, limit)
    with recorder.recording(), suppress(Dead), mock.patch.object(workers, "boot_id", lambda: "earlier"):
        make_cache(root / "cache")
    recorder.limit = None
    with recorder.recording(), mock.patch.object(workers, "boot_id", lambda: "later"):
        resume_cache(root / "cache")
    return recorder


def states(recorder: Recorder, seed: int, ignore: str = "") -> Iterator[Tree]:
    """Every state that a power cut after any recorded call may leave."""
    rng = random.Random(seed)
    disk = Disk(recorder.contents)
    for call in recorder.calls:
        disk.apply(call)
        yield from disk.states(rng, ignore)


def visible(tree: Tree) -> Tree:
    """What a reader may look at."""
    return {path: data for path, data in tree.items() if f"{path}/".startswith("cache/") and not is_work(path)}


def is_work(path: str) -> bool:
    return path == WORK or path.startswith(f"{WORK}/")


def judge(tree: Tree, final: Tree) -> str:
    """What is wrong with a visible tree: something torn, or something without what it leans on."""
    for path, data in tree.items():
        if path not in final or data != final[path]:
            return f"{path} is torn"
    there = [name for name in GROUPS if f"cache/{name}" in tree]
    for name in there:
        members = {path for path in final if f"{path}/".startswith(f"cache/{name}/")}
        if not members <= tree.keys():
            return f"{name} lacks {sorted(members - tree.keys())[0]}"
    if there and layout.MANIFEST not in there:
        return f"{there[0]} is there without its manifest"
    if set(PARTS) & set(there) and layout.TABLES not in there:
        return "a part is there without its tables"
    if layout.INDEX in there and there != GROUPS:
        return "the index is there without all it names"
    return ""


def real_tree(root: Path) -> Tree:
    """What is on the real disk."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


@pytest.mark.slow
def test_a_power_cut_at_any_moment_leaves_old_or_new_and_never_mixed(tmp_path: Path) -> None:
    recorder = record(tmp_path)
    final = visible(real_tree(tmp_path))
    met: set[int] = set()
    for tree in states(recorder, 1, WORK):
        assert not judge(visible(tree), final)
        met.add(len(visible(tree)))
    assert len(met) > len(GROUPS)


@pytest.mark.slow
def test_every_state_after_a_power_cut_can_be_resumed(tmp_path: Path) -> None:
    recorder = record(tmp_path / "recorded")
    identity, digests = resume_cache(tmp_path / "recorded" / "cache"), digests_of(tmp_path / "recorded" / "cache")
    tried: set[tuple[frozenset[str], frozenset[str]]] = set()
    for tree in states(recorder, 2):
        kinds = frozenset("folder" if data is None else "file" for path, data in tree.items() if is_work(path))
        kind = (frozenset(visible(tree)), kinds)
        if kind in tried:
            continue
        tried.add(kind)
        path = tmp_path / str(len(tried))
        materialize(tree, path)
        with unsynced():
            assert resume_cache(path / "cache") == identity
        assert digests_of(path / "cache") == digests
        assert not (path / "cache" / layout.WORK).exists()
    assert len(tried) > 2 * len(GROUPS)


def given_names(root: Path) -> list[int]:
    """After how many calls something has just got its name, or a folder of the cache has."""
    calls = record(root).calls
    named = [number for number, call in enumerate(calls, 1) if call.source or call.kind == "mkdir"]
    return [number for number in named if not is_work(calls[number - 1].path)]


def cut_after_death(folder: Path, deaths: list[int]) -> None:
    """A writer dies after a call, another resumes, and then the power fails at any moment."""
    for limit in deaths:
        recorder = record(folder / str(limit), limit)
        final = visible(real_tree(folder / str(limit)))
        for tree in states(recorder, limit, WORK):
            assert not judge(visible(tree), final), f"after a death at call {limit}"


@pytest.mark.slow
def test_a_writer_depends_on_no_name_that_a_dead_one_left_unsynced(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    deaths = given_names(tmp_path / "whole")
    assert len(deaths) == len(GROUPS) + len([layout.PARTS, "the folder itself"])
    for limit in deaths:
        (tmp_path / str(limit)).mkdir()
    cut_after_death(tmp_path, deaths)


@pytest.mark.soak
def test_a_death_at_any_call_and_then_a_power_cut_leave_old_or_new(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    n_calls = len(record(tmp_path / "whole").calls)
    for limit in range(n_calls):
        (tmp_path / str(limit)).mkdir()
    cut_after_death(tmp_path, list(range(n_calls)))
    sys.stdout.write(f"{n_calls} deaths, each with a power cut at every later call\n")


@pytest.mark.parametrize("limit_after", ["nothing", "a death"])
def test_a_part_that_is_committed_survives_a_power_cut(tmp_path: Path, limit_after: str) -> None:
    recorder = Recorder(tmp_path)
    if limit_after == "a death":
        (tmp_path / "whole").mkdir()
        recorder.limit = next(n for n in given_names(tmp_path / "whole") if n > 30)
        with recorder.recording(), suppress(Dead), mock.patch.object(workers, "boot_id", lambda: "earlier"):
            make_cache(tmp_path / "cache")
        recorder.limit = None
    with recorder.recording():
        writer = begin_cache(tmp_path / "cache")
        for number in writer.missing():
            write_part(writer, number)
            disk = Disk(recorder.contents)
            for call in recorder.calls:
                disk.apply(call)
            assert disk.unsynced(f"cache/{layout.part_dir(number)}") == []
            assert disk.unsynced(f"cache/{layout.TABLES}") == []


def test_tables_of_a_writer_that_has_just_died_are_made_durable_before_they_are_used(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.recording():
        writer = create_cache(tmp_path / "cache", manifest_of(SMALL))
        began = len(recorder.calls)
        begin_cache(tmp_path / "cache")
        renamed = next(n for n, call in enumerate(recorder.calls[began:], began) if call.path == "cache/tables")
        # As if that worker had died right there, unseen by the one that has begun already.
        del recorder.calls[renamed + 1 :]
        writer.publish_tables(synthetic_tables(SMALL))
        write_part(writer, 0)
    disk = Disk(recorder.contents)
    for call in recorder.calls:
        disk.apply(call)
        if f"cache/{layout.part_dir(0)}" in disk.tree():
            assert disk.unsynced(f"cache/{layout.TABLES}") == []


def test_the_judge_sees_what_is_mixed(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    final = visible(real_tree(tmp_path))
    record_of_part = f"cache/{PARTS[1]}/{layout.PART_RECORD}"
    assert judge(final, final) == ""
    assert judge({**final, record_of_part: b""}, final) == f"{record_of_part} is torn"
    for lost, what in [
        (record_of_part, f"{PARTS[1]} lacks {record_of_part}"),
        (f"cache/{layout.MANIFEST}", "tables is there without its manifest"),
        (f"cache/{layout.TABLES}", "a part is there without its tables"),
        (f"cache/{PARTS[1]}", "the index is there without all it names"),
    ]:
        left = {path: data for path, data in final.items() if not f"{path}/".startswith(f"{lost}/")}
        assert judge(left, final) == what
