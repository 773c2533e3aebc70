"""docs/reshape.md: its commands run, and every option is on the page."""

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli import main
from kdpipe.schemas.choices import DocumentMeasure
from support.commands import SURFACE
from support.corpora import TEXTS, write_jsonl
from support.source import ROOT
from support.stage_one import make_inputs
from support.tiny import SMALL, make_cache

PAGE = (ROOT / "docs" / "reshape.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of the page's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_inputs(tmp_path, 12)
    write_jsonl(tmp_path / "more.jsonl", [{"text": text, "category": "even"} for text in TEXTS[10:20]])
    rich = replace(SMALL, boundary=True)
    make_cache(tmp_path / "a", rich)
    make_cache(tmp_path / "b", replace(rich, documents={"train": 5}, documents_per_part=5))
    make_cache(tmp_path / "states", replace(SMALL, kind="state"))
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(tmp_path))
    assert len(commands()) >= 13
    for line in commands():
        words = shlex.split(line, comments=True)
        assert words[0] == "kdpipe"
        assert main.run(words[1:]) == 0, line
    created = set(os.listdir(tmp_path)) - before
    assert created == set(re.findall(r"--out (\w+)", "\n".join(commands())))
    assert all(open_cache(tmp_path / name).cache_id for name in created)
    for name in created - {"old"}:
        assert open_cache(tmp_path / name).manifest.history


def test_every_option_and_measure_is_on_the_page() -> None:
    for command in ("cache merge", "cache subset", "cache requantize"):
        for option in SURFACE[command][1] - {"--json", "--quiet"}:
            assert option in PAGE, option
    for measure in DocumentMeasure.__args__:  # type: ignore[attr-defined]  # a Literal has them
        assert f"`{measure}`" in PAGE
