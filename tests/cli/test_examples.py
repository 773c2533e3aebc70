"""Each help page ends with two or three commands, which the command line accepts."""

import shlex
from typing import Any

import pytest
import typer

from kdpipe.cli.commands import app
from kdpipe.cli.examples import EXAMPLES
from support.commands import SURFACE


def test_every_command_has_two_or_three_examples() -> None:
    assert EXAMPLES.keys() == {name for name, (below, _) in SURFACE.items() if not below}
    counts = {name: len(text.strip().splitlines()) for name, text in EXAMPLES.items()}
    assert {name: n for name, n in counts.items() if n not in (2, 3)} == {}


@pytest.mark.parametrize(
    ("name", "line"), [(name, line.strip()) for name, text in EXAMPLES.items() for line in text.strip().splitlines()]
)
def test_an_example_fits_a_page_and_is_accepted(name: str, line: str) -> None:
    assert len(line) <= 78
    words = shlex.split(line.partition(" > ")[0])
    assert words[: 1 + len(name.split())] == ["kdpipe", *name.split()]
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    command.make_context(name, words[1 + len(name.split()) :])
