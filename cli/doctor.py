"""`kdpipe doctor`: checks of the machine, of models and a cache, or of a run, one line each."""

import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json
from kdpipe.cli.progress import shown_progress

if TYPE_CHECKING:
    from kdpipe.schemas.doctor_report import Check

LEVEL, NAME = 8, 15
MIN_WIDTH, MAX_WIDTH = 60, 120


def doctor(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run folder to check instead of the machine.")
    ] = None,
    from_cache: Annotated[
        str | None, typer.Option("--from-cache", metavar="DIR", help="Cache to check: a folder or a URL.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="NAME", help="Teacher to check: a model folder or a Hub id.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student", metavar="NAME", help="Student to check, as for train; with a cache, four steps are tried."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Directory whose file system is checked [.].")
    ] = None,
    json: Json = False,
) -> None:
    """Check the machine, models and a cache, or a training run.

    Ends with exit code 1 if there is a problem.
    """
    from kdpipe.pipeline.doctor import doctor as checks_of
    from kdpipe.schemas.doctor_report import DoctorReport, DoctorRequest

    request = DoctorRequest(run=run, cache=from_cache, teacher=teacher, student=student, out=out)
    checks = []
    with shown_progress(quiet=json) as progress:
        for check in checks_of(request, progress):
            checks.append(check)
            if not json:
                console.answer(line(check, shutil.get_terminal_size().columns))
    ok = all(check.level != "problem" for check in checks)
    if json:
        console.document(DoctorReport(ok=ok, checks=tuple(checks)).model_dump(mode="json"))
    if not ok:
        raise typer.Exit(1)


def line(check: "Check", columns: int) -> str:
    """A check in aligned columns; what to do is on lines of its own."""
    indent = " " * (LEVEL + NAME + 2)
    first = f"{check.level:<{LEVEL}} {check.name:<{NAME}} "
    texts = [_fill(check.what, columns, first, indent)]
    if check.do:
        texts.append(_fill(check.do, columns, indent + "-> ", indent + "   "))
    return "\n".join(texts)


def _fill(text: str, columns: int, first: str, indent: str) -> str:
    """Paths and addresses are not broken."""
    return textwrap.fill(
        text,
        min(max(columns, MIN_WIDTH), MAX_WIDTH),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
