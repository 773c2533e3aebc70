"""`kdpipe cache-teacher`: runs the teacher once over the documents and caches its predictions."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.inspect import fidelity
from kdpipe.cli.common_options import Json, Quiet, RetryFor, retry_seconds
from kdpipe.cli.console import Fact
from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import capture_settings
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, share, size
from kdpipe.schemas.counts import counted
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
            help="Run as worker I of N on a shared output directory, from 0/4 to 3/4. The last to finish completes the"
            " cache.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load everything, run two batches and stop.")] = False,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the teacher once and cache its predictions.

    Re-run the command to resume.
    """
    options = _run_options(shard, dry_run, retry_seconds(retry_for))
    settings = capture_settings(given)
    from kdpipe.pipeline.cache_teacher import cache_teacher as run

    with shown_progress(quiet=quiet) as progress:
        report = run(settings, options, progress)
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report, dry_run=dry_run))
    if report.complete and not json:
        train = ["train", "--from-cache", report.cache, "--student", "100m", "--out", "runs/first"]
        console.next_commands([["cache", "inspect", report.cache], train], quiet=quiet)


def _run_options(shard: str | None, dry_run: bool, retry_for: float) -> "CaptureOptions":
    from kdpipe.schemas.capture_settings import CaptureOptions

    if shard is None:
        return CaptureOptions(dry_run=dry_run, retry_for=retry_for)
    match = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", shard.strip())
    if not match or int(match[2]) == 0:
        raise ConfigError(
            f"--shard {shard} is not of the form I/N", hint="for the first of four workers, use --shard 0/4"
        )
    number, n_shards = int(match[1]), int(match[2])
    if number >= n_shards:
        hint = f"the last of {n_shards} is {n_shards - 1}/{n_shards}"
        raise ConfigError(f"--shard {shard} is out of range: shards are counted from 0", hint=hint)
    return CaptureOptions(shard=number, n_shards=n_shards, dry_run=dry_run, retry_for=retry_for)


def page(report: "CaptureReport", *, dry_run: bool = False) -> str:
    """The report as text; the verdict comes last."""
    facts = [*_extent(report), *_effort(report), *_documents(report), *fidelity(report.fidelity)]
    lines = [report.cache, *console.facts(facts)]
    if dry_run:
        lines.append("dry run: OK")
    return "\n".join(lines)


def _extent(report: "CaptureReport") -> list[Fact]:
    parts = report.parts
    missing = parts.planned - parts.present
    state = f"{parts.present:,} of {parts.planned:,}, {parts.made:,} from this run"
    facts = [("cache_id", report.cache_id or "none yet"), ("parts", state)]
    if missing and report.parts.made:
        facts.append(("unfinished", f"{console.parts(missing)} missing: run the other shards, or re-run this command"))
    averages = [
        f"{report.bytes_per_position:.1f} bytes" if report.bytes_per_position is not None else "",
        f"{report.entries_per_position:.1f} entries" if report.entries_per_position is not None else "",
    ]
    per_position = " and ".join(filter(None, averages))
    facts.append(("positions", f"{report.positions:,}" + (f", {per_position} per position" if per_position else "")))
    sizes = {"parts": report.sizes.parts, "tokenizer": report.sizes.tokenizer}
    sizes["tables, manifest and index"] = report.sizes.tables + report.sizes.records
    shares = ", ".join(f"{size(n_bytes)} {name}" for name, n_bytes in sizes.items())
    return [*facts, ("size", f"{size(report.bytes)}: {shares}")]


def _effort(report: "CaptureReport") -> list[Fact]:
    times = [duration(report.seconds)]
    if report.positions_per_second is not None:
        times.append(f"{report.positions_per_second:,.0f} positions/s")
    if report.teacher_share is not None:
        times.append(f"{share(report.teacher_share)} waiting for the teacher")
    facts = [("time", ", ".join(times))]
    if report.batches_halved:
        halved = counted(report.batches_halved, "time")
        facts.append(("memory", f"batch size halved {halved}: a run with more memory may differ in the last bits"))
    return facts


def _documents(report: "CaptureReport") -> list[Fact]:
    counts = []
    if report.bad_rows:
        counts.append(f"{counted(report.bad_rows, 'unusable row')} skipped")
    if report.cut_documents:
        counts.append(f"{report.cut_documents:,} longer than a sequence")
    if report.untrainable_documents:
        counts.append(f"{report.untrainable_documents:,} without trained tokens skipped")
    if report.known_documents:
        counts.append(f"{report.known_documents:,} duplicates skipped")
    return [("documents", ", ".join(counts))] if counts else []
