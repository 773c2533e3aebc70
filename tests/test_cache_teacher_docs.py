"""docs/cache-teacher.md: its commands run, and its settings are those of the code."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli import main
from kdpipe.cli.capture_options import FLAGS
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.records import Record
from support.source import ROOT
from support.stage_one import make_inputs

PAGE = (ROOT / "docs" / "cache-teacher.md").read_text(encoding="utf-8")


TABLE = PAGE.partition("## Settings")[2]


def commands() -> list[str]:
    """The lines of the page's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def settings(kind: type[Record] = CaptureSettings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its default."""
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Record):
            yield from settings(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 9
    for line in commands():
        words = shlex.split(line, comments=True)
        with monkeypatch.context() as environment:
            while "=" in words[0]:
                environment.setenv(*words.pop(0).split("=", 1))
            assert words[0] == "kdpipe"
            assert main.run(words[1:]) == 0, line
    assert sorted(os.listdir(tmp_path)) == ["cache", "corpus.jsonl", "other", "shared", "teacher"]


def test_every_setting_is_on_the_page_with_its_default_and_its_flag() -> None:
    documented = {
        place: (value, text) for place, value, text in re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+) \|$", TABLE, re.M)
    }
    flags = {flag.key: flag.name for flag in FLAGS}
    assert list(documented) == [place for place, _ in settings()]
    for place, default in settings():
        value, text = documented[place]
        plain = list(default) if isinstance(default, tuple) else default
        assert value == ("-" if default is None else f"`{json.dumps(plain)}`"), place
        assert place not in flags or f"`{flags[place]}`" in text, place
