"""`kdpipe cache verify`: checks files, signature and, with --against, the teacher's predictions.

Prints each problem with its file and what to do; exit code 0 or 3.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import AnyCache, Devices, Json, Quiet, RetryFor, RunTeacherCode, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.cache.stores.retries import RetryPolicy
    from kdpipe.schemas.progress import Progress
    from kdpipe.schemas.verify_report import AgainstReport, VerifyReport

# Documents: enough to detect another teacher.
SAMPLE = 32


def verify(
    cache: AnyCache,
    level: Annotated[
        VerifyLevel,
        typer.Option(help="fast: records, names, sizes; full: all checksums; deep: decode and check every row."),
    ] = "full",
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="TEACHER", help="Also run the teacher on a sample of documents and compare."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, metavar="N", help=f"--against: approximate number of documents [{SAMPLE}]."),
    ] = None,
    trust_remote_code: RunTeacherCode = False,
    devices: Devices = "auto",
    repair_from: Annotated[
        str | None,
        typer.Option("--repair-from", metavar="SRC", help="Replace missing or damaged files from another copy."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature",
            metavar="KEY",
            help="Also check the signature with this public key; needs --level full or deep.",
        ),
    ] = None,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Verify a cache; exit code 0 if valid, 3 if not."""
    from kdpipe.cache.verify.first_use import verify_and_record

    _check_options(level, against, sample, trust_remote_code, devices, signature)
    with shown_progress(quiet=quiet) as progress:
        retry_policy = retries(retry_for, progress.message)
        report = verify_and_record(cache, level, progress, retry_policy)
        if repair_from is not None and not report.ok:
            report = _repaired(cache, level, report, repair_from, progress, retry_policy)
        if signature is not None:
            report = _with_signature(cache, report, signature, progress, retry_policy)
        if against is not None and report.ok:  # a damaged cache is not worth a teacher run
            from kdpipe.pipeline.verify_against import verify_against

            run = partial(verify_against, trusted=trust_remote_code, devices=devices, retry_policy=retry_policy)
            result = run(cache, against, sample or SAMPLE, progress)
            report = report.model_copy(update={"ok": result.ok, "problems": result.problems, "against": result})
    console.reply(report, page(cache, report), as_json=json)
    if not report.ok:
        raise typer.Exit(3)


def _check_options(
    level: VerifyLevel,
    against: str | None,
    sample: int | None,
    trust_remote_code: bool,
    devices: str,
    signature: Path | None,
) -> None:
    """Refuse options that have no effect together."""
    needs_teacher = {
        "--sample": sample,
        "--trust-remote-code": trust_remote_code or None,
        "--devices": devices if devices != "auto" else None,
    }
    for option, given in needs_teacher.items():
        if given is not None and against is None:
            raise UsageError(f"{option} needs --against", hint="give --against TEACHER too")
    if signature is not None and level == "fast":
        raise UsageError(
            "--signature needs --level full or deep: --level fast does not read every byte",
            hint="omit --level, or give --level full or deep",
        )


def _repaired(
    cache: str,
    level: VerifyLevel,
    report: "VerifyReport",
    source: str,
    progress: "Progress",
    retry_policy: "RetryPolicy",
) -> "VerifyReport":
    """Replace missing and damaged files, and verify again."""
    from kdpipe.cache.transfer import copy_cache
    from kdpipe.cache.verify.first_use import verify_and_record

    for problem in report.problems:
        progress.message(f"{problem.file}: {problem.what}")
    copy_cache(source, cache, repair=True, retry_policy=retry_policy, progress=progress)
    return verify_and_record(cache, level, progress, retry_policy)


def _with_signature(
    cache: str, report: "VerifyReport", key: Path, progress: "Progress", retry_policy: "RetryPolicy"
) -> "VerifyReport":
    """The report with the check of the signature."""
    from kdpipe.cache.layout import SIGNATURE
    from kdpipe.cache.signing import signature_problem
    from kdpipe.cache.stores.dispatch import open_store
    from kdpipe.schemas.verify_report import Problem

    what = signature_problem(open_store(cache, retry_policy), key, report.cache_id)
    if what is None:
        if report.ok:
            progress.message(f"signature valid for {key}")
        else:
            progress.message(f"the signature is valid for {key}, but the cache has been damaged since")
        return report
    problem = Problem(part=None, file=SIGNATURE, what=what, do="do not use the cache until you know its origin")
    return report.model_copy(update={"ok": False, "problems": (*report.problems, problem)})


def page(cache: str, report: "VerifyReport") -> str:
    """The report as text: problems first, the verdict last."""
    lines = [f"{problem.file}: {problem.what}\n  -> {problem.do}" for problem in report.problems]
    lines += [f"note: {note}" for note in report.notes]
    extent = f"{console.parts(report.parts)}, {report.bytes:,} bytes in parts, level {report.level}"
    n = len(report.problems)
    verdict = "OK" if report.ok else f"{n} problem{'s' if n > 1 else ''}"
    against = [] if report.against is None else console.facts(_against(report.against))
    return "\n".join([*lines, *against, f"{cache}: {verdict} ({extent})"])


def _against(report: "AgainstReport") -> list[console.Fact]:
    noise, difference = report.noise, report.difference
    if noise is None or difference is None:
        return [("teacher", f"{report.teacher}, not run")]
    return [
        (
            "teacher",
            f"{report.teacher}, {counted(report.positions, 'position')} of {counted(report.documents, 'document')}",
        ),
        ("difference", f"mean {difference.mean_nats:.2g} nats, max {difference.max_nats:.2g} nats"),
        ("noise", f"mean {noise.mean_nats:.2g} nats, max {noise.max_nats:.2g} nats: the teacher at two batch shapes"),
        ("accepted", f"up to {report.bound_nats:.2g} nats mean per document"),
    ]
