"""`kdpipe export`: a run's student as a model folder for others.

In: a run, where to, the number type. Out: the folder, and what it is.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.quantities import size

if TYPE_CHECKING:
    from kdpipe.schemas.export_report import ExportReport


class Form(StrEnum):
    """What it can be exported to."""

    hf = "hf"


class Dtype(StrEnum):
    """The number types of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run: what kdpipe train was given as --out.")],
    to: Annotated[Form, typer.Option("--to", help="hf: a model folder as transformers, vLLM and llama.cpp load it.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder; RUN/export unless said.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="The type of its weights; as they were saved unless said.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the student's own code run; read it first.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Make a model folder of a run's student: adapters merged, in one number type, read again to check."""
    from kdpipe.pipeline.export import export as make

    report = make(run, out, None if dtype is None else dtype.value, trusted=trust_remote_code)
    console.reply(report, page(report, to), as_json=json)


def page(report: "ExportReport", to: Form) -> str:
    """What was made, and how it is loaded."""
    kind = "a model with its adapter merged" if report.merged else "a model"
    facts = [
        ("folder", report.folder),
        ("form", f"{kind}, {to.value}"),
        ("weights", f"{report.parameters:,} parameters in {report.dtype}, {size(report.bytes)} in all"),
        ("read again", f"logits differ by {report.difference:.1g} of the largest"),
        ("load it", f'AutoModelForCausalLM.from_pretrained("{report.folder}")'),
    ]
    return "\n".join([*console.facts(facts), *(f"note: {note}" for note in report.notes)])
