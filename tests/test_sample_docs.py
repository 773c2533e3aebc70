"""docs/sample.md: its commands run, and every option is on the page."""

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from kdpipe.cli import main
from support.commands import SURFACE
from support.corpora import CHATML, small_tokenizer
from support.source import ROOT
from support.stage_two import make_cache, run, settings_for

PAGE = (ROOT / "docs" / "sample.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path)
    run(settings_for(tmp_path, "runs/a"))
    for name in ("b", "chat"):
        shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / name)
    small_tokenizer(tmp_path / "runs" / "chat" / "final", chat_template=CHATML)
    (tmp_path / "prompts.txt").write_text("The value of\n")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO("/exit\n"))
        assert main.run(shlex.split(line, comments=True)[1:]) == 0, line


def test_every_option_is_on_the_page() -> None:
    general = {"--revision", "--trust-remote-code", "--quiet"}
    options = (SURFACE["sample"][1] | SURFACE["chat"][1]) - general
    assert not [option for option in options if option not in PAGE]
