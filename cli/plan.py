"""`kdpipe plan`: estimates size, memory and time of cache-teacher before any weights are loaded."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.inspect import bars
from kdpipe.cli.common_options import Json, Quiet
from kdpipe.cli.console import Fact
from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import capture_settings
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from kdpipe.schemas.capture_report import PlanReport

# Long enough to measure a throughput.
PROBE_SECONDS = 30.0


def plan(
    given: ParsedFlags,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, metavar="N", help="Plan for N tokens, whatever the size of the data."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the teacher and run it for 30 seconds to estimate the time too.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Estimate size, memory and time of cache-teacher."""
    settings = capture_settings(given, data=False, out=False)
    from kdpipe.pipeline.plan import plan as run

    with shown_progress(quiet=quiet) as progress:
        report = run(settings, tokens=tokens, probe_seconds=PROBE_SECONDS if probe else None, progress=progress)
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report))


def page(report: "PlanReport") -> str:
    """The estimate as text: amounts, size by array, memory, time."""
    lines = [report.teacher or "no teacher", *console.facts(_extent(report)), "", *bars(report.bytes_per_position)]
    lines += [
        f"  {size(report.bytes)} for all parts",
        *_second_caches(report),
        "",
        *_memory(report),
        *console.facts(_time(report)),
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _extent(report: "PlanReport") -> list[Fact]:
    facts = [] if report.n_parameters is None else [("parameters", f"{report.n_parameters:,}")]
    amounts = (("documents", report.documents), ("positions", report.positions), ("parts", report.parts))
    facts += [(name, _by_split(counts)) for name, counts in amounts]
    facts.append(("sequences", f"{report.sequences:,}"))
    facts.append(("part size", f"{report.positions_per_part:,} positions"))
    if report.entries_per_position is not None:
        facts.append(("entries", f"{report.entries_per_position:.1f} per position"))
    return facts


def _by_split(counts: dict[str, int]) -> str:
    total = f"{sum(counts.values()):,}"
    return total if len(counts) < 2 else f"{total}: {', '.join(f'{n:,} {split}' for split, n in counts.items())}"


def _second_caches(report: "PlanReport") -> list[str]:
    return [
        f"  {size(n_bytes)} for one more cache with --target-temperature {float(temperature):g}"
        for temperature, n_bytes in report.second_caches.items()
    ]


def _memory(report: "PlanReport") -> list[str]:
    needs = report.memory.model_dump()
    total = needs.pop("total")
    largest = max(needs.values()) or 1
    lines = [f"  {'memory':<18}{size(total):>12}"]
    for name, n_bytes in sorted(needs.items(), key=lambda item: -item[1]):
        lines.append(f"    {name.replace('_', ' '):<16}{size(n_bytes):>12}  {console.bar(n_bytes / largest)}".rstrip())
    return lines


def _time(report: "PlanReport") -> list[Fact]:
    facts = []
    if (probe := report.probe) is not None:
        measured = [f"{probe.positions_per_second:,.0f} positions/s over {duration(probe.seconds)}"]
        if probe.overhead_ratio is not None:
            measured.append(f"{probe.overhead_ratio:.2f} x the time of a forward pass")
        if probe.entries_per_position is not None:
            measured.append(f"{probe.entries_per_position:.1f} entries per position")
        facts.append(("probe", ", ".join(measured)))
    time = "unknown; use --probe to measure it" if report.hours is None else duration(report.hours * 3600)
    facts.append(("time", time if report.workers == 1 else f"{time} with {report.workers:,} workers"))
    if report.break_even_runs is not None:
        runs = report.break_even_runs
        facts.append(("breaks even", f"after {counted(runs, 'student run')}"))
    return facts
