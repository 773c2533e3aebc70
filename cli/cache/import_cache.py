"""`kdpipe cache import`: converts another tool's stored teacher predictions into a cache."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.inspect import scaled
from kdpipe.cli.common_options import CacheOut, Json, Quiet, RunTokenizerCode
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.choices import Align, ImportFormat, StatedTail
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.schemas.interop import ImportReport

# Help texts.
FROM = "Source format: DistillKit, axolotl columns, NeMo-Aligner JSON lines, or plain top-k columns."
DATA_SPLIT = "Split of the Hub dataset, or a word in the file names [train]."
COLUMNS = "topk: column names of tokens, ids, ...; axolotl: of logprobs (repeatable)."
TAIL = "Probability mass outside the kept ids. rest: 1 - sum of the kept probabilities."
ALIGN = "axolotl, topk: whether list t predicts token t + 1 (next) or token t (own)."
TAILS = {
    "given": "stored in the source",
    "rest": "1 - sum of the kept probabilities",
    "unknown": "unknown: train with --set losses.logit=renormalized, or --mode output",
}


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Source: a file, a folder, a glob or a Hub dataset.")],
    from_: Annotated[
        ImportFormat,
        typer.Option(
            "--from",
            help=FROM,
        ),
    ],
    tokenizer: Annotated[str, typer.Option(metavar="NAME", help="Teacher's tokenizer: a folder or a Hub id.")],
    out: CacheOut,
    data_split: Annotated[str | None, typer.Option("--data-split", metavar="NAME", help=DATA_SPLIT)] = None,
    codec: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="distillkit: compression settings [compression_config.yaml next to SRC]."),
    ] = None,
    columns: Annotated[list[str] | None, typer.Option(metavar="ROLE=NAME", help=COLUMNS)] = None,
    tail: Annotated[StatedTail | None, typer.Option(help=TAIL)] = None,
    align: Annotated[Align | None, typer.Option(help=ALIGN)] = None,
    val_fraction: Annotated[
        float, typer.Option(metavar="FRACTION", help="Fraction of rows held out for validation, selected by hash.")
    ] = 0.0,
    no_pack: Annotated[bool, typer.Option("--no-pack", help="One document per sequence, without packing.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first N rows.")] = None,
    max_row_bytes: Annotated[
        int, typer.Option(metavar="N", help="Maximum bytes of a JSON line [64 MiB].", show_default=False)
    ] = 1 << 26,
    teacher_name: Annotated[str | None, typer.Option(metavar="NAME", help="Teacher's name for the manifest.")] = None,
    teacher_revision: Annotated[str | None, typer.Option(metavar="NAME", help="Teacher's revision.")] = None,
    teacher_license: Annotated[str | None, typer.Option(metavar="NAME", help="Teacher's license.")] = None,
    trust_remote_code: RunTokenizerCode = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Import teacher predictions that another tool stored.

    Re-run the command to resume.
    """
    roles = _roles(columns or [])
    from kdpipe.pipeline.import_cache import import_cache
    from kdpipe.schemas.interop import import_settings

    place = {"source_format": from_, "source": source, "data_split": data_split, "out": out, "limit": limit}
    reading = {"tokenizer": tokenizer, "trust_remote_code": trust_remote_code, "max_row_bytes": max_row_bytes}
    meaning = {"codec": codec, "columns": roles, "tail": tail, "align": align}
    split = {"val_fraction": val_fraction, "pack": not no_pack}
    teacher = {"teacher_name": teacher_name, "teacher_revision": teacher_revision, "teacher_license": teacher_license}
    settings = import_settings(**place, **reading, **meaning, **split, **teacher)
    with shown_progress(quiet=quiet) as progress:
        report = import_cache(settings, progress)
    console.reply(report, page(report), as_json=json)


def _roles(words: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for word in words:
        role, sign, name = word.partition("=")
        if not sign or not role or not name or role in names:
            raise UsageError(
                f"--columns {word} is not of the form ROLE=NAME",
                hint="for example --columns tokens=input_ids; give each role once",
            )
        names[role] = name
    return names


def page(report: "ImportReport") -> str:
    """The report as text, with the metadata that the source does not have."""
    parts = f"{report.parts:,}, {report.parts_made:,} from this run"
    facts = [
        ("cache_id", report.cache_id),
        ("parts", parts),
        ("documents", f"{report.documents:,}"),
        ("positions", f"{report.positions:,}, {report.entries_per_position:.1f} entries per position"),
        ("size", size(report.bytes)),
        ("tail", TAILS[report.tail]),
        ("unknown", ", ".join(report.unknown)),
    ]
    repaired = {
        "dropped": (report.padding_entries, "padding ids"),
        "not trained": (report.rows_without_targets, "rows without targets"),
    }
    facts += [(name, f"{n:,} {what}") for name, (n, what) in repaired.items() if n]
    facts += [("scaled", scaled(report.scaled))] if report.scaled is not None else []
    return "\n".join([report.cache, *console.facts([*facts, ("time", duration(report.seconds))])])
