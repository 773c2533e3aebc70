"""`kdpipe doctor`: checks of the machine or of a run, one line each."""

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json

if TYPE_CHECKING:
    from kdpipe.schemas.doctor_report import Check

LEVEL, NAME, WIDTH = 8, 14, 80


def doctor(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run folder to check instead of the machine.")
    ] = None,
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", show_default=False, help="Directory whose file system is checked [.]."),
    ] = ".",
    json: Json = False,
) -> None:
    """Check the machine, or a training run, and say what to do.

    Ends with exit code 1 if there is a problem.
    """
    from kdpipe.pipeline.doctor import doctor as checks_of
    from kdpipe.schemas.doctor_report import DoctorReport

    checks = []
    for check in checks_of(run, out):
        checks.append(check)
        if not json:
            console.answer(line(check))
    ok = all(check.level != "problem" for check in checks)
    if json:
        console.document(DoctorReport(ok=ok, checks=tuple(checks)).model_dump(mode="json"))
    if not ok:
        raise typer.Exit(1)


def line(check: "Check") -> str:
    """A check in aligned columns of 80 characters; what to do is on lines of its own."""
    indent = " " * (LEVEL + NAME + 2)
    first = f"{check.level:<{LEVEL}} {check.name:<{NAME}} "
    texts = [_fill(check.what, first, indent)]
    if check.do:
        texts.append(_fill(check.do, indent + "-> ", indent + "   "))
    return "\n".join(texts)


def _fill(text: str, first: str, indent: str) -> str:
    """Paths and addresses are not broken."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
