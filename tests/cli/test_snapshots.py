"""What the command line prints is what tests/snapshots/ shows; `make snapshots` rewrites the files after a change."""

import sys
from pathlib import Path

import pytest

from support.snapshots import COMMANDS, DAMAGED, FOLDER, help_pages, outputs

HELP = dict(help_pages())


def stored(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HELP)
def test_a_help_page_is_its_snapshot(name: str) -> None:
    assert HELP[name] == stored(name)


@pytest.mark.parametrize("name", HELP)
def test_a_help_page_fits_80_columns_and_cuts_no_summary(name: str) -> None:
    lines = HELP[name].splitlines()
    assert max(map(len, lines)) <= 80
    summaries = lines[lines.index("Commands:") :] if "Commands:" in lines else []
    assert not [line for line in summaries if line.endswith("...")]


def test_every_snapshot_is_of_a_page_or_command() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*HELP, *COMMANDS, *DAMAGED}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the texts come with Python: counts differ by version")
def test_the_output_of_real_commands_is_their_snapshot(tmp_path: Path) -> None:
    differing = {name: text for name, text in outputs(tmp_path) if text != stored(name)}
    assert differing == {name: stored(name) for name in differing}
