"""`kdpipe demo`: the main job on an embedded default, by the commands that anyone can type.

In: an output folder. Out: a teacher, a cache and two students below it, and on stdout what the commands answer.
"""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.quantities import size
from kdpipe.schemas.errors import Interrupted

if TYPE_CHECKING:
    from kdpipe.pipeline.demo import DemoPaths, DemoResult
    from kdpipe.schemas.train_report import Evaluation

SMALL = ("--batch-size", "4")
NEXT = (
    ["plan", "--teacher", "TEACHER", "--data", "corpus.jsonl"],
    ["cache-teacher", "--teacher", "TEACHER", "--data", "corpus.jsonl", "--val-fraction", "0.01", "--out", "my-cache"],
    ["train", "--from-cache", "my-cache", "--student", "100m", "--out", "runs/first"],
)
WIDTH = 100


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="How long teacher and students learn.")] = 300,
) -> None:
    """Make a teacher, cache what it says, train a student with it and one without; run again, it goes on."""
    from kdpipe.pipeline.demo import begin, shown

    place = begin(out, steps)
    if shutil.which("kdpipe") is None:
        console.note(f'to type the commands below yourself, first type: PATH="{Path(sys.executable).parent}:$PATH"')
    for number, (why, words) in enumerate(stages(place), 1):
        console.note(f"\n== {number}. {why}\n$ kdpipe {shlex.join(words)}")
        if code := context.obj(words):
            if code == Interrupted.exit_code:
                console.note(f"the demo goes on with: kdpipe {shlex.join(again(place))}")
            raise typer.Exit(code)
    console.note("\n== teacher and students go on writing")
    console.answer(page(place, shown(place)))


def again(place: "DemoPaths") -> list[str]:
    """What is typed to go on."""
    return ["demo", "--out", str(place.out), "--steps", str(place.steps)]


def stages(place: "DemoPaths") -> Iterator[tuple[str, list[str]]]:
    """What each command is for, and what is typed, in order."""
    cut = ["--data", str(place.corpus), "--seq-len", "256", "--val-fraction", "0.3"]
    made_of = ["--teacher", str(place.teacher), *cut]
    cache = ["--from-cache", str(place.cache)]
    yield (
        "text becomes tokens; no teacher is there yet",
        ["cache-teacher", "--targets", "none", "--tokenizer", str(place.tokenizer), *cut, "--out", str(place.tokens)],
    )
    of_tokens = ["--from-cache", str(place.tokens), "--student", str(place.teacher_config)]
    yield "a small teacher learns from them", _train(place, place.teacher_run, "output", of_tokens)
    yield "what its cache will take", ["plan", *made_of]
    yield "the teacher is run once, and what it says is kept", ["cache-teacher", *made_of, "--out", str(place.cache)]
    against = ["--level", "deep", "--against", str(place.teacher)]
    yield "is the cache what the teacher says?", ["cache", "verify", str(place.cache), *against]
    yield "what is in it", ["cache", "inspect", str(place.cache)]
    tiny = [*cache, "--student", "tiny"]
    yield "a student learns from the text alone", _train(place, place.labels, "output", tiny)
    yield "an equal one learns from the cache, without the teacher", _train(place, place.distilled, "hybrid", tiny)
    for run in (place.labels, place.distilled):
        yield f"how near to the teacher is {run.name}?", ["eval", *cache, "--student", str(run)]
    yield "the two beside each other", ["compare", str(place.labels), str(place.distilled)]


def _train(place: "DemoPaths", run: Path, mode: str, who: list[str]) -> list[str]:
    looks = f"evaluation.every={max(1, place.steps // 3)}"
    length = ["--max-steps", str(place.steps), *SMALL, "--set", looks]
    return ["train", *who, "--mode", mode, "--out", str(run), *length]


def page(place: "DemoPaths", found: "DemoResult") -> str:
    """What was made and what came of it, in honest words, and how to go on."""
    lines = [f"{found.prompt} ..."]
    for name, text in found.texts.items():
        lines += _wrapped(name, " ".join(text.split()))
    lines += [
        "",
        "on validation text that nobody learnt from, in nats:",
        *(_numbers(name, evaluation) for name, evaluation in found.evaluations.items()),
        "Minutes of learning show that the parts work together, not how good a student can be.",
        "",
        f"made in {place.out}:",
        *(f"{size(n_bytes):>12}  {path}" for path, n_bytes in found.n_bytes.items()),
        "",
        "the same with a model and text of your own:",
        *(f"  kdpipe {shlex.join(words)}" for words in NEXT),
    ]
    return "\n".join(lines)


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)


def _numbers(name: str, found: "Evaluation") -> str:
    told = f"  {name:<11}CE {found.cross_entropy:.4f}"
    if found.kl_teacher is not None:
        told += f"   KL to the teacher {found.kl_teacher:.4f}"
    if found.top1_agreement is not None:
        told += f"   agreement {found.top1_agreement:.1%}"
    return told
