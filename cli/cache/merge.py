"""`kdpipe cache merge`: caches that one teacher made become one.

In: two caches or more. Out: a new one, and on stdout what it is.
"""

from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import ReshapeProgress, answer
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.choices import Overlap


def merge(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE...", help="Finished caches: folders or URLs.")],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="The folder of the new cache; run again, it goes on there.")
    ],
    overlap: Annotated[
        Overlap,
        typer.Option(help="What becomes of documents that are in an earlier cache too: keep-first leaves them out."),
    ] = "refuse",
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Make one cache of several, of the same teacher, tokenizer and settings."""
    from kdpipe.cache.reshape.merge import merge as run

    answer(run(caches, out, overlap, ReshapeProgress(), retries(retry_for)), json)
