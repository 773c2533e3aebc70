"""`kdpipe cache copy` and `verify --repair-from` as a person uses them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache import open_cache
from kdpipe.cli import main
from support import tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("copy") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield


def test_a_copy_reports_the_bytes_moved(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cache", "copy", str(path), str(tmp_path / "copy")]) == 0
    messages = capsys.readouterr()
    cache = open_cache(path)
    n_parts = len(cache.parts)
    assert messages.err.startswith(f"{n_parts} parts to copy, ")
    assert f"copied      {n_parts} parts, " in messages.out and f"cache_id    {cache.cache_id}" in messages.out
    assert main.run(["cache", "copy", str(path), str(tmp_path / "copy"), "--json"]) == 0
    messages = capsys.readouterr()
    assert messages.err == "nothing to copy\n"
    answer = json.loads(messages.out)
    assert (answer["cache_id"], answer["copied"], answer["bytes"]) == (cache.cache_id, 0, 0)


def test_a_damaged_copy_is_repaired_from_another(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    assert main.run(["cache", "copy", str(path), str(copy)]) == 0
    tiny.flip_bit(copy / "parts/00001/sequences.arrow", 1000)
    (copy / "parts/00000/stray.txt").write_text("?")
    assert main.run(["cache", "verify", str(copy)]) == 3
    capsys.readouterr()
    assert main.run(["cache", "verify", str(copy), "--repair-from", str(path)]) == 0
    messages = capsys.readouterr()
    assert "parts/00001/sequences.arrow: its bytes are not those that were written" in messages.err
    assert "2 parts to copy" in messages.err and "copy: OK" in messages.out
    (copy / "parts/00000/stray.txt").write_text("?")
    assert main.run(["cache", "copy", str(path), str(copy)]) == 0
    messages = capsys.readouterr()
    assert "1 part to copy" in messages.err and "  copied        1 part, " in messages.out
    assert main.run(["cache", "copy", str(path), str(copy)]) == 0
    assert "already there" in capsys.readouterr().out


def test_a_smaller_copy_describes_itself(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "copy", str(path), str(tmp_path / "some"), "--parts", "0:2", "--without", "hidden"]
    assert main.run([*words, "--without", "text", "--json"]) == 0
    messages = capsys.readouterr()
    assert messages.err.startswith("2 parts to copy, ")
    answer, some = json.loads(messages.out), open_cache(tmp_path / "some")
    assert (answer["cache_id"], answer["made_from"]) == (some.cache_id, open_cache(path).cache_id)
    assert (answer["selection"], answer["parts"], answer["copied"]) == ("parts 0:2; without hidden, text", 2, 2)
    assert main.run([*words, "--without", "text"]) == 0
    messages = capsys.readouterr()
    assert messages.err == "nothing to copy\n"
    assert f"  made from     parts 0:2; without hidden, text of {open_cache(path).cache_id}\n" in messages.out
    assert main.run(words) == 2
    messages = capsys.readouterr()
    assert messages.err.startswith(f"error: {tmp_path / 'some'} holds another cache: selection: ")
    assert messages.err.endswith(
        "use the same --parts, --split and --without as before, or choose a new or empty destination\n"
    )
    (tmp_path / "some/parts/00001/sequences.arrow").write_bytes(b"?")
    assert main.run(["cache", "verify", str(tmp_path / "some"), "--repair-from", str(path)]) == 0
    assert "some: OK" in capsys.readouterr().out


def test_an_invalid_selection_is_reported_in_two_lines(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, reported, hint in (
        (["--parts", "2:1"], "--parts 2:1 is empty", "B is exclusive"),
        (["--parts", "two"], "--parts two is not of the form A:B", "--parts 0:100"),
        (["--without", "targets"], "cannot be copied without targets", "hidden, text"),
        (["--parts", "90:"], "nothing is left", "less strict"),
    ):
        assert main.run(["cache", "copy", str(path), str(tmp_path / "some"), *words]) == 2
        messages = capsys.readouterr().err
        assert reported in messages and hint in messages and len(messages.splitlines()) == 2
    assert not (tmp_path / "some").exists()


def test_an_invalid_copy_is_reported_in_two_lines(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, target, code, reported in (
        (str(tmp_path / "nowhere"), str(tmp_path / "copy"), 2, "error: no such folder:"),
        (str(path), str(path), 2, "inside the source"),
        (str(path), "http://127.0.0.1/cache", 2, "http://127.0.0.1/cache"),
    ):
        assert main.run(["cache", "copy", source, target]) == code
        messages = capsys.readouterr().err
        assert reported in messages and len(messages.splitlines()) == 2
