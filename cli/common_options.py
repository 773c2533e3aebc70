"""Options that several commands share, and the retry policy of `--retry-for`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.cache.stores.retries import RetryPolicy

RETRY_NAME, RETRY_METAVAR = "--retry-for", "TIME"
RETRY_HELP = "How long to retry failing remote storage, e.g. 30s or 10m [5m]."
RetryFor = Annotated[str | None, typer.Option(RETRY_NAME, metavar=RETRY_METAVAR, help=RETRY_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only warnings, errors and the result.")]
CacheOut = Annotated[str, typer.Option("--out", metavar="DIR", help="Output directory. Re-run the command to resume.")]
FinishedCache = Annotated[str, typer.Argument(metavar="CACHE", help="Finished cache: a folder or a URL.")]
AnyCache = Annotated[str, typer.Argument(metavar="CACHE", help="Cache: a folder or a URL.")]
OfParts = Annotated[
    str | None, typer.Option("--parts", metavar="A:B", help="Only parts A to B - 1, numbered as their folders.")
]


def retry_seconds(typed: str | None) -> float:
    from kdpipe.cache.stores.retries import RETRY_SECONDS
    from kdpipe.schemas.durations import in_seconds

    if typed is None:
        return RETRY_SECONDS
    try:
        return in_seconds(typed)
    except ValueError as error:
        raise UsageError(f"--retry-for {typed}: {error}", hint="for ten minutes, use --retry-for 10m") from None


def retries(typed: str | None, report: Callable[[str], None] = console.note) -> "RetryPolicy":
    """The retry policy of a command, which reports each retry."""
    from kdpipe.cache.stores.retries import RetryPolicy

    return RetryPolicy(budget=retry_seconds(typed), report=report)
