"""What a writer does to the disk, and in which order: written, synced, named, the name synced, then the next thing.

The calls are recorded by patching `os` and replayed on a model of a disk; strace, where there is one, sees the same
from outside and misses nothing that Python does not tell.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdpipe.cache import layout
from support.disk import Disk, Recorder
from support.tiny import SMALL, make_cache, manifest_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors are read from /proc")

PARTS = [layout.part_dir(number) for number in range(manifest_of(SMALL).plan.n_parts)]
PUBLISHED = [layout.MANIFEST, layout.TABLES, *PARTS, layout.INDEX]


@dataclass(frozen=True)
class Recorded:
    """A cache that was made while its calls were recorded."""

    root: Path
    recorder: Recorder

    def publications(self) -> Iterator[tuple[Disk, str, str]]:
        """The disk just before each thing gets its name, its work path and its name within the cache."""
        disk = Disk(self.recorder.contents)
        for call in self.recorder.calls:
            if call.source and not call.path.startswith(f"cache/{layout.WORK}/"):
                yield disk, call.source, call.path.removeprefix("cache/")
            disk.apply(call)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A whole cache, made once."""
    root = tmp_path_factory.mktemp("order")
    recorder = Recorder(root)
    with recorder.recording():
        make_cache(root / "cache")
    return Recorded(root, recorder)


def test_the_recording_misses_nothing(recorded: Recorded) -> None:
    disk = Disk(recorded.recorder.contents)
    for call in recorded.recorder.calls:
        disk.apply(call)
    found = {path.relative_to(recorded.root).as_posix(): path for path in recorded.root.rglob("*")}
    assert disk.tree() == {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def test_things_appear_in_order_the_manifest_first_and_the_index_last(recorded: Recorded) -> None:
    assert [name for _, _, name in recorded.publications()] == PUBLISHED


def test_a_thing_is_on_the_disk_before_it_gets_its_name(recorded: Recorded) -> None:
    for disk, work, name in recorded.publications():
        own_name = f"the name {work}"
        lost = [what for what in disk.unsynced(work) if what.startswith((f"{own_name}/", "the bytes of "))]
        assert not lost, name


def test_a_name_is_on_the_disk_before_the_next_thing_gets_its_own(recorded: Recorded) -> None:
    done: list[str] = []
    for disk, _, name in recorded.publications():
        assert not [what for before in done for what in disk.unsynced(f"cache/{before}")], name
        if "/" in name:
            assert not disk.unsynced(f"cache/{layout.PARTS}"), name
        done.append(name)


def test_at_the_end_all_of_a_cache_is_on_the_disk(recorded: Recorded) -> None:
    disk = Disk(recorded.recorder.contents)
    for call in recorded.recorder.calls:
        disk.apply(call)
    assert disk.unsynced("cache") == []


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_the_record_of_a_part_is_written_after_everything_else_of_it(recorded: Recorded, number: int) -> None:
    calls = [call for call in recorded.recorder.calls if call.path.startswith(f"cache/{layout.WORK}/{number:05d}~")]
    files = [call for call in calls if call.kind in ("open", "fsync") and not disk_dir(recorded, call.path)]
    assert [(call.kind, Path(call.path).name) for call in files[-2:]] == [
        ("open", layout.PART_RECORD),
        ("fsync", layout.PART_RECORD),
    ]
    synced = [call.path for call in files if call.kind == "fsync"]
    assert len(synced) == len(set(synced))


def disk_dir(recorded: Recorded, path: str) -> bool:
    """Whether a recorded path was that of a folder."""
    return any(call.kind == "mkdir" and call.path == path for call in recorded.recorder.calls)


MAKE = """
import sys
from pathlib import Path
from support.tiny import make_cache
make_cache(Path(sys.argv[1]))
"""
LINE = re.compile(r"^\d+ +(?P<name>\w+)\((?P<rest>.*)\) += (?P<result>-?\d+)(?:<(?P<opened>[^>]*)>)?")
TRACED = "openat,write,pwrite64,writev,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,link,linkat"


@pytest.mark.slow
def test_strace_sees_no_write_that_is_not_synced_before_its_name_is_given(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace on this machine")
    log, cache = tmp_path / "log", tmp_path / "cache"
    command = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", f"trace={TRACED}", "-o", str(log)]
    program = [sys.executable, "-c", MAKE, str(cache)]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run([*command, *program], capture_output=True, text=True, env=environment, check=False)
    if not log.exists() or "ptrace" in ended.stderr:
        pytest.skip(f"strace may not trace here: {ended.stderr[:200]}")
    assert ended.returncode == 0, ended.stderr
    assert follow(log.read_text().splitlines(), str(cache)) == PUBLISHED


def follow(lines: list[str], cache: str) -> list[str]:
    """Hold every traced write against the syncs; the names that were given, in order."""
    unsynced: set[str] = set()
    n_written, given = 0, []
    for line in lines:
        call = LINE.match(line)
        if call is None or cache not in line or call["result"].startswith("-"):
            continue
        places = re.findall(rf'{re.escape(cache)}[^">]*', line)
        if call["name"] == "openat":
            assert "O_WRONLY" not in line or "O_EXCL" in line, line
            unsynced |= set(places[-1:]) if "O_CREAT" in line else set()
        elif call["name"] in ("fsync", "fdatasync"):
            unsynced.discard(places[0])
        elif call["name"].startswith(("rename", "link")):
            assert not [place for place in unsynced if f"{place}/".startswith(f"{places[0]}/")], line
            given.append(places[1].removeprefix(f"{cache}/"))
        else:
            n_written += 1
            unsynced.add(places[0])
    assert not unsynced
    assert n_written > len(PARTS)
    return given
