"""docs/between-machines.md: its commands for copies and signatures run, and every option is on the page."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.transfer.part_selection import LEFT_OUT
from kdpipe.cli import main
from support import tiny
from support.commands import SURFACE
from support.source import ROOT

PAGE = (ROOT / "docs" / "between-machines.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield
    if fsspec.filesystem("memory").exists("/bucket"):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def commands(*names: str) -> list[str]:
    """The lines of the sh blocks that start with one of these commands, with an in-memory bucket."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.replace("s3://", "memory://") for block in blocks for line in block.splitlines()]
    # Commands for the Hub run against a small server in tests/cache/transfer/test_hub.py.
    return [
        line for line in lines if line.startswith(tuple(f"kdpipe {name}" for name in names)) and "hf://" not in line
    ]


@pytest.mark.slow
def test_every_command_that_copies_verifies_or_signs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.make_cache(tmp_path / "teacher-cache")
    monkeypatch.chdir(tmp_path)
    lines = commands("cache copy", "cache verify", "cache sign")
    assert len(lines) >= 9
    for line in lines:
        assert main.run(shlex.split(line, comments=True)[1:]) == 0, line
    notes = {
        name: [origin.note for origin in open_cache(tmp_path / name).manifest.history]
        for name in ("here", "few", "lean")
    }
    assert notes == {"here": [], "few": ["parts 0:2"], "lean": ["split train; without hidden, text"]}


def test_every_option_of_copy_and_everything_it_can_omit_is_on_the_page() -> None:
    for option in SURFACE["cache copy"][1] - {"--json", "--quiet", "--allow-partial"}:
        assert option in PAGE, option
    assert re.findall(r"^\| `(\w+)` \| ", PAGE.partition("### Partial copies")[2], re.MULTILINE) == list(LEFT_OUT)


def test_every_command_with_retry_for_is_on_the_page() -> None:
    sentence = " ".join(re.findall(r"[^.]* take the option;", PAGE.replace("\n", " ")))
    commands_with_it = {
        name.removeprefix("cache ") for name, (_, options) in SURFACE.items() if "--retry-for" in options
    }
    assert {word.removeprefix("cache ") for word in re.findall(r"`([a-z -]+)`", sentence)} == commands_with_it
