"""`kdpipe export`: a run's student as a Hugging Face model folder."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json, Quiet, RunStudentCode
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import size
from kdpipe.schemas.choices import DtypeName

if TYPE_CHECKING:
    from kdpipe.schemas.export_report import ExportReport


class Form(StrEnum):
    """Formats that a student can be exported to."""

    hf = "hf"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: the --out of kdpipe train.")],
    to: Annotated[Form, typer.Option("--to", help="hf: a model folder for transformers, vLLM and llama.cpp.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="New output directory [RUN/export].")] = None,
    dtype: Annotated[DtypeName | None, typer.Option("--dtype", help="Data type of the weights [as saved].")] = None,
    trust_remote_code: RunStudentCode = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Export a run's student as a Hugging Face model folder.

    LoRA adapters are merged, and the folder is loaded again to check its logits.
    """
    from kdpipe.pipeline.export import export as make

    with shown_progress(quiet=quiet) as progress:
        report = make(run, out, dtype, trusted=trust_remote_code, progress=progress)
    console.reply(report, page(report, to), as_json=json)


def page(report: "ExportReport", to: Form) -> str:
    """The report as text."""
    kind = "a model with its adapter merged" if report.merged else "a model"
    facts = [
        ("folder", report.folder),
        ("form", f"{kind}, {to.value}"),
        ("weights", f"{report.parameters:,} parameters in {report.dtype}, {size(report.bytes)}"),
        ("verified", f"logits after loading differ by at most {report.difference:.1g} of the largest"),
        ("load with", f'AutoModelForCausalLM.from_pretrained("{report.folder}")'),
    ]
    return "\n".join([*console.facts(facts), *(f"note: {note}" for note in report.notes)])
