"""`kdpipe cache-teacher`: runs the teacher once over the documents and keeps what it said.

In: flags, a file, the environment. Out: a cache, and on stdout what was made.
"""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.inspect import fidelity
from kdpipe.cli.console import Fact
from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import stage_one
from kdpipe.cli.progress import watching
from kdpipe.cli.quantities import duration, share, size
from kdpipe.cli.remote_options import RetryFor, retry_seconds
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.capture_report import CaptureReport
    from kdpipe.schemas.capture_settings import CaptureOptions


def cache_teacher(
    given: ParsedFlags,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Make every N-th part, beside other workers on the same folder; counted from 0, as SLURM does: 0/4 to"
            " 3/4. Whoever is last completes the cache.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, do two batches, and say whether all is well.")
    ] = False,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Run the teacher once over the documents and keep what it said; run again, it goes on where it was."""
    options = _run_options(shard, dry_run, retry_seconds(retry_for))
    settings = stage_one(given)
    from kdpipe.pipeline.cache_teacher import cache_teacher as run

    with watching() as watch:
        report = run(settings, options, watch)
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report, dry_run=dry_run))


def _run_options(shard: str | None, dry_run: bool, retry_for: float) -> "CaptureOptions":
    """What this call is to do of the whole."""
    from kdpipe.schemas.capture_settings import CaptureOptions

    if shard is None:
        return CaptureOptions(dry_run=dry_run, retry_for=retry_for)
    found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", shard.strip())
    if not found or int(found[2]) == 0:
        raise ConfigError(f"--shard {shard} is not of the form I/N", hint="write 0/4 for the first of four workers")
    number, n_shards = int(found[1]), int(found[2])
    if number >= n_shards:
        last = f"the last of {n_shards} is {n_shards - 1}/{n_shards}"
        raise ConfigError(f"--shard {shard} does not exist: shards are counted from 0", hint=last)
    return CaptureOptions(shard=number, n_shards=n_shards, dry_run=dry_run, retry_for=retry_for)


def page(report: "CaptureReport", *, dry_run: bool = False) -> str:
    """What was made, for a person; the verdict last."""
    facts = [*_extent(report), *_effort(report), *_documents(report), *fidelity(report.fidelity)]
    lines = [report.cache, *console.facts(facts)]
    if dry_run:
        lines.append("dry run: all is well")
    return "\n".join(lines)


def _extent(report: "CaptureReport") -> list[Fact]:
    parts = report.parts
    missing = parts.planned - parts.present
    state = f"{parts.present:,} of {parts.planned:,}, {parts.made:,} made now"
    facts = [("cache_id", report.cache_id or "none yet"), ("parts", state)]
    if missing and report.parts.made:
        are = "1 part is" if missing == 1 else f"{missing:,} parts are"
        facts.append(("unfinished", f"{are} missing: for other shards to make, or the same command again"))
    of_one = [
        f"{report.bytes_per_position:.1f} bytes" if report.bytes_per_position is not None else "",
        f"{report.entries_per_position:.1f} entries" if report.entries_per_position is not None else "",
    ]
    averages = " and ".join(filter(None, of_one))
    facts.append(("positions", f"{report.positions:,}" + (f", {averages} each" if averages else "")))
    named = {"parts": report.sizes.parts, "tokenizer": report.sizes.tokenizer}
    named["tables, manifest and index"] = report.sizes.tables + report.sizes.records
    shares = ", ".join(f"{size(n_bytes)} {name}" for name, n_bytes in named.items())
    return [*facts, ("size", f"{size(report.bytes)}: {shares}")]


def _effort(report: "CaptureReport") -> list[Fact]:
    told = [duration(report.seconds)]
    if report.positions_per_second is not None:
        told.append(f"{report.positions_per_second:,.0f} positions a second")
    if report.teacher_share is not None:
        told.append(f"{share(report.teacher_share)} of it waiting on the teacher")
    facts = [("time", ", ".join(told))]
    if report.batches_halved:
        facts.append(("memory", f"batches were halved {report.batches_halved:,} times: bytes may differ elsewhere"))
    return facts


def _documents(report: "CaptureReport") -> list[Fact]:
    told = []
    if report.bad_rows:
        told.append(f"{report.bad_rows:,} bad {'row' if report.bad_rows == 1 else 'rows'} left out")
    if report.cut_documents:
        told.append(f"{report.cut_documents:,} longer than a sequence")
    if report.untrainable_documents:
        told.append(f"{report.untrainable_documents:,} left out that cannot be learnt")
    if report.known_documents:
        told.append(f"{report.known_documents:,} left out that were there already")
    return [("documents", ", ".join(told))] if told else []
