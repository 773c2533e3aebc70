"""`kdpipe demo`: both stages on a small teacher and text that comes with Python, by the commands a user would type."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Devices
from kdpipe.cli.quantities import size
from kdpipe.cli.sample import continuations
from kdpipe.schemas.errors import Interrupted

if TYPE_CHECKING:
    from kdpipe.pipeline.demo import DemoPaths, DemoResult
    from kdpipe.schemas.train_report import Evaluation

SMALL = ("--batch-size", "4")
# The commands of the demo with --devices.
COMPUTE = ("plan", "cache-teacher", "train", "eval")
NEXT = (
    ["plan", "--teacher", "TEACHER", "--data", "corpus.jsonl"],
    ["cache-teacher", "--teacher", "TEACHER", "--data", "corpus.jsonl", "--val-fraction", "0.01", "--out", "my-cache"],
    ["train", "--from-cache", "my-cache", "--student", "100m", "--out", "runs/first"],
)


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output directory.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Training steps of each model.")] = 300,
    devices: Devices = "auto",
) -> None:
    """Run both stages on a tiny model, in a few minutes.

    Trains a small teacher, caches its predictions, trains one student on them and one on the text alone, and compares
    the two. Re-run the command to resume.
    """
    from kdpipe.pipeline.demo import begin, shown

    place = begin(out, steps)
    if shutil.which("kdpipe") is None:
        console.note(f'to run the commands below yourself, first run: PATH="{Path(sys.executable).parent}:$PATH"')
    for number, (purpose, words) in enumerate(stages(place, devices), 1):
        console.note(f"\n== {number}. {purpose}\n$ kdpipe {shlex.join(words)}")
        if code := context.obj(words):
            if code == Interrupted.exit_code:
                console.note(f"resume the demo with: kdpipe {shlex.join(resume_command(place, devices))}")
            raise typer.Exit(code)
    console.note("\n== sample continuations")
    console.answer(page(place, shown(place)))


def resume_command(place: "DemoPaths", devices: str = "auto") -> list[str]:
    return ["demo", "--out", str(place.out), "--steps", str(place.steps), *_on(devices)]


def stages(place: "DemoPaths", devices: str = "auto") -> Iterator[tuple[str, list[str]]]:
    """The purpose and arguments of each command, in order."""
    for purpose, words in _stages(place):
        yield purpose, words + (_on(devices) if words[0] in COMPUTE or "--against" in words else [])


def _on(devices: str) -> list[str]:
    return [] if devices == "auto" else ["--devices", devices]


def _stages(place: "DemoPaths") -> Iterator[tuple[str, list[str]]]:
    cut = ["--data", str(place.corpus), "--seq-len", "256", "--val-fraction", "0.3"]
    teacher = ["--teacher", str(place.teacher), *cut]
    cache = ["--from-cache", str(place.cache)]
    yield (
        "tokenize the text (no teacher yet)",
        ["cache-teacher", "--targets", "none", "--tokenizer", str(place.tokenizer), *cut, "--out", str(place.tokens)],
    )
    from_tokens = ["--from-cache", str(place.tokens), "--student", str(place.teacher_config)]
    yield "train a small teacher", _train(place, place.teacher_run, "output", from_tokens)
    yield "estimate the cost of its cache", ["plan", *teacher]
    yield "run the teacher once and cache its predictions", ["cache-teacher", *teacher, "--out", str(place.cache)]
    against = ["--level", "deep", "--against", str(place.teacher)]
    yield "verify the cache against the teacher", ["cache", "verify", str(place.cache), *against]
    yield "inspect the cache", ["cache", "inspect", str(place.cache)]
    tiny = [*cache, "--student", "tiny"]
    yield "train a student on the text alone", _train(place, place.labels, "output", tiny)
    yield "train an equal student on the cache, without the teacher", _train(place, place.distilled, "hybrid", tiny)
    for run in (place.labels, place.distilled):
        yield f"evaluate the student {run.name}", ["eval", *cache, "--student", str(run)]
    yield "compare the two students", ["compare", str(place.labels), str(place.distilled)]


def _train(place: "DemoPaths", run: Path, mode: str, student: list[str]) -> list[str]:
    evaluate = f"evaluation.every={max(1, place.steps // 3)}"
    length = ["--max-steps", str(place.steps), *SMALL, "--set", evaluate]
    return ["train", *student, "--mode", mode, "--out", str(run), *length]


def page(place: "DemoPaths", result: "DemoResult") -> str:
    """Sample texts, metrics, files, and the commands for a model and text of one's own."""
    texts = {name: " ".join(text.split()) for name, text in result.texts.items()}
    lines = [
        *continuations(f"{result.prompt} ...", texts),
        "",
        "on held-out text, in nats:",
        *(_numbers(name, evaluation) for name, evaluation in result.evaluations.items()),
        "A few minutes of training show that it works, not how good a student can get.",
        "",
        f"files in {place.out}:",
        *(f"{size(n_bytes):>12}  {path}" for path, n_bytes in result.n_bytes.items()),
        "",
        "with your own model and text:",
        *(f"  kdpipe {shlex.join(words)}" for words in NEXT),
    ]
    return "\n".join(lines)


def _numbers(name: str, evaluation: "Evaluation") -> str:
    line = f"  {name:<11}CE {evaluation.cross_entropy:.4f}"
    if evaluation.kl_teacher is not None:
        line += f"   KL to the teacher {evaluation.kl_teacher:.4f}"
    if evaluation.top1_agreement is not None:
        line += f"   top-1 agreement {evaluation.top1_agreement:.1%}"
    return line
