"""`kdpipe cache verify`: is every byte of a cache what it claims to be, and is the cache what its teacher says?

In: a cache, how deep to look, perhaps a teacher. Out: every problem with its place and its remedy, and exit code 0 or
3.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.copy import copying
from kdpipe.cli.progress import watching
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.cache.stores.retries import RetryPolicy
    from kdpipe.schemas.verify_report import AgainstReport, VerifyReport

# Documents: enough to notice another teacher, few enough to wait for.
SAMPLE = 32


def verify(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="The cache: a folder or a URL.")],
    level: Annotated[
        VerifyLevel,
        typer.Option(help="fast: records, names and sizes; full: every checksum; deep: decode and check every row."),
    ] = "full",
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="TEACHER", help="Also ask the teacher again, about some of the documents."),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help=f"About how many documents [{SAMPLE}].")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the teacher's repository run code of its own.")
    ] = False,
    repair_from: Annotated[
        str | None,
        typer.Option("--repair-from", metavar="SRC", help="Fetch again from another copy what is missing or damaged."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature", metavar="KEY", help="Check the signature by this public key too; level full or deep."
        ),
    ] = None,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Check a cache; exit code 0 when it is good, 3 when it is not."""
    from kdpipe.cache.verify.first_use import verify_and_remember

    if sample is not None and against is None:
        raise UsageError("--sample says how many documents to ask a teacher about", hint="give --against TEACHER too")
    if trust_remote_code and against is None:
        raise UsageError("--trust-remote-code is about a teacher", hint="give --against TEACHER too")
    if signature is not None and level == "fast":
        raise UsageError(
            "--signature vouches for every byte of a cache, and --level fast reads few of them",
            hint="leave --level out, or give --level full or deep",
        )
    retry_policy = retries(retry_for)
    report = verify_and_remember(cache, level, console.Notes(), retry_policy)
    if repair_from is not None and not report.ok:
        report = _repaired(cache, level, report, repair_from, retry_policy)
    if signature is not None:
        report = _with_signature(cache, report, signature, retry_policy)
    if against is not None and report.ok:  # nobody asks about bytes that are already known to be wrong
        report = _with_teacher(cache, report, against, sample or SAMPLE, trust_remote_code, retry_policy)
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(story(cache, report))
    if not report.ok:
        raise typer.Exit(3)


def _repaired(
    cache: str, level: VerifyLevel, report: "VerifyReport", source: str, retry_policy: "RetryPolicy"
) -> "VerifyReport":
    """The report once what was wrong has been fetched again."""
    from kdpipe.cache.transfer import copy_cache
    from kdpipe.cache.verify.first_use import verify_and_remember

    for problem in report.problems:
        console.note(f"{problem.file}: {problem.what}")
    with copying() as watch:
        copy_cache(source, cache, mend=True, retry_policy=retry_policy, watch=watch)
    return verify_and_remember(cache, level, console.Notes(), retry_policy)


def _with_signature(cache: str, report: "VerifyReport", key: Path, retry_policy: "RetryPolicy") -> "VerifyReport":
    """The report with what is wrong with the signature."""
    from kdpipe.cache.layout import SIGNATURE
    from kdpipe.cache.signing import signature_problem
    from kdpipe.cache.stores.dispatch import open_store
    from kdpipe.schemas.verify_report import Problem

    what = signature_problem(open_store(cache, retry_policy), key, report.cache_id)
    if what is None:
        if report.ok:
            console.note(f"signed by the holder of {key}")
        else:
            console.note(f"the signature is by the holder of {key}, but the cache is not as it was signed")
        return report
    problem = Problem(part=None, file=SIGNATURE, what=what, do="do not use the cache before you know who made it")
    return report.model_copy(update={"ok": False, "problems": (*report.problems, problem)})


def _with_teacher(
    cache: str, report: "VerifyReport", teacher: str, sample: int, trusted: bool, retry_policy: "RetryPolicy"
) -> "VerifyReport":
    """The report with what the teacher says today."""
    from kdpipe.pipeline.verify_against import verify_against

    with watching() as watch:
        found = verify_against(cache, teacher, sample, watch, trusted=trusted, retry_policy=retry_policy)
    return report.model_copy(update={"ok": found.ok, "problems": found.problems, "against": found})


def story(cache: str, report: "VerifyReport") -> str:
    """The report for a person: one problem a paragraph, and the verdict last."""
    lines = [f"{problem.file}: {problem.what}\n  -> {problem.do}" for problem in report.problems]
    lines += [f"note: {note}" for note in report.notes]
    extent = f"{console.parts(report.parts)}, {report.bytes:,} bytes in parts, level {report.level}"
    n = len(report.problems)
    verdict = "good" if report.ok else f"{n} problem{'s' if n > 1 else ''}"
    beside = [] if report.against is None else console.facts(_against(report.against))
    return "\n".join([*lines, *beside, f"{cache}: {verdict} ({extent})"])


def _against(found: "AgainstReport") -> list[console.Fact]:
    noise, difference = found.noise, found.difference
    if noise is None or difference is None:
        return [("teacher", f"{found.teacher}, which was not run")]
    return [
        (
            "teacher",
            f"{found.teacher}, {counted(found.positions, 'position')} of {counted(found.documents, 'document')}",
        ),
        ("difference", f"{difference.mean_nats:.2g} nats on the mean, {difference.max_nats:.2g} at most"),
        ("noise", f"{noise.mean_nats:.2g} nats on the mean, {noise.max_nats:.2g} at most: the teacher against itself"),
        ("explained", f"up to {found.bound_nats:.2g} nats on the mean of a document"),
    ]
