"""`kdpipe cache copy`: copies a cache, or completes and repairs a copy."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.reshaping import bounds
from kdpipe.cli.common_options import Json, OfParts, Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from kdpipe.schemas.copy_report import CopyReport


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Source cache: a folder or a URL.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Destination: a folder or a URL.")],
    parts: OfParts = None,
    split: Annotated[SplitName | None, typer.Option("--split", help="Only the parts of one split.")] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="WHAT", help="Leave out hidden (per-position hidden states) or text (repeatable)."
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Copy the finished parts of an incomplete cache.")
    ] = False,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Copy a cache, verifying every file.

    Re-run to copy only missing or damaged files. With --parts, --split or --without the copy is a smaller cache with
    its own cache_id, and its manifest records the source.
    """
    from kdpipe.cache.transfer import copy_cache
    from kdpipe.schemas.copy_report import PartSelection

    left_out = tuple(sorted(set(without or ())))
    selection = PartSelection(parts=bounds("--parts", parts), split=split, without=left_out)
    with shown_progress(quiet=quiet) as progress:
        report = copy_cache(
            source,
            target,
            selection=selection,
            allow_partial=allow_partial,
            retry_policy=retries(retry_for, progress.message),
            progress=progress,
        )
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report))


def page(report: "CopyReport") -> str:
    """The report as text."""
    present = report.parts - report.copied
    facts = [("copied", f"{console.parts(report.copied)}, {size(report.bytes)}")]
    if present:
        checked = "sizes checked" if "://" in report.target else "checksums verified"
        facts.append(("already there", f"{console.parts(present)}, {checked}"))
    if report.repaired:
        facts.append(("repaired", f"part {', '.join(str(number) for number in report.repaired)}"))
    if report.redownloaded:
        files = counted(report.redownloaded, "file")
        facts.append(("re-downloaded", f"{files} with a wrong checksum, or replaced at the source meanwhile"))
    if report.seconds > 0 and report.bytes:
        facts.append(("time", f"{duration(report.seconds)}, {size(report.bytes / report.seconds)}/s"))
    if report.made_from:
        facts.append(("made from", f"{report.selection} of {report.made_from}"))
    facts.append(("cache_id", report.cache_id or "none: the cache is unfinished"))
    return "\n".join([report.target, *console.facts(facts)])
