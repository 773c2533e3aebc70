"""What `kdpipe export` has made, for a person and for a program.

In: `pipeline/export.py`. Out: the document of `--json`.
"""

from typing import Literal

from kdpipe.schemas.records import Record

ExportDtype = Literal["float32", "bfloat16", "float16"]


class ExportReport(Record):
    """A folder that loads, in one number type; `merged` where an adapter became part of its base.

    `difference` is between its logits in a fresh process and those before it was saved, as a share of the largest.
    """

    folder: str
    dtype: ExportDtype
    parameters: int
    bytes: int
    merged: bool
    difference: float
    notes: tuple[str, ...] = ()
