"""`kdpipe cache merge`: several caches of one teacher become one."""

from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import ReshapeProgress, answer
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.choices import Overlap


def merge(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE...", help="Finished caches: folders or URLs.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Output directory. Re-run the command to resume.")],
    overlap: Annotated[
        Overlap,
        typer.Option(help="Documents that are in several caches: refuse, or keep-first to skip the later ones."),
    ] = "refuse",
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Merge caches of the same teacher, tokenizer and settings."""
    from kdpipe.cache.reshape.merge import merge as run

    answer(run(caches, out, overlap, ReshapeProgress(), retries(retry_for)), json)
