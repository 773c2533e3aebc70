"""`kdpipe cache export`: a cache as Parquet files for other tools."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import CacheOut, FinishedCache, Json, Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.choices import ExportFormat, SplitName

if TYPE_CHECKING:
    from kdpipe.schemas.interop import TablesReport


def export(
    cache: FinishedCache,
    to: Annotated[
        ExportFormat,
        typer.Option("--to", help="parquet: all columns, for datasets.load_dataset; axolotl: its top-k columns."),
    ],
    out: CacheOut,
    split: Annotated[SplitName | None, typer.Option(help="Only one split [both].")] = None,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Export a cache as Parquet files for other tools.

    Re-run the command to resume.
    """
    from kdpipe.pipeline.export_cache import export_cache
    from kdpipe.schemas.interop import export_settings

    settings = export_settings(cache=cache, form=to, out=out, split=split)
    with shown_progress(quiet=quiet) as progress:
        report = export_cache(settings, progress, retries(retry_for, progress.message))
    console.reply(report, page(report), as_json=json)


def page(report: "TablesReport") -> str:
    """The report as text."""
    rows = "documents" if report.form == "axolotl" else "sequences"
    facts = [
        ("format", report.form),
        ("files", f"{report.files:,}, {report.files_made:,} from this run"),
        ("rows", f"{report.rows:,} {rows}, {report.positions:,} positions"),
        ("size", size(report.bytes)),
        ("not exported", ", ".join(report.left_out)),
        ("time", duration(report.seconds)),
        ("load with", f'datasets.load_dataset("parquet", data_dir="{report.folder}")'),
    ]
    return "\n".join([report.folder, *console.facts(facts)])
