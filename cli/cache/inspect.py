"""`kdpipe cache inspect`: origin, contents, fidelity and size of a cache, finished or not."""

from typing import TYPE_CHECKING

from kdpipe.cli import console
from kdpipe.cli.common_options import AnyCache, Json, Quiet, RetryFor, retries
from kdpipe.cli.console import Fact
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.counts import counted
from kdpipe.schemas.progress import Task, running

if TYPE_CHECKING:
    from kdpipe.schemas.manifest import Origin
    from kdpipe.schemas.summary import CacheSizes, CacheSummary, FidelitySummary, ScaledSummary, TemperatureSummary

SHOWN_CACHES = 3
SPLIT_COLUMNS = ("parts", "documents", "sequences", "rows", "positions")


def inspect(
    cache: AnyCache,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show a cache's origin, contents, fidelity and size."""
    from kdpipe.cache.inspect import inspect_cache

    with shown_progress(quiet=quiet) as progress, running(progress, Task(name="read cache")):
        summary = inspect_cache(cache, retries(retry_for, progress.message))
    if json:
        console.document(summary.model_dump(mode="json"))
    else:
        console.answer(page(summary))


def page(summary: "CacheSummary") -> str:
    """The summary as text: origin, contents, fidelity, splits, sizes."""
    facts = [*_origin(summary), *_contents(summary), *temperatures(summary.by_temperature), *fidelity(summary.fidelity)]
    sizes = [*bars(summary.bytes_per_position), *_sizes(summary.sizes)]
    return "\n".join([summary.url, *console.facts(facts), "", *_splits(summary), "", *sizes])


def _sizes(sizes: "CacheSizes") -> list[str]:
    """The bytes of all files, with their sum; the journal is not counted in it."""
    by_name = sizes.model_dump(exclude={"journal"})
    lines = [f"  {name:<18}{n_bytes:>15,}" for name, n_bytes in by_name.items()]
    lines.append(f"  {'total bytes':<18}{sizes.total:>15,}")
    return [*lines, f"  {'journal':<18}{sizes.journal:>15,}"] if sizes.journal else lines


def _origin(summary: "CacheSummary") -> list[Fact]:
    parts, teacher = summary.parts, summary.teacher
    state = "complete" if summary.complete else f"unfinished: {parts.present:,} of {parts.planned:,} parts"
    name = "none" if teacher is None else teacher.name
    if teacher is not None:
        name += f" at {teacher.revision}" if teacher.revision else ""
        name += f", {teacher.dtype}, license {teacher.license or 'not stated'}"
    tokenizer = summary.tokenizer
    return [
        ("cache_id", summary.cache_id or "none yet"),
        ("state", f"{state}, format {summary.format}, written by kdpipe {summary.kdpipe}"),
        ("teacher", name),
        ("tokenizer", f"{tokenizer.vocabulary_size:,} tokens, {tokenizer.fingerprint[:16]}"),
        ("data", summary.data.source or summary.data.fingerprint[:16]),
        *(("made by", _action(origin)) for origin in summary.history),
    ]


def _action(origin: "Origin") -> str:
    sources = ", ".join(identity[:16] for identity in origin.caches[:SHOWN_CACHES])
    more = f" and {len(origin.caches) - SHOWN_CACHES:,} more" if len(origin.caches) > SHOWN_CACHES else ""
    return f"{origin.action} of {sources}{more}" + (f" ({origin.note})" if origin.note else "")


def _contents(summary: "CacheSummary") -> list[Fact]:
    keep = summary.targets.keep.model_dump(mode="json")
    settings = ", ".join(f"{name} {value:g}" for name, value in keep.items() if type(value) in (int, float))
    kind = f"{keep['kind']}{f' ({settings})' if settings else ''} at T={summary.targets.target_temperature:g}"
    also = ", ".join(f"{t:g}" for t in summary.temperatures)
    facts = [("targets", kind + (f", normalizers for T={also}" if also else ""))]
    if (entries := summary.entries_per_position) is not None:
        spread = f"median {entries.p50:g}, 95th percentile {entries.p95:g}"
        facts.append(("entries", f"{entries.mean:.1f} per position, {spread}"))
    if summary.entropy_nats is not None:
        facts.append(("entropy", f"{summary.entropy_nats:.3f} nats per position"))
    if summary.scaled is not None:
        facts.append(("scaled", scaled(summary.scaled)))
    stored = [(summary.hidden.pooled, "document"), (summary.hidden.rows, "position")]
    hidden = [f"layer {' and '.join(str(v.layer) for v in vectors)} per {unit}" for vectors, unit in stored if vectors]
    if hidden:
        facts.append(("hidden", "; ".join(hidden)))
    return facts


def scaled(summary: "ScaledSummary") -> str:
    """How many rows summed to more than 1 and were scaled down, and by how much."""
    excess = f"excess at most {summary.largest_excess:.3g}, median {summary.median_excess:.2g}"
    return f"{counted(summary.rows, 'row')} summed to more than 1 and were scaled to 1 ({excess})"


def fidelity(measured: "FidelitySummary | None") -> list[Fact]:
    """How close the stored targets are to the teacher's full distributions."""
    if measured is None:
        return [("fidelity", "not measured")]
    at = f"at T={measured.temperature:g}, on {counted(measured.rows, 'row')} of {counted(measured.parts, 'part')}"
    kl = f"KL {measured.kl_nats:#.3g}{_error(measured.kl_error, '#.2g')} nats"
    variation = f"total variation {measured.total_variation:#.3g}{_error(measured.total_variation_error, '#.2g')}"
    errors = measured.kept_mass_error
    kept = ", ".join(
        f"{mass:.1%}{_error(errors.get(t), '.1%')} at T={float(t):g}" for t, mass in measured.kept_mass.items()
    )
    facts = [("fidelity", f"{kl}, {variation}, {at}"), ("kept mass", kept or "not measured")]
    if measured.gradient_angle_degrees is not None:
        angle = f"{measured.gradient_angle_degrees:.2f}{_error(measured.gradient_angle_error, '.2f')} degrees"
        facts.append(("gradients", f"{angle} from the dense teacher's over {measured.gradient_batch:,} positions"))
    return [*facts, ("verdict", measured.verdict)]


def _error(error: float | None, form: str) -> str:
    """A standard error, or nothing where it is unknown."""
    return "" if error is None else f" ±{error:{form}}"


def temperatures(summaries: "dict[str, TemperatureSummary]") -> list[Fact]:
    """Quality of the targets by the temperature of the student."""
    lines = []
    for temperature, summary in summaries.items():
        held = "" if summary.kept_mass is None else f", {summary.kept_mass:.1%} of the mass in exact ids"
        shifted = ", forward KL shifted by a constant" if summary.shifted else ""
        lines.append((f"at T={float(temperature):g}", f"{summary.targets}{held}{shifted}"))
    return lines


def _splits(summary: "CacheSummary") -> list[str]:
    lines = [f"  {'split':<12}" + "".join(f"{name:>15}" for name in SPLIT_COLUMNS)]
    for name, split in summary.splits.items():
        lines.append(f"  {name:<12}" + "".join(f"{getattr(split, column):>15,}" for column in SPLIT_COLUMNS))
    totals = (summary.parts.present, summary.documents, summary.sequences, summary.rows, summary.positions)
    lines.append(f"  {'total':<12}" + "".join(f"{total:>15,}" for total in totals))
    return lines


def bars(bytes_per_position: dict[str, float]) -> list[str]:
    """Bytes per position by array, the largest first."""
    sizes = dict(bytes_per_position)
    total = sizes.pop("total", 0.0)
    largest = max(sizes.values(), default=0.0) or 1.0
    lines = [f"  {'bytes per position':<18}{total:>9.2f}" + ("  (without text)" if sizes.get("text") else "")]
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if not size:
            continue
        lines.append(f"    {name:<16}{size:>9.2f}  {console.bar(size / largest)}".rstrip())
    return lines
