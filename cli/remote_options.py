"""`--retry-for`, the option of every command that reads or writes remote storage."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.cache.stores.retries import RetryPolicy

NAME, METAVAR = "--retry-for", "TIME"
HELP = "How long to retry failing remote storage, e.g. 30s or 10m [5m]."
RetryFor = Annotated[str | None, typer.Option(NAME, metavar=METAVAR, help=HELP)]


def retry_seconds(typed: str | None) -> float:
    from kdpipe.cache.stores.retries import RETRY_SECONDS
    from kdpipe.schemas.durations import in_seconds

    if typed is None:
        return RETRY_SECONDS
    try:
        return in_seconds(typed)
    except ValueError as error:
        raise UsageError(f"--retry-for {typed}: {error}", hint="for ten minutes, use --retry-for 10m") from None


def retries(typed: str | None, told: Callable[[str], None] = console.note) -> "RetryPolicy":
    """The retry policy of a command, which reports each retry on stderr."""
    from kdpipe.cache.stores.retries import RetryPolicy

    return RetryPolicy(budget=retry_seconds(typed), report=told)
