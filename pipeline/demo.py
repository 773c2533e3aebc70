"""What `kdpipe demo` works on: text that comes with Python, and a small teacher trained on it on the spot.

In: an output folder. Out: `corpus.jsonl` and `teacher` below it, made once. Before it: `cli/demo.py`.
After it: the commands that anyone can type, which the demo types.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.small_teacher import Sizes, documents, make_teacher, write_corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoInputs:
    """Where the demo's corpus and teacher are."""

    corpus: Path
    teacher: Path


def demo_inputs(out: Path, steps: int, say: Callable[[str], None]) -> DemoInputs:
    """Make corpus and teacher, unless a run before has made them."""
    found = DemoInputs(corpus=out / "corpus.jsonl", teacher=out / "teacher")
    out.mkdir(parents=True, exist_ok=True)
    if not found.corpus.is_file():
        write_corpus(found.corpus, documents())
    if not found.teacher.is_dir():
        say(f"training a small teacher on Python's own help texts, {steps} steps, into {found.teacher}")
        make_teacher(found.corpus, found.teacher, Sizes(steps=steps), say)
    return found
