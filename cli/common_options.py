"""Options that several commands share, and the retry policy of `--retry-for`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.flags import Flag
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.cache.stores.retries import RetryPolicy


def _code_of(owner: str) -> str:
    return f"Run Python code from the {owner}'s repository; review it first."


OUT = Flag("--out", "out", metavar="DIR", help="Output directory. Re-run the command to resume.")
SEED = Flag("--seed", "seed", int, metavar="N", help="Random seed [0].")
RETRY = Flag(
    "--retry-for",
    "cache.retry_for",
    metavar="TIME",
    help="How long to retry failing remote storage, e.g. 30s or 10m [5m].",
)
DEVICE = Flag(
    "--devices",
    "machine.device",
    metavar="WHICH",
    help="auto, cpu, cuda, mps (Apple GPU, untested), all, or GPUs such as cuda:0,cuda:1 [auto].",
)
TEACHER_CODE = Flag("--trust-remote-code", "teacher.trust_remote_code", bool, help=_code_of("teacher"))

RetryFor = Annotated[str | None, typer.Option(RETRY.name, metavar=RETRY.metavar, help=RETRY.help)]


def _checked_devices(typed: str) -> str:
    from kdpipe.schemas.model import check_devices

    try:
        return check_devices(typed)
    except ValueError as error:
        raise UsageError(f"{DEVICE.name} {typed}: {error}") from None


Devices = Annotated[
    str,
    typer.Option(
        DEVICE.name,
        metavar=DEVICE.metavar,
        help=DEVICE.help,
        rich_help_panel="Machine",
        show_default=False,
        callback=_checked_devices,
    ),
]
RunTeacherCode = Annotated[bool, typer.Option(TEACHER_CODE.name, help=TEACHER_CODE.help)]
RunStudentCode = Annotated[bool, typer.Option(TEACHER_CODE.name, help=_code_of("student"))]
RunTokenizerCode = Annotated[bool, typer.Option(TEACHER_CODE.name, help=_code_of("tokenizer"))]
RunModelCode = Annotated[bool, typer.Option(TEACHER_CODE.name, help=_code_of("model"))]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only warnings, errors and the result.")]
CacheOut = Annotated[str, typer.Option(OUT.name, metavar=OUT.metavar, help=OUT.help)]
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
