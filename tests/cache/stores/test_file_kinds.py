"""Regular files and directories only: what verification reports of links, pipes and the like, copying refuses."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.signing import new_keys
from kdpipe.cache.stores import file_kinds
from kdpipe.cache.stores.file_kinds import DIRECTORIES, FILES
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.signature import sign_cache
from kdpipe.schemas.progress import SilentProgress
from support import tiny
from support.limits import in_limits

UNREAD = sorted(layout.BESIDE | {layout.WORK})


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache that every test copies."""
    path = tmp_path_factory.mktemp("kinds") / "cache"
    with tiny.unsynced():
        tiny.make_cache(path)
    return path


@pytest.fixture
def cache(good: Path, tmp_path: Path) -> Path:
    """A cache to be changed."""
    return tiny.copy_cache(good, tmp_path / "cache")


def to_link(path: Path) -> None:
    """A link to a file or directory of the expected kind."""
    elsewhere = path.parent.parent / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    elif path.name in DIRECTORIES:
        elsewhere.mkdir()
    else:
        elsewhere.write_text("text")
    path.symlink_to(elsewhere)


def to_broken_link(path: Path) -> None:
    """A link to nothing."""
    _remove(path)
    path.symlink_to(path.parent / "nowhere")


def to_pipe(path: Path) -> None:
    """A pipe: to open it the usual way blocks forever."""
    _remove(path)
    os.mkfifo(path)


def to_other(path: Path) -> None:
    """A directory where a file belongs, a file where a directory belongs."""
    _remove(path)
    path.write_text("text") if path.name in DIRECTORIES else path.mkdir()


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        path.rename(path.parent.parent / "elsewhere")


KINDS = [to_link, to_broken_link, to_pipe, to_other]


def outcome(work: Callable[[], object]) -> str:
    """The exit code and message of a function, run in a child that a blocking pipe cannot hold up."""

    def run() -> None:
        work()

    ended = in_limits(run)
    return f"{ended.code} {ended.output}"


@pytest.mark.many
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNREAD)
def test_what_no_reader_opens_is_reported_and_refused_alike(
    cache: Path, tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    kind(cache / name)
    problems = verify_cache(cache, "fast").problems
    assert [(problem.file, problem.part) for problem in problems] == [(name, None)]
    assert outcome(lambda: copy_cache(cache, tmp_path / "copy")).startswith(f"3 {cache / name}: expected a ")


@pytest.mark.many
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted((FILES | DIRECTORIES) - set(UNREAD)))
def test_every_other_name_is_reported_and_refused_alike(
    cache: Path, tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    kind(cache / name)
    assert name in {problem.file for problem in verify_cache(cache, "fast").problems}
    assert outcome(lambda: copy_cache(cache, tmp_path / "copy")).startswith(f"3 {cache / name}: expected a ")


BELOW = {
    "parts/00001/extra": 1,
    "parts/00001/sequences.arrow": 1,
    "parts/00002/targets.zarr/id/c/more": 2,
    "parts/00002/part.json": 2,
    "parts/00002": 2,
    "parts/extra": None,
    "parts/extra/deep/er": None,
    "tokenizer/extra": None,
    "tokenizer/deep/er": None,
    "tables/ids_by_rank.bin": None,
    "tables/extra": None,
    "journal/00000.json": None,
    "journal/extra": None,
}


@pytest.mark.many
@pytest.mark.parametrize("kind", [to_link, to_broken_link, to_pipe])
@pytest.mark.parametrize("name", BELOW)
def test_what_is_no_file_below_the_top_is_reported_and_refused_alike(
    cache: Path, tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(cache / name):
        (cache / name).rename(tmp_path / "moved")
    if kind is to_pipe:
        os.mkfifo(cache / name)
    else:
        (cache / name).symlink_to(tmp_path / ("moved" if kind is to_link else "nowhere"))
    problems = {problem.file: problem for problem in verify_cache(cache, "fast").problems}
    assert problems[name].part == BELOW[name]
    what = problems[name].what
    assert what == f"expected a regular file or directory, found {'a pipe' if kind is to_pipe else 'a link'}"
    refused = outcome(lambda: copy_cache(cache, tmp_path / "copy"))
    assert refused.splitlines()[0] == f"3 {cache / name}: {what}"
    assert not (tmp_path / "copy").exists(), "nothing is copied"


def test_links_in_tmp_are_nobodys(cache: Path, tmp_path: Path) -> None:
    (cache / layout.WORK / "00001~x").mkdir(parents=True)
    (cache / layout.WORK / "00001~x" / "link").symlink_to(tmp_path)
    assert verify_cache(cache, "full").ok and copy_cache(cache, tmp_path / "copy").parts == 4


def test_a_plain_file_that_belongs_to_no_cache_is_reported_and_left_out(cache: Path, tmp_path: Path) -> None:
    for name in ("parts/00001/extra", "tokenizer/extra"):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("text")
        assert name in {problem.file for problem in verify_cache(cache, "fast").problems}
    copy_cache(cache, tmp_path / "copy")
    assert verify_cache(tmp_path / "copy", "full").ok


def test_links_without_number_are_not_all_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_kinds, "MOST_NAMED", 3)
    for number in range(5):
        (cache / "tables" / f"link{number}").symlink_to(cache)
    assert [problem.file for problem in verify_cache(cache, "fast").problems] == [f"tables/link{n}" for n in range(3)]


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.INDEX, layout.SIGNATURE, "README.md"])
def test_a_pipe_in_the_target_of_a_copy_does_not_block_it(good: Path, cache: Path, tmp_path: Path, name: str) -> None:
    new_keys(tmp_path / "me.pem", tmp_path / "me.pub.pem")
    source = tiny.copy_cache(good, tmp_path / "source")
    sign_cache(str(source), tmp_path / "me.pem", SilentProgress())
    to_pipe(cache / name)
    assert outcome(lambda: copy_cache(source, cache)) == "0 "
    assert {problem.file for problem in verify_cache(cache, "full").problems} == {name} & {"README.md"}


@pytest.mark.parametrize("name", sorted(DIRECTORIES))
def test_nothing_is_copied_through_a_linked_directory(good: Path, cache: Path, tmp_path: Path, name: str) -> None:
    (cache / layout.INDEX).unlink()
    to_link(cache / name)
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    assert outcome(lambda: copy_cache(good, cache)).startswith(f"2 {cache / name}: expected a directory, found a link")
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_signing_writes_through_no_link(cache: Path, tmp_path: Path) -> None:
    new_keys(tmp_path / "me.pem", tmp_path / "me.pub.pem")
    (cache / f"{layout.SIGNATURE}.tmp").symlink_to(tmp_path / "elsewhere")
    assert outcome(lambda: sign_cache(str(cache), tmp_path / "me.pem", SilentProgress())).startswith("3 ")
    assert not (tmp_path / "elsewhere").exists() and not (cache / layout.SIGNATURE).exists()


def test_a_good_cache_with_everything_beside_it_passes(cache: Path, tmp_path: Path) -> None:
    for name in layout.BESIDE - {layout.SIGNATURE}:
        (cache / name).write_text("text")
    (cache / layout.WORK).mkdir(exist_ok=True)
    assert verify_cache(cache, "full").ok
    assert copy_cache(cache, tmp_path / "copy").parts == 4
