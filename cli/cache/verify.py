"""`kdpipe cache verify`: is every byte of a cache what it claims to be?

In: a cache and how deep to look. Out: every problem with its place and its remedy, and exit code 0 or 3.
Before it: `cli/main.py`. After it: `kdpipe.cache.verify`, which does the looking.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdpipe.cli import console

if TYPE_CHECKING:
    from kdpipe.schemas.report import VerifyReport

Level = Literal["fast", "full", "deep"]


def verify(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="The cache: a folder or a URL.")],
    level: Annotated[
        Level,
        typer.Option(help="fast: records, names and sizes; full: every checksum; deep: decode and check every row."),
    ] = "full",
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Check a cache; exit code 0 when it is good, 3 when it is not."""
    from kdpipe.cache.verify import verify_cache

    report = verify_cache(cache, level)
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(story(cache, report))
    if not report.ok:
        raise typer.Exit(3)


def story(cache: str, report: "VerifyReport") -> str:
    """The report for a person: one problem a paragraph, and the verdict last."""
    lines = [f"{problem.file}: {problem.what}\n  -> {problem.do}" for problem in report.problems]
    extent = f"{report.parts} {'part' if report.parts == 1 else 'parts'}, {report.bytes:,} bytes, level {report.level}"
    n = len(report.problems)
    verdict = "good" if report.ok else f"{n} problem{'s' if n > 1 else ''}"
    return "\n".join([*lines, f"{cache}: {verdict} ({extent})"])
