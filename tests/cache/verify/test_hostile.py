"""Malicious caches, all checksums right: special files, and false records."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.verify import verify_cache
from support.damage import edit_json, everything_of, fresh_cache, reseal
from support.limits import assert_named, assert_refused, judged

PART = layout.part_dir(0)
RECORD = f"{PART}/{layout.PART_RECORD}"
Edit = Callable[[Any], object]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the default kind, to be edited."""
    return fresh_cache(tmp_path / "cache")


def to_link(file: Path) -> None:
    """A link to the very bytes that should be there."""
    elsewhere = file.parents[len(file.parents) - 4] / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def to_pipe(file: Path) -> None:
    """A pipe without a writer: opening it the usual way blocks."""
    file.unlink()
    os.mkfifo(file)


def to_socket(file: Path) -> None:
    """A socket."""
    file.unlink()
    here = os.getcwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def to_device(file: Path) -> None:
    """The device that gives zeros without end."""
    file.unlink()
    try:
        os.mknod(file, 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this user may not make devices")


def to_folder(file: Path) -> None:
    """A folder."""
    file.unlink()
    file.mkdir()


FILES = [
    layout.MANIFEST,
    layout.INDEX,
    RECORD,
    f"{PART}/{layout.SEQUENCES}",
    f"{PART}/{layout.TEXT}",
    f"{PART}/{layout.array_shard('id')}",
    f"{PART}/{layout.array_metadata('id')}",
    layout.table_file("ids_by_rank"),
]


@pytest.mark.many
@pytest.mark.parametrize("kind", [to_link, to_pipe, to_socket, to_device, to_folder])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_plain_file_is_not_opened(cache: Path, name: str, kind: Callable[[Path], None]) -> None:
    kind(cache / name)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3
    assert any(word in verdict.message for word in ("is not a plain file", "the file is missing", "cannot be read"))


@pytest.mark.parametrize("kind", [to_link, to_pipe, to_socket, to_folder])
def test_verify_names_an_invalid_tokenizer_file(cache: Path, kind: Callable[[Path], None]) -> None:
    kind(cache / layout.TOKENIZER / "tokenizer.json")
    assert_named(cache, "tokenizer.json")


@pytest.mark.parametrize(
    "name", [layout.PARTS, PART, f"{PART}/{layout.TARGETS}", f"{PART}/{layout.TARGETS}/id", layout.TABLES]
)
def test_a_linked_folder_is_not_followed(cache: Path, tmp_path: Path, name: str) -> None:
    (cache / name).rename(tmp_path / "elsewhere")
    (cache / name).symlink_to(tmp_path / "elsewhere")
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3
    assert "is a link" in verdict.message or "is not a plain file" in verdict.message


@pytest.mark.parametrize("name", [layout.TOKENIZER, layout.JOURNAL])
def test_verify_names_a_linked_folder_that_readers_do_not_open(cache: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    if (cache / name).exists():
        (cache / name).rename(tmp_path / "elsewhere" / "old")
    (cache / name).symlink_to(tmp_path / "elsewhere")
    assert_named(cache, name)


def test_a_cache_may_lie_behind_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "shortcut").symlink_to(cache)
    assert judged(tmp_path / "shortcut").verify_code == 0


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"\x1b[2J", "\u202eevil".encode()])
def test_names_that_a_terminal_would_obey_are_shown_escaped(cache: Path, name: bytes) -> None:
    (Path(os.fsdecode(os.fsencode(cache / PART) + b"/" + name))).write_bytes(b"")
    problems = verify_cache(cache, "fast").problems
    assert [problem.file.startswith(f"{PART}/") and problem.file.isprintable() for problem in problems] == [True]
    assert verify_cache(cache, "fast").model_dump_json()


@pytest.mark.many
@pytest.mark.parametrize(
    "name", [".zarray", ".zattrs", ".zgroup", ".zmetadata", "id/.zarray", "id/c/1", "id/c/0.partial", "evil/zarr.json"]
)
def test_files_of_another_zarr_are_foreign(cache: Path, name: str) -> None:
    file = cache / PART / layout.TARGETS / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b'{"zarr_format":2,"filters":[{"id":"pickle"}]}')
    assert_refused(cache, "does not belong to the part")


@pytest.mark.parametrize(
    ("array", "text"),
    [
        ("id", b'{"zarr_format":2}'),
        ("id", b'{"node_type":"array","shape":[1099511627776],"zarr_format":3}'),
        ("row", b"{" * 100_000),
        ("hidden", b""),
    ],
)
def test_a_foreign_zarr_json_is_refused_unread(cache: Path, array: str, text: bytes) -> None:
    file = cache / PART / layout.array_metadata(array)
    file.write_bytes(text)
    edit_json(cache / RECORD, lambda r: r["files"][layout.array_metadata(array)].update(bytes=len(text)))
    reseal(cache, chunks=False)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3
    assert "zarr.json" in verdict.message


def test_a_part_with_thousands_of_files_is_refused(cache: Path) -> None:
    for number in range(3000):
        (cache / PART / str(number)).mkdir()
    assert_refused(cache, "holds more than 64 files")


def test_a_tokenizer_file_too_many_is_named(cache: Path) -> None:
    (cache / layout.TOKENIZER / "tokenizer.py").write_bytes(b"import os")
    assert_named(cache, "tokenizer/tokenizer.py: ")


def test_the_good_cache_is_read_within_these_limits(cache: Path) -> None:
    verdict = judged(cache)
    assert (verdict.code, verdict.verify_code, verdict.problems) == (0, 0, [])
    assert verdict.message == everything_of(cache)
