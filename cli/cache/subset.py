"""`kdpipe cache subset`: some documents of a cache become a cache of their own.

In: a cache and conditions. Out: a new cache, and on stdout what it is.
"""

import math
from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import ReshapeProgress, answer, bounds
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.choices import DocumentMeasure, SplitName
from kdpipe.schemas.errors import ConfigError


def subset(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="A finished cache: a folder or a URL.")],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="The folder of the new cache; run again, it goes on there.")
    ],
    split: Annotated[SplitName | None, typer.Option("--split", help="The documents of one split.")] = None,
    parts: Annotated[
        str | None, typer.Option("--parts", metavar="A:B", help="Parts A to B - 1, numbered as their folders are.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option("--documents", metavar="A:B", help="Documents A to B - 1 of the split.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=VALUE", help="Documents of this value in a kept column; repeatable."),
    ] = None,
    by: Annotated[
        DocumentMeasure | None,
        typer.Option("--by", help="What a document is measured by, on the mean of its learnt positions."),
    ] = None,
    lowest: Annotated[
        float | None, typer.Option("--lowest", metavar="SHARE", help="This share of them, from the lowest on.")
    ] = None,
    highest: Annotated[
        float | None, typer.Option("--highest", metavar="SHARE", help="This share of them, from the highest down.")
    ] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", metavar="X", help="Those whose measure is X or more.")
    ] = None,
    at_most: Annotated[
        float | None, typer.Option("--at-most", metavar="X", help="Those whose measure is X or less.")
    ] = None,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Make a cache of the documents that every condition holds for."""
    from kdpipe.cache.reshape.subset import subset as run
    from kdpipe.schemas.reshape import DocumentSelection

    _check_numbers(lowest=lowest, highest=highest, at_least=at_least, at_most=at_most)
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
    answer(run(cache, out, selection, ReshapeProgress(), retries(retry_for)), json)


def _check_numbers(**typed: float | None) -> None:
    for name, number in typed.items():
        if number is not None and not math.isfinite(number):
            raise ConfigError(f"--{name.replace('_', '-')} {number} is no number", hint="give one, or leave it out")


def _condition(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--where {text} is not of the form COLUMN=VALUE", hint="write --where language=en")
    return name, value
