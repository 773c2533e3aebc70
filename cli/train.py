"""`kdpipe train`: trains a student from a cache alone.

In: flags, a file, the environment. Out: a run folder, and on stdout what came of it.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.console import Fact
from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import stage_two
from kdpipe.cli.quantities import duration, share, size
from kdpipe.cli.train_progress import following
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from kdpipe.schemas.run_report import TrainReport


def train(
    given: ParsedFlags,
    resume_from: Annotated[
        str | None,
        typer.Option(
            "--resume-from", metavar="STEP|DIR", help="Go on from this checkpoint instead of the newest good one."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Clear an output folder that holds another run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do five steps of everything, and say what the whole run would take.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Train a student from a cache, without the teacher; run again, it goes on where it was."""
    settings = stage_two(given)
    from kdpipe.pipeline.training.completed_run import report_if_finished
    from kdpipe.schemas.train_settings import TrainOptions

    options = TrainOptions(resume_from=resume_from, overwrite=overwrite, dry_run=dry_run)
    with following() as watch:
        report = report_if_finished(settings, options, watch)
        if report is None:
            from kdpipe.pipeline.train import train as run

            report = run(settings, options, watch)
    console.reply(report, page(report), as_json=json)


def page(report: "TrainReport") -> str:
    """What came of a run, for a person."""
    lines = [report.run, *console.facts([*_extent(report), *_trained(report), *_effort(report)])]
    if report.dry_run is not None:
        lines.append(
            f"dry run: all is well; the whole run takes about {duration(report.dry_run.seconds)} and "
            f"{size(report.dry_run.peak_bytes)} of memory"
        )
    elif report.final is not None:
        lines.append(f"the student is in {report.final}")
    return "\n".join(lines)


def _extent(report: "TrainReport") -> list[Fact]:
    moved = "" if report.n_trainable == report.n_parameters else f", {report.n_trainable:,} of them learn"
    steps = f"{report.steps:,} of {report.steps_planned:,}, {report.epochs:.3g} epochs"
    facts = [
        (
            "student",
            f"{report.student}, {report.n_parameters:,} parameters{moved}, {report.precision} on {report.device}",
        ),
        ("cache", report.cache_id or f"{report.cache}, unfinished"),
        ("steps", steps + (f", from step {report.resumed_from:,} on" if report.resumed_from else "")),
        ("positions", f"{report.positions:,}"),
    ]
    if report.skipped or report.rollbacks:
        facts.append(
            (
                "skipped",
                f"{counted(report.skipped, 'step')}, {counted(report.rollbacks, 'time')} back to an earlier student",
            )
        )
    return facts


def _trained(report: "TrainReport") -> list[Fact]:
    facts = []
    for name, term in report.terms.items():
        told = "not measured" if term.raw is None else f"{term.raw:.4f}"
        told += "" if term.weighted is None else f", adds {term.weighted:.4f}"
        part = "" if term.share is None else f", {share(term.share)} of the loss"
        facts.append((name, f"{told} at weight {term.weight:.4g}{part}"))
    if report.evaluation is not None:
        facts.append(("validation", ", ".join(_numbers(report.evaluation))))
    if report.best is not None:
        facts.append(("best", f"step {report.best.step:,}: {report.best.metric} {report.best.value:.4f}"))
    return facts


def _numbers(evaluation: dict[str, float | int | str | None]) -> list[str]:
    words = {
        "loss": "loss {:.4f}",
        "loss_shifted": "loss_shifted {:.4f}",
        "cross_entropy": "CE {:.4f}",
        "perplexity": "perplexity {:.2f}",
        "kl_teacher": "KL to the teacher {:.4f}",
        "top1_agreement": "agreement {:.1%}",
        "ece": "calibration error {:.1%}",
    }
    return [text.format(evaluation[name]) for name, text in words.items() if evaluation.get(name) is not None]


def _effort(report: "TrainReport") -> list[Fact]:
    told = [duration(report.seconds)]
    if report.positions_per_second is not None:
        told.append(f"steps at {report.positions_per_second:,.0f} positions a second")
    if report.waiting_share is not None:
        told.append(f"{report.waiting_share:.1%} of their time waiting for the cache")
    memory = [f"weights {size(report.memory.weights)}"]
    if report.memory.peak_process is not None:
        memory.append(f"process {size(report.memory.peak_process)} at most")
    if report.memory.peak_device is not None:
        memory.append(f"device {size(report.memory.peak_device)} at most")
    return [("time", ", ".join(told)), ("memory", ", ".join(memory))]
