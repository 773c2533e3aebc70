"""`kdpipe cache export`: a cache as files that other tools read.

In: a cache, a form, a folder. Out: Parquet files, and on stdout what they hold and what they have no place for.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.progress import watching
from kdpipe.cli.quantities import duration, size
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.choices import ExportFormat, SplitName

if TYPE_CHECKING:
    from kdpipe.schemas.interop import TablesReport


def export(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="A finished cache: a folder or a URL.")],
    to: Annotated[
        ExportFormat,
        typer.Option("--to", help="parquet: all of a row, for datasets.load_dataset; axolotl: its columns for top-k."),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="A new folder, or one that this command began.")],
    split: Annotated[SplitName | None, typer.Option(help="One split only; both unless said.")] = None,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Write a cache as Parquet for other tools; run again, it goes on where it was."""
    from kdpipe.pipeline.export_cache import export_cache
    from kdpipe.schemas.interop import export_settings

    settings = export_settings(cache=cache, form=to, out=out, split=split)
    with watching() as watch:
        report = export_cache(settings, watch, retries(retry_for, watch.say))
    console.reply(report, page(report), as_json=json)


def page(report: "TablesReport") -> str:
    """What was made, for a person."""
    rows = "documents" if report.form == "axolotl" else "sequences"
    facts = [
        ("form", report.form),
        ("files", f"{report.files:,}, {report.files_made:,} made now"),
        ("rows", f"{report.rows:,} {rows}, {report.positions:,} positions"),
        ("size", size(report.bytes)),
        ("left out", ", ".join(report.left_out)),
        ("time", duration(report.seconds)),
        ("load it", f'datasets.load_dataset("parquet", data_dir="{report.folder}")'),
    ]
    return "\n".join([report.folder, *console.facts(facts)])
