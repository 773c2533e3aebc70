"""`kdpipe demo`: both stages on a small teacher and text that comes with Python, by the commands a user would type."""

import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Devices
from kdpipe.cli.progress import hidden_messages
from kdpipe.cli.quantities import size
from kdpipe.cli.sample import continuations
from kdpipe.schemas.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from kdpipe.pipeline.demo import DemoPaths, DemoResult
    from kdpipe.schemas.train_report import Evaluation

Report = dict[str, Any]
SMALL = ("--batch-size", "4")
SHORT_TEXT = 125
# The commands of the demo with --devices, except tokenization, which runs no model.
COMPUTE = ("plan", "cache-teacher", "train", "eval")
NEXT = (
    ["plan", "--teacher", "TEACHER", "--data", "corpus.jsonl"],
    ["cache-teacher", "--teacher", "TEACHER", "--data", "corpus.jsonl", "--out", "my-cache"],
    ["train", "--from-cache", "my-cache", "--student", "100m", "--out", "runs/first"],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A command of the demo; `result` makes a line of its JSON report."""

    purpose: str
    words: list[str]
    result: Callable[[Report], str] | None = None


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output directory.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Training steps of each model.")] = 300,
    devices: Devices = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every command and all of its output.")] = False,
) -> None:
    """Run both stages on a tiny model, in a few minutes.

    Trains a small teacher, caches its predictions, trains one student on them and one on the text alone, and compares
    the two. Re-run the command to resume.
    """
    from kdpipe.pipeline.demo import load_results, prepare

    paths = prepare(out, steps)
    commands = list(stages(paths, devices))
    _write_script(paths.script, commands)
    console.note(f"A teacher of 0.5 M parameters and two students, {steps} steps each, in {out}.")
    console.note(f"This takes a few minutes on a CPU. The commands are in {paths.script}.")
    for number, stage in enumerate(commands, 1):
        console.note(f"\n== {number}. {stage.purpose}" if verbose else f"{number:>2}. {stage.purpose}")
        if code := (_run_shown if verbose else _run_briefly)(context.obj, stage):
            if code == Interrupted.exit_code:
                console.note(f"resume the demo with: kdpipe {shlex.join(resume_command(paths, devices))}")
            raise typer.Exit(code)
    console.note("\n== sample continuations" if verbose else "")
    console.answer(page(paths, load_results(paths), verbose=verbose))


def _run_shown(run: Callable[[list[str]], int], stage: Stage) -> int:
    """Run a command and show all of it."""
    console.note(f"$ kdpipe {shlex.join(stage.words)}")
    return run(stage.words)


def _run_briefly(run: Callable[[list[str]], int], stage: Stage) -> int:
    """Run a command and show only its bar, warnings and errors, and a line with its result."""
    reply = io.StringIO()
    with redirect_stdout(reply), hidden_messages():
        code = run([*stage.words, "--json"])
    if code == 0 and stage.result is not None:
        console.note(f"    {stage.result(json.loads(reply.getvalue()))}")
    elif code not in (0, UsageError.exit_code, Interrupted.exit_code):
        console.note(f"see all of its output with: kdpipe {shlex.join(stage.words)}")
    return code


def _write_script(path: Path, commands: list[Stage]) -> None:
    """The commands as a shell script, which also finds `kdpipe` if it is not on the path."""
    from kdpipe.pipeline.small_teacher import write_text

    lines = ["#!/bin/sh", "set -e"]
    if shutil.which("kdpipe") is None:
        lines.append(f'PATH="{Path(sys.executable).parent}:$PATH"')
    for number, stage in enumerate(commands, 1):
        lines += ["", f"# {number}. {stage.purpose}", f"kdpipe {shlex.join(stage.words)}"]
    write_text(path, "\n".join(lines) + "\n")


def resume_command(paths: "DemoPaths", devices: str = "auto") -> list[str]:
    return ["demo", "--out", str(paths.out), "--steps", str(paths.steps), *_device_options(devices)]


def stages(paths: "DemoPaths", devices: str = "auto") -> Iterator[Stage]:
    """The commands in order."""
    for stage in _stages(paths):
        has_devices = "--against" in stage.words or (stage.words[0] in COMPUTE and "none" not in stage.words)
        yield replace(stage, words=stage.words + _device_options(devices)) if has_devices else stage


def _device_options(devices: str) -> list[str]:
    return [] if devices == "auto" else ["--devices", devices]


def _stages(paths: "DemoPaths") -> Iterator[Stage]:
    cut = ["--data", str(paths.corpus), "--seq-len", "256", "--val-fraction", "0.3"]
    teacher = ["--teacher", str(paths.teacher), *cut]
    cache = ["--from-cache", str(paths.cache)]
    tokens = ["--targets", "none", "--tokenizer", str(paths.tokenizer), *cut, "--out", str(paths.tokens)]
    yield Stage(purpose="tokenize the text (no teacher yet)", words=["cache-teacher", *tokens], result=_cached)
    from_tokens = ["--from-cache", str(paths.tokens), "--student", str(paths.teacher_config)]
    yield _train(paths, "train a small teacher", paths.teacher_run, "output", from_tokens)
    yield Stage(
        purpose="estimate the size of its cache",
        words=["plan", *teacher],
        result=lambda plan: f"about {size(plan['bytes'])} for {sum(plan['positions'].values()):,} positions",
    )
    yield Stage(
        purpose="run the teacher once and cache its predictions",
        words=["cache-teacher", *teacher, "--out", str(paths.cache)],
        result=_cached,
    )
    against = ["--level", "deep", "--against", str(paths.teacher)]
    yield Stage(
        purpose="verify the cache against the teacher",
        words=["cache", "verify", str(paths.cache), *against],
        result=lambda report: f"all checks passed: {size(report['bytes'])}",
    )
    yield Stage(purpose="inspect the cache", words=["cache", "inspect", str(paths.cache)], result=_fidelity)
    tiny = [*cache, "--student", "tiny"]
    yield _train(paths, "train a student on the text alone", paths.labels, "output", tiny)
    equal = "train an equal student on the cache, without the teacher"
    yield _train(paths, equal, paths.distilled, "hybrid", tiny)
    for run in (paths.labels, paths.distilled):
        yield Stage(purpose=f"evaluate the student {run.name}", words=["eval", *cache, "--student", str(run)])
    yield Stage(
        purpose="compare the two students",
        words=["compare", str(paths.labels), str(paths.distilled)],
        result=_compared,
    )


def _train(paths: "DemoPaths", purpose: str, run: Path, mode: str, student: list[str]) -> Stage:
    evaluate = f"evaluation.every={max(1, paths.steps // 3)}"
    length = ["--max-steps", str(paths.steps), *SMALL, "--set", evaluate]
    return Stage(
        purpose=purpose, words=["train", *student, "--mode", mode, "--out", str(run), *length], result=_trained
    )


def _cached(report: Report) -> str:
    line = f"{report['positions']:,} positions"
    return line if report["fidelity"] is None else f"{line}, {report['bytes_per_position']:.1f} bytes per position"


def _trained(report: Report) -> str:
    line = f"{report['n_parameters']:,} parameters, {report['steps']:,} steps"
    evaluation = report["evaluation"]
    return line if evaluation is None else f"{line}, validation CE {evaluation['cross_entropy']:.3f}"


def _fidelity(summary: Report) -> str:
    fidelity = summary["fidelity"]
    near = f"KL to the full distribution {fidelity['kl_nats']:.1e} nats"
    return f"{near}, {summary['entries_per_position']['mean']:.1f} ids per position"


def _compared(report: Report) -> str:
    differences = report["runs"][1]["differences"]
    parts = []
    if kl := differences.get("kl_teacher"):
        parts.append(f"KL {kl['value']:+.2f} ± {kl['spread']:.2f}")
    if agreement := differences.get("top1_agreement"):
        parts.append(f"agreement {100 * agreement['value']:+.1f} ± {100 * agreement['spread']:.1f} points")
    return f"distilled instead of labels: {', '.join(parts)}"


def page(paths: "DemoPaths", result: "DemoResult", *, verbose: bool) -> str:
    """Sample texts, metrics, files, and the commands for a model and text of one's own."""
    texts = {name: " ".join(text.split()) for name, text in result.texts.items()}
    if not verbose:
        texts = {name: _shortened(text) for name, text in texts.items()}
    lines = [
        *continuations(f"{result.prompt} ...", texts),
        "",
        "on held-out text, in nats:",
        *(_numbers(name, evaluation) for name, evaluation in result.evaluations.items()),
        "A few minutes of training show that it works, not how good a student can get.",
        "",
    ]
    if verbose:
        lines += [f"files in {paths.out}:"]
        lines += [f"{size(n_bytes):>12}  {path}" for path, n_bytes in result.n_bytes.items()]
        lines += [""]
    lines += ["with your own model and text:", *(f"  kdpipe {shlex.join(words)}" for words in NEXT)]
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return text if len(text) <= SHORT_TEXT else f"{text[:SHORT_TEXT].rsplit(' ', 1)[0]} ..."


def _numbers(name: str, evaluation: "Evaluation") -> str:
    line = f"  {name:<11}CE {evaluation.cross_entropy:.4f}"
    if evaluation.kl_teacher is not None:
        line += f"   KL to the teacher {evaluation.kl_teacher:.4f}"
    if evaluation.top1_agreement is not None:
        line += f"   top-1 agreement {evaluation.top1_agreement:.1%}"
    return line
