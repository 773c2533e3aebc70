"""`kdpipe demo`: a small synthetic cache, written, verified and inspected by the commands that anyone can type.

In: an output folder. Out: a cache below it, and on stdout what the commands answer.
Before it: `cli/main.py`. After it: `pipeline/demo.py`, and the commands `cache verify` and `cache inspect`.
"""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.cli import console


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the cache goes.")] = Path("runs/demo"),
) -> None:
    """Build a small synthetic cache, verify it and look at it; run again after a stop, it goes on."""
    from kdpipe.cli.cache.inspect import inspect
    from kdpipe.cli.cache.verify import verify
    from kdpipe.pipeline.demo import run_demo

    console.note(f"writing a synthetic cache into {out / 'cache'}")
    cache = str(run_demo(out, console.note))
    console.note(f"\n$ kdpipe cache verify {cache} --level deep")
    verify(cache, "deep")
    console.note(f"\n$ kdpipe cache inspect {cache}")
    inspect(cache)
