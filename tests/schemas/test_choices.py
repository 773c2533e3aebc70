"""Each closed choice is written once, in schemas/choices.py."""

import ast
import subprocess
import sys

from kdpipe.schemas import choices
from support.source import ROOT

FOLDERS = ("schemas", "cache", "pipeline", "cli")


def written(name: str) -> list[frozenset[str]]:
    """The values of each `Literal[...]` of two or more strings in a file."""
    sets = []
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            strings = [value.value for value in values if isinstance(value, ast.Constant)]
            if len(strings) == len(values) > 1:
                sets.append(frozenset(map(str, strings)))
    return sets


def test_no_choice_is_written_twice() -> None:
    known = {frozenset(map(str, getattr(value, "__args__", ()))) for value in vars(choices).values()}
    files = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert not [name for name in files if name != "schemas/choices.py" and known & set(written(name))]
    assert not [name for name in files if name.startswith("cli/") and written(name)]


def test_choices_need_the_standard_library_alone() -> None:
    script = "import kdpipe.schemas.choices, sys; assert not {'pydantic', 'typer', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)
