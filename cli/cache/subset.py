"""`kdpipe cache subset`: a new cache of some documents of a cache."""

import math
from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import answer, bounds
from kdpipe.cli.common_options import CacheOut, FinishedCache, Json, OfParts, Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.choices import DocumentMeasure, SplitName
from kdpipe.schemas.errors import ConfigError


def subset(
    cache: FinishedCache,
    out: CacheOut,
    split: Annotated[SplitName | None, typer.Option("--split", help="Only documents of one split.")] = None,
    parts: OfParts = None,
    documents: Annotated[
        str | None, typer.Option("--documents", metavar="A:B", help="Only documents A to B - 1 of the split.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="COLUMN=VALUE", help="Only documents with this value in a kept column (repeatable)."
        ),
    ] = None,
    by: Annotated[
        DocumentMeasure | None,
        typer.Option("--by", help="Measure to select documents by: the mean over their trained positions."),
    ] = None,
    lowest: Annotated[
        float | None,
        typer.Option("--lowest", metavar="FRACTION", help="--by: keep this fraction of documents, the lowest."),
    ] = None,
    highest: Annotated[
        float | None,
        typer.Option("--highest", metavar="FRACTION", help="--by: keep this fraction of documents, the highest."),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", metavar="X", help="--by: keep documents with a measure of at least X.")
    ] = None,
    at_most: Annotated[
        float | None, typer.Option("--at-most", metavar="X", help="--by: keep documents with a measure of at most X.")
    ] = None,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a cache of the documents that meet all conditions."""
    from kdpipe.cache.reshape.subset import subset as run
    from kdpipe.schemas.reshape import DocumentSelection

    _check_finite(lowest=lowest, highest=highest, at_least=at_least, at_most=at_most)
    selection = DocumentSelection(
        split=split,
        parts=bounds("--parts", parts),
        documents=bounds("--documents", documents),
        where=tuple(_condition(text) for text in where or ()),
        by=by,
        lowest=lowest,
        highest=highest,
        at_least=at_least,
        at_most=at_most,
    )
    with shown_progress(quiet=quiet) as progress:
        report = run(cache, out, selection, progress, retries(retry_for, progress.message))
    answer(report, json)


def _check_finite(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise ConfigError(
                f"--{name.replace('_', '-')} {number} is not a finite number", hint="give a number, or omit it"
            )


def _condition(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--where {text} is not of the form COLUMN=VALUE", hint="for example --where language=en")
    return name, value
