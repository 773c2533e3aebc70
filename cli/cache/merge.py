"""`kdpipe cache merge`: several caches of one teacher become one."""

from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import answer
from kdpipe.cli.common_options import CacheOut, Json, Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.choices import Overlap


def merge(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE...", help="Finished caches: folders or URLs.")],
    out: CacheOut,
    overlap: Annotated[
        Overlap,
        typer.Option(help="Documents that are in several caches: refuse, or keep-first to skip the later ones."),
    ] = "refuse",
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Merge caches of the same teacher, tokenizer and settings."""
    from kdpipe.cache.reshape.merge import merge as run

    with shown_progress(quiet=quiet) as progress:
        report = run(caches, out, overlap, progress, retries(retry_for, progress.message))
    answer(report, json)
