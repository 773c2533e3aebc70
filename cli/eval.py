"""`kdpipe eval`: compares a student with the teacher of a cache, and runs HumanEval and lm-eval tasks."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Devices, Json, Quiet, RetryFor, RunStudentCode, retry_seconds
from kdpipe.cli.console import Fact
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.choices import SplitName, VerifyWhen
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from kdpipe.schemas.train_report import Bucket, EvalReport

ESTIMATES = {"exact": "exact", "unbiased": "unbiased estimate", "lower_bound": "at least"}
HEADS = ("positions", "CE", "KL", "agreement", "ECE")


def evaluate(
    from_cache: Annotated[str, typer.Option("--from-cache", metavar="DIR", help="The cache: a folder or a URL.")],
    student: Annotated[
        str, typer.Option("--student", metavar="NAME", help="Student: a model folder, a Hub id, or a run folder.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="Commit, tag or branch of the student on the Hub.")
    ] = None,
    trust_remote_code: RunStudentCode = False,
    split: Annotated[SplitName, typer.Option("--split", help="Split to evaluate on.")] = "validation",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Maximum number of sequences, and of documents per task."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,NAME", help="humaneval, or lm-eval tasks: names or YAML files."),
    ] = None,
    unsafe_no_sandbox: Annotated[
        bool,
        typer.Option("--unsafe-no-sandbox", help="humaneval: run generated programs with your own permissions."),
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Use the finished parts of an incomplete cache.")
    ] = False,
    verify: Annotated[
        VerifyWhen | None,
        typer.Option("--verify", help="When to verify the cache's checksums [first use on this machine]."),
    ] = None,
    devices: Devices = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Sequences per batch.")] = 8,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Evaluate a student on a cache's held-out split."""
    from kdpipe.pipeline.evaluate import EvalRequest
    from kdpipe.pipeline.evaluate import evaluate as run

    request = EvalRequest(
        cache=from_cache,
        student=student,
        revision=revision,
        trust_remote_code=trust_remote_code,
        split=split,
        limit=limit,
        tasks=tuple(word.strip() for word in (tasks or "").split(",") if word.strip()),
        unsafe_no_sandbox=unsafe_no_sandbox,
        allow_partial=allow_partial,
        device=devices,
        batch_size=batch_size,
        verify=verify,
        retry_for=retry_seconds(retry_for),
    )
    with shown_progress(quiet=quiet) as progress:
        report = run(request, progress)
    console.reply(report, page(report), as_json=json)


def page(report: "EvalReport") -> str:
    """The report as text: metrics, metrics by teacher entropy, tasks."""
    lines = [report.settings.student, *console.facts(_numbers(report))]
    if report.by_entropy:
        lines += ["", "  by teacher entropy, in nats", *_table(report.by_entropy)]
    for task, metrics in report.tasks.items():
        lines += ["", f"  {task}", *console.facts([(name, f"{value:.4g}") for name, value in metrics.items()])]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _numbers(report: "EvalReport") -> list[Fact]:
    settings = report.settings
    perplexity = "too large" if report.perplexity is None else f"{report.perplexity:,.2f}"
    facts = [
        ("cache", f"{settings.cache}, {settings.split}, {settings.cache_id or 'unfinished'}"),
        (
            "positions",
            f"{report.positions:,} in {counted(settings.sequences, 'sequence')}, "
            f"{counted(settings.documents, 'document')}",
        ),
        ("CE", f"{report.cross_entropy:.4f} nats, perplexity {perplexity}"),
    ]
    if report.kl_teacher is not None:
        facts.append(
            ("KL", f"{report.kl_teacher:.4f} nats to the teacher, {ESTIMATES[str(report.kl_teacher_estimate)]}")
        )
    if report.top1_agreement is not None:
        facts.append(("top-1", f"agreement with the teacher {report.top1_agreement:.2%}"))
    return [*facts, ("calibration", f"expected calibration error (ECE) {report.ece:.2%}")]


def _table(buckets: "tuple[Bucket, ...]") -> list[str]:
    rows: list[tuple[str, ...]] = [("from", "to", *HEADS)]
    rows += [
        (f"{bucket.from_nats:g}", "" if bucket.to_nats is None else f"{bucket.to_nats:g}", *_cells(bucket))
        for bucket in buckets
    ]
    return ["  " + "".join(f"{cell:>11}" for cell in row) for row in rows]


def _cells(bucket: "Bucket") -> tuple[str, ...]:
    shares = (bucket.top1_agreement, bucket.ece)
    nats = (bucket.cross_entropy, bucket.kl_teacher)
    return (
        f"{bucket.positions:,}",
        *("-" if value is None else f"{value:.4f}" for value in nats),
        *("-" if value is None else f"{value:.2%}" for value in shares),
    )
