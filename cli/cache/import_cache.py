"""`kdpipe cache import`: what another tool has stored becomes a cache.

In: files of another tool, their format and the tokenizer. Out: a cache, and on stdout what it is and what its source
could not tell.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.inspect import scaled
from kdpipe.cli.progress import watching
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.choices import Align, ImportFormat, StatedTail
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.schemas.interop import ImportReport

TAILS = {
    "given": "stated by the source",
    "rest": "what kept ids leave of 1",
    "unknown": "unknown: students learn with losses.logit=renormalized, or --mode output",
}


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file, folder or glob, or a data set of the hub.")],
    from_: Annotated[
        ImportFormat,
        typer.Option("--from", help="Whose files: DistillKit's, axolotl's columns, NeMo-Aligner's lines, plain top-k."),
    ],
    tokenizer: Annotated[str, typer.Option(metavar="NAME", help="The teacher's tokenizer: a folder or a hub id.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="The cache: a new folder, or one that this command began.")],
    data_split: Annotated[
        str | None,
        typer.Option("--data-split", metavar="NAME", help="Split of the data set [train], or a word in files' names."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="distillkit: its compression settings [compression_config.yaml beside SRC]."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="topk: column of tokens, ids, ...; axolotl: of logprobs; repeatable."),
    ] = None,
    tail: Annotated[
        StatedTail | None,
        typer.Option(help="rest: log p are over the whole vocabulary, what kept ids leave of 1 is the tail."),
    ] = None,
    align: Annotated[
        Align | None,
        typer.Option(help="axolotl, topk: whether list t is about token t + 1 or about token t."),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(metavar="SHARE", help="The share of rows, by the digest of their tokens, to validate on.")
    ] = 0.0,
    no_pack: Annotated[bool, typer.Option("--no-pack", help="A document a sequence.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="The first N rows only.")] = None,
    max_row_bytes: Annotated[
        int, typer.Option(metavar="N", help="Largest line of JSON in bytes [64 MiB].", show_default=False)
    ] = 1 << 26,
    teacher_name: Annotated[str | None, typer.Option(metavar="NAME", help="Who spoke, for the manifest.")] = None,
    teacher_revision: Annotated[str | None, typer.Option(metavar="NAME", help="Its revision.")] = None,
    teacher_license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its license, which students inherit.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the tokenizer's repository run code of its own.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Make a cache from what another tool has stored; run again, it goes on where it was."""
    roles = _roles(columns or [])
    from kdpipe.pipeline.import_cache import import_cache
    from kdpipe.schemas.interop import import_settings

    place = {"source_format": from_, "source": source, "data_split": data_split, "out": out, "limit": limit}
    words = {"tokenizer": tokenizer, "trust_remote_code": trust_remote_code, "max_row_bytes": max_row_bytes}
    meaning = {"codec": codec, "columns": roles, "tail": tail, "align": align}
    split = {"val_fraction": val_fraction, "pack": not no_pack}
    teacher = {"teacher_name": teacher_name, "teacher_revision": teacher_revision, "teacher_license": teacher_license}
    settings = import_settings(**place, **words, **meaning, **split, **teacher)
    with watching() as watch:
        report = import_cache(settings, watch)
    console.reply(report, page(report), as_json=json)


def _roles(words: list[str]) -> dict[str, str]:
    """ROLE=NAME as a table."""
    found: dict[str, str] = {}
    for word in words:
        role, sign, name = word.partition("=")
        if not sign or not role or not name or role in found:
            raise UsageError(
                f"--columns {word} is not of the form ROLE=NAME", hint="write tokens=input_ids, a role once"
            )
        found[role] = name
    return found


def page(report: "ImportReport") -> str:
    """What was made, and what nobody knows of it, for a person."""
    parts = f"{report.parts:,}, {report.parts_made:,} made now"
    facts = [
        ("cache_id", report.cache_id),
        ("parts", parts),
        ("documents", f"{report.documents:,}"),
        ("positions", f"{report.positions:,}, {report.entries_per_position:.1f} entries each"),
        ("size", size(report.bytes)),
        ("tail", TAILS[report.tail]),
        ("not told", ", ".join(report.unknown)),
    ]
    repaired = {
        "left out": (report.padding_entries, "ids without probability"),
        "not learnt": (report.rows_without_targets, "rows without targets"),
    }
    facts += [(name, f"{n:,} {what}") for name, (n, what) in repaired.items() if n]
    facts += [("scaled", scaled(report.scaled))] if report.scaled is not None else []
    return "\n".join([report.cache, *console.facts([*facts, ("time", duration(report.seconds))])])
