"""`kdpipe demo`: the main job on an embedded default, by the commands that anyone can type.

In: an output folder. Out: a corpus, a small teacher and a cache below it, and on stdout what the commands answer.
Before it: `cli/main.py`. After it: `pipeline/demo.py` makes the inputs; `plan`, `cache-teacher`, `cache verify` and
`cache inspect` do the rest.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console

if TYPE_CHECKING:
    from kdpipe.pipeline.demo import DemoInputs


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="How long the small teacher learns.")] = 300,
) -> None:
    """Train a small teacher, cache what it says, check the cache and look at it; run again after a stop, it goes on."""
    from kdpipe.cli import main
    from kdpipe.pipeline.demo import demo_inputs

    inputs = demo_inputs(out, steps, console.note)
    for words in commands(inputs, out / "cache"):
        console.note(f"\n$ kdpipe {shlex.join(words)}")
        if code := main.run(words):
            raise typer.Exit(code)


def commands(inputs: "DemoInputs", cache: Path) -> Iterator[list[str]]:
    """What is typed, in order."""
    made_of = ["--teacher", str(inputs.teacher), "--data", str(inputs.corpus), "--seq-len", "256"]
    yield ["plan", *made_of]
    yield ["cache-teacher", *made_of, "--out", str(cache)]
    yield ["cache", "verify", str(cache), "--level", "deep", "--against", str(inputs.teacher)]
    yield ["cache", "inspect", str(cache)]
