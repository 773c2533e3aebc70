"""`kdpipe eval`: how near a student is to the teacher of a cache, and what it can do.

In: a cache, a student, perhaps tasks. Out: a page for a person, or the whole report as one JSON document.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.console import Fact
from kdpipe.cli.eval_progress import measuring
from kdpipe.cli.remote_options import RetryFor, retry_seconds
from kdpipe.schemas.choices import SplitName, VerifyWhen
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from kdpipe.schemas.train_report import Bucket, EvalReport

ESTIMATES = {"exact": "exact", "unbiased": "unbiased estimate", "lower_bound": "at least"}
HEADS = ("positions", "CE", "KL", "agreement", "ECE")


def evaluate(
    from_cache: Annotated[str, typer.Option("--from-cache", metavar="DIR", help="The cache: a folder or a URL.")],
    student: Annotated[
        str, typer.Option("--student", metavar="NAME", help="A model folder, a hub id, or the folder of a run.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="Commit, tag or branch of the student on the hub.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the student's own code run; read it first.")
    ] = False,
    split: Annotated[SplitName, typer.Option("--split", help="Which part of the data.")] = ("validation"),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many sequences, and documents a task.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,NAME", help="Tasks of lm-eval, or YAML files that describe one."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Read the parts that an unfinished cache has.")
    ] = False,
    verify: Annotated[
        VerifyWhen | None,
        typer.Option("--verify", help="When every byte of the cache is checked: before its first use here [first]."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, or one GPU: cuda:0.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Sequences at once.")] = 8,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Hold a student against what the teacher said, at positions it has not learnt from."""
    from kdpipe.pipeline.evaluate import EvalRequest
    from kdpipe.pipeline.evaluate import evaluate as run

    asked = EvalRequest(
        cache=from_cache,
        student=student,
        revision=revision,
        trust_remote_code=trust_remote_code,
        split=split,
        limit=limit,
        tasks=tuple(word.strip() for word in (tasks or "").split(",") if word.strip()),
        allow_partial=allow_partial,
        device=device,
        batch_size=batch_size,
        verify=verify,
        retry_for=retry_seconds(retry_for),
    )
    with measuring() as watch:
        report = run(asked, watch)
    console.reply(report, page(report), as_json=json)


def page(report: "EvalReport") -> str:
    """The report for a person: the numbers, then by how sure the teacher was, then the tasks."""
    lines = [report.settings.student, *console.facts(_numbers(report))]
    if report.by_entropy:
        lines += ["", "  by the teacher's entropy, in nats", *_table(report.by_entropy)]
    for task, metrics in report.tasks.items():
        lines += ["", f"  {task}", *console.facts([(name, f"{value:.4g}") for name, value in metrics.items()])]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _numbers(report: "EvalReport") -> list[Fact]:
    asked = report.settings
    perplexity = "too large" if report.perplexity is None else f"{report.perplexity:,.2f}"
    facts = [
        ("cache", f"{asked.cache}, {asked.split}, {asked.cache_id or 'unfinished'}"),
        (
            "positions",
            f"{report.positions:,} in {counted(asked.sequences, 'sequence')} of {counted(asked.documents, 'document')}",
        ),
        ("CE", f"{report.cross_entropy:.4f} nats, perplexity {perplexity}"),
    ]
    if report.kl_teacher is not None:
        facts.append(
            ("KL", f"{report.kl_teacher:.4f} nats to the teacher, {ESTIMATES[str(report.kl_teacher_estimate)]}")
        )
    if report.top1_agreement is not None:
        facts.append(("agreement", f"{report.top1_agreement:.2%} hold the teacher's most probable id most probable"))
    return [*facts, ("calibration", f"error {report.ece:.2%} (ECE)")]


def _table(buckets: "tuple[Bucket, ...]") -> list[str]:
    rows: list[tuple[str, ...]] = [("from", "to", *HEADS)]
    rows += [(f"{one.from_nats:g}", "" if one.to_nats is None else f"{one.to_nats:g}", *_cells(one)) for one in buckets]
    return ["  " + "".join(f"{cell:>11}" for cell in row) for row in rows]


def _cells(bucket: "Bucket") -> tuple[str, ...]:
    shares = (bucket.top1_agreement, bucket.ece)
    nats = (bucket.cross_entropy, bucket.kl_teacher)
    return (
        f"{bucket.positions:,}",
        *("-" if value is None else f"{value:.4f}" for value in nats),
        *("-" if value is None else f"{value:.2%}" for value in shares),
    )
